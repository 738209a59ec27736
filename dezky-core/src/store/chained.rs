use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use event_listener::Event;
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use uuid::Uuid;

use super::engine::{
    EvidenceRef, ExistingRow, LeaseRow, ListScan, NewRow, RowStore, RowTx, ScanEnd, StagedEvent,
    TallyScan,
};
use super::group::GroupCommit;
use super::query::{decode_cursor, encode_cursor};
use super::{
    Anomaly, AppendOptions, Appended, AuditStore, Capabilities, EventKey, Extent, Head, Lease,
    ListPage, ListQuery, LogPart, LogState, MAX_BATCH_EVENTS, MAX_BATCH_QUARANTINE,
    MAX_BATCH_RELEASE, MAX_CURSOR_BYTES, MAX_CURSOR_SOURCE_BYTES, MAX_QUARANTINE_RAW_BYTES,
    MAX_SCAN_ROWS, QuarantinedItem, Receipt, ReceiptStatus, Relayed, ScannedRow, StoredRow, Tally,
    TallyQuery,
};
use crate::integrity::{chain_hash, leaf_hash};
use crate::source::QuarantineItem;
use crate::{Error, ErrorKind, PLATFORM_SOURCE, Result, SealedEvent, StoredEvent, Timestamp};

/// An [`AuditStore`] on any [`RowStore`]: deduplication, chain, group commit, page cursors, leases
/// and outbox, the same for every engine.
pub struct ChainedStore<R> {
    rows: Arc<R>,
    commits: GroupCommit<Job, Result<Appended>>,
    progress: Arc<Progress>,
    max_examined_rows: usize,
    max_tallied_rows: usize,
}

/// The length of the log as far as this process has seen it, for tasks that wait for more.
#[derive(Default)]
struct Progress {
    next_seq: AtomicU64,
    moved: Event,
}

/// One caller's append, waiting in a group.
struct Job {
    events: Vec<SealedEvent>,
    options: AppendOptions,
}

impl<R: RowStore> ChainedStore<R> {
    /// Maximum number of rows that one `list` examines by default.
    pub const DEFAULT_MAX_EXAMINED_ROWS: usize = 200_000;

    /// Maximum number of rows that one `tally` examines by default.
    pub const DEFAULT_MAX_TALLIED_ROWS: usize = 1_000_000;
    /// Approximate maximum number of counts that one `tally` returns.
    pub const MAX_COUNTS: usize = 20_000;

    /// Wraps an engine's rows.
    pub fn new(rows: R) -> Self {
        Self {
            rows: Arc::new(rows),
            commits: GroupCommit::new(),
            progress: Arc::default(),
            max_examined_rows: Self::DEFAULT_MAX_EXAMINED_ROWS,
            max_tallied_rows: Self::DEFAULT_MAX_TALLIED_ROWS,
        }
    }

    /// The engine's rows.
    pub fn rows(&self) -> &R {
        &self.rows
    }

    /// Sets the maximum number of rows that one `list` examines before it returns a partial page;
    /// at least 1.
    #[must_use]
    pub fn max_examined_rows(mut self, rows: usize) -> Self {
        self.max_examined_rows = rows.max(1);
        self
    }

    /// Sets the maximum number of rows that one `tally` examines; at least 1.
    #[must_use]
    pub fn max_tallied_rows(mut self, rows: usize) -> Self {
        self.max_tallied_rows = rows.max(1);
        self
    }
}

#[async_trait]
impl<R: RowStore> AuditStore for ChainedStore<R> {
    fn capabilities(&self) -> Capabilities {
        self.rows.capabilities()
    }

    async fn append(&self, events: Vec<SealedEvent>, options: AppendOptions) -> Result<Appended> {
        check_batch(&events, &options)?;
        let weight = weigh(&events, &options);
        let rows = Arc::clone(&self.rows);
        let progress = Arc::clone(&self.progress);
        self.commits
            .submit(Job { events, options }, weight, move |jobs| {
                async move { commit_group(&*rows, &progress, &jobs).await }.boxed()
            })
            .await
    }

    async fn find_same(&self, events: &[&SealedEvent]) -> Result<Vec<StoredEvent>> {
        if events.len() > MAX_BATCH_EVENTS {
            let what =
                format!("{} events exceed {MAX_BATCH_EVENTS}: look them up in parts", events.len());
            return Err(Error::new(ErrorKind::TooLarge, what));
        }
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let mut tx = self.rows.begin().await?;
        let existing = tx.existing(events).await?;
        drop(tx);
        let mut seqs: Vec<u64> = existing.into_iter().map(|row| row.seq).collect();
        seqs.sort_unstable();
        seqs.dedup();
        let mut found = Vec::with_capacity(seqs.len());
        // Events that were appended together are contiguous.
        for run in seqs.chunk_by(|a, b| *b == a + 1) {
            let from = i64::try_from(run[0]).unwrap_or(i64::MAX);
            let rows = self.rows.scan(from, run.len()).await?;
            found.extend(rows.into_iter().flatten().map(|row| row.stored));
        }
        Ok(found)
    }

    async fn list(&self, query: &ListQuery) -> Result<ListPage> {
        let filter = query.filter()?;
        let key = self.rows.state().await?.cursor_key;
        let before = match &query.cursor {
            Some(text) => Some(decode_cursor(&key, &filter, text)?),
            None => None,
        };
        let mut page = self
            .rows
            .list(&ListScan {
                filter: &filter,
                before,
                // One more row tells whether there is a next page.
                max_rows: query.limit + 1,
                max_examined: self.max_examined_rows,
            })
            .await?;
        let more = page.events.len() > query.limit;
        page.events.truncate(query.limit);
        let (position, partial) = match page.end {
            _ if more => (page.events.last().map(|e| (e.event.at, e.seq)), false),
            ScanEnd::Budget(position) => (Some(position), true),
            ScanEnd::Full | ScanEnd::Exhausted => (None, false),
        };
        Ok(ListPage {
            events: page.events,
            next_cursor: position.map(|position| encode_cursor(&key, &filter, position)),
            partial,
        })
    }

    async fn get(&self, key: EventKey) -> Result<Option<StoredEvent>> {
        let seq = match key {
            EventKey::Id(id) => self.rows.seq_of(id).await?,
            // No stored `seq` exceeds `i64::MAX`.
            EventKey::Seq(seq) => i64::try_from(seq).ok(),
        };
        let Some(seq) = seq else { return Ok(None) };
        match self.rows.scan(seq, 1).await?.pop() {
            Some(Ok(row)) if signed(row.stored.seq) == seq => return Ok(Some(row.stored)),
            Some(Err(row)) if row.seq == seq => {
                let what = format!("seq {seq}: {}: run verify", row.problem);
                return Err(Error::new(ErrorKind::StoreCorrupt, what));
            }
            _ => {}
        }
        let base = self.rows.state().await?.base.next_seq;
        if seq < signed(base) {
            let what = format!("seq {seq} was archived: the log begins at {base}");
            return Err(Error::new(ErrorKind::Pruned, what));
        }
        Ok(None)
    }

    async fn tally(&self, query: &TallyQuery) -> Result<Tally> {
        let filter = query.filter()?;
        let scan = TallyScan {
            filter: &filter,
            interval: query.interval,
            by: &query.by,
            max_examined: self.max_tallied_rows,
            max_counts: Self::MAX_COUNTS,
        };
        let (counts, end) = self.rows.tally(&scan).await?;
        let counted_from = match end {
            ScanEnd::Budget((at, _)) => Some(at),
            ScanEnd::Full | ScanEnd::Exhausted => None,
        };
        Ok(Tally { counts, since: filter.since, until: filter.until, counted_from })
    }

    async fn state(&self) -> Result<LogState> {
        self.rows.state().await
    }

    async fn scan(&self, from_seq: i64, max_rows: usize) -> Result<Vec<ScannedRow>> {
        self.rows.scan(from_seq, max_rows.min(MAX_SCAN_ROWS)).await
    }

    async fn examine(&self, extent: Extent) -> Result<Vec<Anomaly>> {
        self.rows.examine(extent).await
    }

    async fn changed(&self, next_seq: u64) {
        loop {
            let moved = self.progress.moved.listen();
            if self.progress.next_seq.load(Ordering::Acquire) > next_seq {
                return;
            }
            match select(moved, self.rows.changed(next_seq)).await {
                Either::Left(_) => {}
                Either::Right(_) => return,
            }
        }
    }

    async fn cursor(&self, source: &str) -> Result<Option<String>> {
        self.rows.cursor(source).await
    }

    async fn cursors(&self) -> Result<Vec<(String, String)>> {
        self.rows.cursors().await
    }

    async fn restore(&self, part: LogPart) -> Result<()> {
        check_part(&part)?;
        // Read before the transaction, which may hold the only connection.
        let here = self.rows.state().await?;
        let known = part.rows.partition_point(|row| row.stored.seq < here.head.next_seq);
        let (known, new) = part.rows.split_at(known);
        if here.log_id == part.log_id
            && let Some(last) = known.last()
        {
            check_same(&*self.rows, last).await?;
        }
        let mut tx = self.rows.begin().await?;
        let head = tx.head().await?;
        if head != here.head {
            return Err(Error::new(
                ErrorKind::StoreBusy,
                "another writer appended to the log meanwhile: try again",
            ));
        }
        if head.next_seq == 0 {
            tx.set_identity(part.log_id, &part.cursor_key).await?;
        } else if here.log_id != part.log_id {
            return Err(conflict("the log has its own events: name an empty store"));
        }
        if let (Some(first), Some(last)) = (new.first(), new.last()) {
            if first.stored.seq != head.next_seq || first.stored.prev_hash != head.hash {
                return Err(conflict(
                    "the rows do not continue this log: restore from the next seq after its head",
                ));
            }
            let rows: Vec<_> = new.iter().map(NewRow::of_stored).collect();
            tx.insert(&rows).await?;
            tx.set_head(Head { next_seq: last.stored.seq + 1, hash: last.stored.hash }).await?;
        }
        for (source, cursor) in &part.cursors {
            tx.set_cursor(source, cursor).await?;
        }
        tx.keep_quarantined(&part.quarantine).await?;
        tx.commit().await?;
        if let Some(last) = new.last() {
            let head = Head { next_seq: last.stored.seq + 1, hash: last.stored.hash };
            self.progress.advance(head);
        }
        Ok(())
    }

    async fn check_writable(&self) -> Result<()> {
        let mut tx = self.rows.begin().await?;
        tx.touch().await?;
        tx.commit().await
    }

    async fn acquire_lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<Lease>> {
        if name.is_empty() || name.len() > 128 || holder.is_empty() || holder.len() > 128 {
            return Err(Error::new(
                ErrorKind::ConfigInvalid,
                "a lease's name and holder must have 1 to 128 bytes",
            ));
        }
        let mut tx = self.rows.begin().await?;
        let now = tx.now().await?;
        let token = match tx.lease(name).await? {
            // Also after it lapsed: nobody else has had it, so the work under the token was
            // exclusive all the time.
            Some(row) if row.holder == holder => row.token,
            Some(row) if row.holds_at(now, ttl) => return Ok(None),
            Some(row) => {
                if row.expires_at > now {
                    tracing::warn!(
                        lease = name,
                        ends = %row.expires_at,
                        %now,
                        "a lease ends later than its length allows, because it was acquired while the clock was ahead: it is ignored"
                    );
                }
                row.token + 1
            }
            None => 1,
        };
        let row = LeaseRow {
            holder: holder.to_owned(),
            token,
            expires_at: now.saturating_add(ttl),
            length: Some(ttl),
        };
        tx.set_lease(name, &row).await?;
        tx.commit().await?;
        Ok(Some(Lease {
            name: name.to_owned(),
            holder: row.holder,
            token,
            expires_at: row.expires_at,
        }))
    }

    async fn release_lease(&self, lease: &Lease) -> Result<()> {
        let mut tx = self.rows.begin().await?;
        match tx.lease(&lease.name).await? {
            Some(row) if row.token == lease.token && row.holder == lease.holder => {
                // A new token, so that a fence with the released one fails.
                let released =
                    LeaseRow { token: row.token + 1, expires_at: tx.now().await?, ..row };
                tx.set_lease(&lease.name, &released).await?;
                tx.commit().await
            }
            _ => Ok(()),
        }
    }

    async fn quarantined(&self, after: i64, max_items: usize) -> Result<Vec<QuarantinedItem>> {
        self.rows.quarantined(after, max_items.min(MAX_SCAN_ROWS)).await
    }

    async fn stage(&self, events: Vec<SealedEvent>) -> Result<()> {
        check_events(&events)?;
        let mut tx = self.rows.begin().await?;
        tx.stage(&events).await?;
        tx.commit().await
    }

    async fn relay(&self, max_events: usize) -> Result<Relayed> {
        if !self.rows.has_staged().await? {
            return Ok(Relayed::default());
        }
        let max_events = max_events.clamp(1, MAX_BATCH_EVENTS);
        let mut tx = self.rows.begin().await?;
        let staged = tx.staged(max_events).await?;
        let more = staged.len() == max_events;
        let numbers: Vec<i64> = staged.iter().map(|s| s.number).collect();
        let now = tx.now().await?;
        let mut events = Vec::with_capacity(staged.len());
        let mut refused = Vec::new();
        for staged in staged {
            match readable(staged, now) {
                Ok(event) => events.push(event),
                Err(item) => refused.push(*item),
            }
        }
        let job = Job { events, options: AppendOptions::default() };
        let mut write = GroupWrite::begin(&mut *tx, std::slice::from_ref(&job)).await?;
        let receipts = write.admit_events(&job.events);
        write.insert(&mut *tx).await?;
        let head = write.head;
        tx.quarantine(&refused).await?;
        tx.unstage(&numbers).await?;
        tx.commit().await?;
        self.progress.advance(head);
        for item in &refused {
            tracing::error!(key = item.key, reason = item.reason, "a staged event was quarantined");
        }
        let appended = Appended { receipts, new_quarantine: 0, released: 0 };
        report_conflicts(&job, &appended);
        Ok(Relayed {
            appended: appended.appended(),
            duplicates: appended.duplicates(),
            conflicts: appended.conflicts(),
            quarantined: refused.len(),
            more,
        })
    }
}

impl Progress {
    fn advance(&self, head: Head) {
        self.next_seq.fetch_max(head.next_seq, Ordering::AcqRel);
        self.moved.notify(usize::MAX);
    }
}

/// The weight of an append in its group: its events and items, large ones counted several times.
fn weigh(events: &[SealedEvent], options: &AppendOptions) -> usize {
    let texts = events.iter().map(|e| e.event().metadata.as_str().len());
    let raws = options.quarantine.iter().map(|item| item.raw.len());
    1 + texts.chain(raws).map(|bytes| 1 + bytes / 4_096).sum::<usize>()
}

/// Returns the staged event if it can be appended, otherwise an item for the quarantine.
fn readable(staged: StagedEvent, now: Timestamp) -> Result<SealedEvent, Box<QuarantineItem>> {
    let (reason, detail, mut raw) = match staged.event {
        Ok(event) => match event.validate() {
            Ok(()) => return Ok(event),
            // Without the salt.
            Err(invalid) => {
                let raw = serde_json::to_vec(event.event()).unwrap_or_default();
                ("event_invalid", invalid.to_string(), raw)
            }
        },
        Err(unreadable) => ("unreadable", unreadable.problem, unreadable.raw),
    };
    raw.truncate(MAX_QUARANTINE_RAW_BYTES);
    Err(Box::new(QuarantineItem {
        source: PLATFORM_SOURCE.into(),
        key: format!("outbox:{}", staged.number),
        reason: reason.into(),
        detail,
        raw,
        at: now,
    }))
}

/// Refuses a batch that is out of bounds, before it joins a group.
fn check_batch(events: &[SealedEvent], options: &AppendOptions) -> Result<()> {
    if events.len() > MAX_BATCH_EVENTS || options.quarantine.len() > MAX_BATCH_QUARANTINE {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "a batch takes at most {MAX_BATCH_EVENTS} events and {MAX_BATCH_QUARANTINE} quarantine items: send it in parts"
            ),
        ));
    }
    if options.release.len() > MAX_BATCH_RELEASE {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "an append releases at most {MAX_BATCH_RELEASE} quarantine items: send it in parts"
            ),
        ));
    }
    if let Some(advance) = &options.cursor {
        check_cursor(&advance.source, &advance.to)?;
    }
    options.quarantine.iter().try_for_each(check_item)?;
    check_events(events)
}

/// Bounds the source too, because engines index it and limit the length of their keys.
fn check_cursor(source: &str, cursor: &str) -> Result<()> {
    if source.len() > MAX_CURSOR_SOURCE_BYTES || cursor.len() > MAX_CURSOR_BYTES {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "a cursor can have at most {MAX_CURSOR_BYTES} bytes and its source {MAX_CURSOR_SOURCE_BYTES}"
            ),
        ));
    }
    Ok(())
}

fn check_item(item: &QuarantineItem) -> Result<()> {
    for (name, text, max) in [
        ("source", &item.source, 64),
        ("key", &item.key, 512),
        ("reason", &item.reason, 64),
        ("detail", &item.detail, 1_024),
    ] {
        if text.len() > max || text.contains('\0') {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a quarantine item's {name} can have at most {max} bytes, without U+0000"),
            ));
        }
    }
    if item.raw.len() > MAX_QUARANTINE_RAW_BYTES {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("a quarantine item's raw can have at most {MAX_QUARANTINE_RAW_BYTES} bytes"),
        ));
    }
    Ok(())
}

pub(super) fn check_events(events: &[SealedEvent]) -> Result<()> {
    for (index, event) in events.iter().enumerate() {
        event.validate().map_err(|invalid| {
            Error::new(ErrorKind::EventInvalid, format!("event {index}: {invalid}"))
        })?;
    }
    Ok(())
}

/// Refuses a part that is too large, or whose rows don't form a chain.
fn check_part(part: &LogPart) -> Result<()> {
    if part.rows.len() > MAX_BATCH_EVENTS || part.quarantine.len() > MAX_BATCH_QUARANTINE {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "a part can have at most {MAX_BATCH_EVENTS} rows and {MAX_BATCH_QUARANTINE} quarantine items: restore smaller parts"
            ),
        ));
    }
    part.quarantine.iter().try_for_each(|quarantined| check_item(&quarantined.item))?;
    part.cursors.iter().try_for_each(|(source, cursor)| check_cursor(source, cursor))?;
    for row in &part.rows {
        let leaf = leaf_hash(&row.stored.event, &row.evidence);
        if row.stored.hash != chain_hash(&row.stored.prev_hash, &leaf) {
            return Err(Error::new(
                ErrorKind::StoreCorrupt,
                format!("seq {}: the row does not match its hash: run verify", row.stored.seq),
            ));
        }
    }
    let follows = |pair: &[StoredRow]| {
        pair[1].stored.seq == pair[0].stored.seq + 1
            && pair[1].stored.prev_hash == pair[0].stored.hash
    };
    if part.rows.windows(2).all(follows) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::StoreCorrupt, "the rows don't form a chain: run verify"))
}

/// Refuses a row whose position has a different row in this log.
async fn check_same(rows: &dyn RowStore, row: &StoredRow) -> Result<()> {
    let seq = i64::try_from(row.stored.seq).unwrap_or(i64::MAX);
    match rows.scan(seq, 1).await?.pop() {
        Some(Ok(here))
            if here.stored.seq == row.stored.seq && here.stored.hash == row.stored.hash =>
        {
            Ok(())
        }
        _ => Err(conflict("the log has different events at these positions: name an empty store")),
    }
}

fn conflict(problem: &'static str) -> Error {
    Error::new(ErrorKind::StateConflict, problem)
}

/// Commits the jobs of a group in one transaction; each gets its own result.
async fn commit_group(
    rows: &dyn RowStore,
    progress: &Progress,
    jobs: &[Job],
) -> Vec<Result<Appended>> {
    match try_commit_group(rows, progress, jobs).await {
        Ok(answers) => answers,
        // Retry each job in its own transaction, so that one bad job cannot fail the rest.
        Err(error) if jobs.len() > 1 && !error.is_retryable() => {
            let mut answers = Vec::with_capacity(jobs.len());
            for job in jobs.chunks(1) {
                match try_commit_group(rows, progress, job).await {
                    Ok(answer) => answers.extend(answer),
                    Err(error) => answers.push(Err(error)),
                }
            }
            answers
        }
        Err(error) => jobs.iter().map(|_| Err(error.clone())).collect(),
    }
}

async fn try_commit_group(
    rows: &dyn RowStore,
    progress: &Progress,
    jobs: &[Job],
) -> Result<Vec<Result<Appended>>> {
    let mut tx = rows.begin().await?;
    let mut write = GroupWrite::begin(&mut *tx, jobs).await?;
    let mut cursors = CursorMoves::default();
    let mut kept_aside: Vec<(usize, &AppendOptions)> = Vec::new();
    let mut answers = Vec::with_capacity(jobs.len());
    for (index, job) in jobs.iter().enumerate() {
        // A refused job does not affect the others of its group.
        let admitted = match check_fence(&mut *tx, job).await? {
            Ok(()) => cursors.admit(&mut *tx, job).await?,
            refused => refused,
        };
        answers.push(match admitted {
            Ok(()) => {
                if !job.options.quarantine.is_empty() || !job.options.release.is_empty() {
                    kept_aside.push((index, &job.options));
                }
                let receipts = write.admit_events(&job.events);
                Ok(Appended { receipts, new_quarantine: 0, released: 0 })
            }
            Err(error) => Err(error),
        });
    }
    if write.rows.is_empty() && cursors.moved.is_empty() && kept_aside.is_empty() {
        report_group(jobs, &answers);
        return Ok(answers);
    }
    write.insert(&mut *tx).await?;
    for (source, cursor) in &cursors.moved {
        tx.set_cursor(source, cursor).await?;
    }
    for (index, options) in kept_aside {
        // Release before inserting, so that an item that reappears counts as new.
        let released = tx.release(&options.release).await?;
        let new = tx.quarantine(&options.quarantine).await?;
        if let Ok(appended) = &mut answers[index] {
            (appended.released, appended.new_quarantine) = (released, new);
        }
    }
    let head = write.head;
    tx.commit().await?;
    progress.advance(head);
    report_group(jobs, &answers);
    Ok(answers)
}

fn report_group(jobs: &[Job], answers: &[Result<Appended>]) {
    for (job, answer) in jobs.iter().zip(answers) {
        if let Ok(appended) = answer {
            report_conflicts(job, appended);
        }
    }
}

/// Logs one line per batch, after its commit.
fn report_conflicts(job: &Job, appended: &Appended) {
    let mut conflicts = job
        .events
        .iter()
        .zip(&appended.receipts)
        .filter(|(_, receipt)| receipt.status == ReceiptStatus::Conflict);
    if let Some((event, first)) = conflicts.next() {
        let fields: Vec<_> = first.differs.iter().map(|f| f.name()).collect();
        tracing::warn!(
            source = event.event().source,
            seq = first.seq,
            fields = fields.join(","),
            count = 1 + conflicts.count(),
            "events were received again with different content: the first ones stay"
        );
    }
}

async fn check_fence(tx: &mut dyn RowTx, job: &Job) -> Result<Result<()>> {
    let Some(fence) = &job.options.fence else { return Ok(Ok(())) };
    Ok(match tx.lease(&fence.lease).await? {
        Some(row) if row.token == fence.token => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Fenced,
            format!("the lease {} has another holder now: acquire it again", fence.lease),
        )),
    })
}

/// The cursor advances of a group, so that later jobs see those of earlier ones.
#[derive(Default)]
struct CursorMoves {
    moved: HashMap<String, String>,
}

impl CursorMoves {
    async fn admit(&mut self, tx: &mut dyn RowTx, job: &Job) -> Result<Result<()>> {
        let Some(advance) = &job.options.cursor else { return Ok(Ok(())) };
        let current = match self.moved.get(&advance.source) {
            Some(moved) => Some(moved.clone()),
            None => tx.cursor(&advance.source).await?,
        };
        // Already at `to`: a retry of an append whose answer was lost.
        if current.as_ref() == Some(&advance.to) {
            return Ok(Ok(()));
        }
        if current != advance.from {
            return Ok(Err(Error::new(
                ErrorKind::CursorMoved,
                format!(
                    "the cursor of {} was moved by another writer: read it again",
                    advance.source
                ),
            )));
        }
        self.moved.insert(advance.source.clone(), advance.to.clone());
        Ok(Ok(()))
    }
}

/// The rows that a transaction will write: deduplicated, numbered and chained.
struct GroupWrite<'a> {
    head: Head,
    by_id: HashMap<Uuid, Known<'a>>,
    by_external_id: HashMap<(&'a str, &'a str), Known<'a>>,
    rows: Vec<NewRow<'a>>,
}

/// An event in the log, or in the rows to be written.
#[derive(Clone)]
enum Known<'a> {
    Stored(Arc<ExistingRow>),
    New(u64, &'a SealedEvent),
}

impl<'a> GroupWrite<'a> {
    /// Locks the head and looks up existing rows.
    async fn begin(tx: &mut dyn RowTx, jobs: &'a [Job]) -> Result<GroupWrite<'a>> {
        let head = tx.head().await?;
        let events: Vec<&SealedEvent> = jobs.iter().flat_map(|job| &job.events).collect();
        let existing = if events.is_empty() { Vec::new() } else { tx.existing(&events).await? };
        let stored: Vec<Arc<ExistingRow>> = existing.into_iter().map(Arc::new).collect();
        let mut write = Self {
            head,
            by_id: HashMap::with_capacity(events.len()),
            by_external_id: HashMap::with_capacity(events.len()),
            rows: Vec::with_capacity(events.len()),
        };
        write.remember(&events, &stored);
        Ok(write)
    }

    /// Indexes the stored rows, with the keys borrowed from `events`, which outlive the rows.
    fn remember(&mut self, events: &[&'a SealedEvent], stored: &[Arc<ExistingRow>]) {
        let mut by_external_id = HashMap::new();
        for row in stored {
            self.by_id.insert(row.id, Known::Stored(Arc::clone(row)));
            if let Some(external_id) = &row.external_id {
                by_external_id.insert((row.source.as_str(), external_id.as_str()), row);
            }
        }
        for key in events.iter().filter_map(|event| external_key(event)) {
            if let Some(row) = by_external_id.get(&key) {
                self.by_external_id.insert(key, Known::Stored(Arc::clone(row)));
            }
        }
    }

    /// Appends each new event to the rows, and gives each duplicate the receipt of the first one.
    fn admit_events(&mut self, events: &'a [SealedEvent]) -> Vec<Receipt> {
        events.iter().map(|event| self.admit(event)).collect()
    }

    fn admit(&mut self, sealed: &'a SealedEvent) -> Receipt {
        let event = sealed.event();
        let seq = self.head.next_seq;
        let by_id = match self.by_id.entry(event.id) {
            Entry::Occupied(known) => return duplicate(known.get(), sealed),
            Entry::Vacant(free) => free,
        };
        if let Some(key) = external_key(sealed) {
            match self.by_external_id.entry(key) {
                Entry::Occupied(known) => return duplicate(known.get(), sealed),
                Entry::Vacant(free) => {
                    free.insert(Known::New(seq, sealed));
                }
            }
        }
        by_id.insert(Known::New(seq, sealed));
        let prev_hash = self.head.hash;
        let hash = chain_hash(&prev_hash, sealed.leaf_hash());
        let evidence = EvidenceRef::Salt(sealed.salt());
        self.rows.push(NewRow { seq, event, evidence, prev_hash, hash });
        self.head = Head { next_seq: seq + 1, hash };
        Receipt { status: ReceiptStatus::Appended, seq, id: event.id, differs: Vec::new() }
    }

    /// Writes the new rows and the head, if there are any rows.
    async fn insert(&mut self, tx: &mut dyn RowTx) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        tx.insert(&self.rows).await?;
        tx.set_head(self.head).await
    }
}

/// A `seq` as engines store it.
fn signed(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

fn external_key(sealed: &SealedEvent) -> Option<(&str, &str)> {
    let event = sealed.event();
    event.external_id.as_deref().map(|external_id| (event.source.as_str(), external_id))
}

fn duplicate(known: &Known<'_>, sealed: &SealedEvent) -> Receipt {
    let (seq, id, differs) = match known {
        Known::Stored(row) => (row.seq, row.id, row.differences(sealed.event())),
        Known::New(seq, first) => {
            let row = ExistingRow::of(*seq, first.event(), Vec::new());
            (*seq, row.id, row.differences(sealed.event()))
        }
    };
    let status =
        if differs.is_empty() { ReceiptStatus::Duplicate } else { ReceiptStatus::Conflict };
    Receipt { status, seq, id, differs }
}

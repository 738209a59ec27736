//! Copies of a whole store, from any engine to any other.
//!
//! A copy is begun by [`check_log`] and [`check_directory`], which refuse a target
//! with anything of its own before something is written. [`copy_log`] and
//! [`copy_directory`] then bring over what is missing, in parts of a bounded size.
//! Each can be stopped at any time and called again: what is there already says
//! where to go on. [`compare_logs`] and [`compare_directories`] say whether both
//! ends are the same; whether the log is what was recorded says
//! [`verify`](crate::verify::verify).
//!
//! Leases are not copied: they belong to those who run on the source.
//!
//! ```
//! use dezky_core::copy::{CopyOptions, check_log, compare_logs, copy_log, relay_all};
//! use dezky_core::store::{AuditStore, MemoryAuditStore};
//! # use dezky_core::rt::TokioRuntime;
//! # use dezky_core::{Actor, NewEvent};
//!
//! # async fn run() -> dezky_core::Result<()> {
//! # let runtime = std::sync::Arc::new(TokioRuntime);
//! let from = MemoryAuditStore::open(runtime.clone());
//! let to = MemoryAuditStore::open(runtime.clone());
//! from.stage(vec![NewEvent::new("tenant.created", Actor::system()).seal(&*runtime)]).await?;
//! relay_all(&from).await?;
//!
//! check_log(&from, &to).await?;
//! let copied = copy_log(&from, &to, CopyOptions::default(), |progress| {
//!     println!("{} of {} rows", progress.done, progress.total);
//! })
//! .await?;
//! assert_eq!((copied.rows, compare_logs(&from, &to).await?), (1, None));
//! # Ok(())
//! # }
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run()).unwrap();
//! ```

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use crate::directory::{
    DirectoryChange, DirectoryStore, MAX_CHANGES, PartnerKey, PartnerQuery, TenantKey, TenantQuery,
    UserCursor, UserKey, UserQuery,
};
use crate::store::{
    AppendOptions, AuditStore, Head, LogPart, LogState, MAX_BATCH_EVENTS, MAX_BATCH_RELEASE,
    QuarantinedItem, StoredRow,
};
use crate::{Error, ErrorKind, Result};

/// How many quarantined items are held at a time: each may have 64 KiB.
const ITEMS: usize = 100;
/// How many documents are held at a time.
const DOCUMENTS: usize = 200;
/// The least rows of a part, however large they are.
const MIN_ROWS: usize = 16;

/// How much is brought over at a time, and held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyOptions {
    /// The most rows of a part, 1 to 10,000; 2,000 unless set.
    pub max_rows: usize,
    /// About how many bytes a part has; 8 MiB unless set. Parts become smaller where
    /// rows are large.
    pub max_bytes: usize,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self { max_rows: 2_000, max_bytes: 8 << 20 }
    }
}

/// How far the copy of a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyProgress {
    /// How many rows the target has.
    pub done: u64,
    /// How many the source had when it was looked at.
    pub total: u64,
}

/// What was brought over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopiedLog {
    /// How many rows, by this call.
    pub rows: u64,
    /// The head that both ends have come to.
    pub head: Head,
}

/// How many documents there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DocumentCounts {
    /// Partners.
    pub partners: u64,
    /// Tenants.
    pub tenants: u64,
    /// Users.
    pub users: u64,
}

/// Moves all that waits in the outbox into the log, so that a copy has it. Returns
/// how many events.
///
/// # Errors
/// Those of [`AuditStore::relay`].
pub async fn relay_all(store: &dyn AuditStore) -> Result<u64> {
    let mut events = 0;
    loop {
        let relayed = store.relay(MAX_BATCH_EVENTS / 10).await?;
        events += relayed.appended as u64;
        if !relayed.more {
            return Ok(events);
        }
    }
}

/// Whether the target's log is empty or a beginning of the source's; where it stands.
///
/// # Errors
/// `state_conflict` says what it is instead. Nothing was changed.
pub async fn check_log(from: &dyn AuditStore, to: &dyn AuditStore) -> Result<CopyProgress> {
    let (source, target) = (from.state().await?, to.state().await?);
    let progress = CopyProgress { done: target.head.next_seq, total: source.head.next_seq };
    if source.base != Head::EMPTY {
        return Err(conflict("the source has not its whole log: copy one that has the beginning"));
    }
    if source.log_id != target.log_id {
        let is_empty = target.head.next_seq == 0
            && to.cursors().await?.is_empty()
            && to.quarantined(0, 1).await?.is_empty();
        return if is_empty {
            Ok(progress)
        } else {
            Err(conflict("the target holds another log: name an empty store as the target"))
        };
    }
    if progress.done > progress.total {
        return Err(conflict(format!(
            "the target holds {} events and the source only {}: it went on by itself, or source and target are interchanged",
            progress.done, progress.total
        )));
    }
    let Some(last) = progress.done.checked_sub(1) else { return Ok(progress) };
    let row = rows(from, last, 1).await?.pop();
    if row.is_some_and(|row| row.stored.seq == last && row.stored.hash == target.head.hash) {
        return Ok(progress);
    }
    Err(conflict(format!(
        "the target holds another event at seq {last} than the source: name an empty store as the target"
    )))
}

/// Brings over what the target's log lacks of the source's: rows with their hashes,
/// salts and erasures, cursors, quarantined items.
///
/// Goes on where the target's head is. A cursor comes after the rows that were
/// committed with it. Cancel-safe: what was brought over stays, and a call later
/// goes on. What the source takes meanwhile is left for a further call.
///
/// # Errors
/// Those of [`check_log`]; `store_corrupt` if a row is not what its hash says, or
/// can't be read; `store_unavailable` and `store_busy`, after which a call later
/// goes on.
pub async fn copy_log(
    from: &dyn AuditStore,
    to: &dyn AuditStore,
    options: CopyOptions,
    mut progress: impl FnMut(CopyProgress),
) -> Result<CopiedLog> {
    // Before the rows: a cursor may be behind them, but never ahead.
    let cursors = from.cursors().await?;
    let CopyProgress { done: began, .. } = check_log(from, to).await?;
    let source = from.state().await?;
    let (mut done, total) = (began, source.head.next_seq);
    progress(CopyProgress { done, total });
    let mut size = PartSize::new(options);
    while done < total {
        let left = usize::try_from(total - done).unwrap_or(usize::MAX);
        let rows = rows(from, done, size.rows.min(left)).await?;
        let Some(last) = rows.last() else {
            return Err(corrupt(format!("seq {done}: the source has no such row")));
        };
        let next = last.stored.seq + 1;
        size.learn(&rows);
        to.restore(LogPart { rows, ..part_of(&source) }).await?;
        done = next;
        progress(CopyProgress { done, total });
    }
    copy_quarantine(from, to, &source).await?;
    if to.cursors().await? != cursors {
        to.restore(LogPart { cursors, ..part_of(&source) }).await?;
    } else if to.state().await?.log_id != source.log_id {
        // A log without anything: the identity is all there is to copy.
        to.restore(part_of(&source)).await?;
    }
    Ok(CopiedLog { rows: done - began, head: to.state().await?.head })
}

/// What the first difference between two logs is, as one line without values; `None`
/// if both have the same identity, head, cursors and quarantined items.
///
/// Rows are compared by the head's hash, which says nothing of rows that were
/// changed since: [verify](crate::verify::verify) both.
pub async fn compare_logs(from: &dyn AuditStore, to: &dyn AuditStore) -> Result<Option<String>> {
    let (source, target) = (from.state().await?, to.state().await?);
    if (source.log_id, source.cursor_key) != (target.log_id, target.cursor_key) {
        return Ok(Some("the logs have different identities".into()));
    }
    if source.head != target.head {
        return Ok(Some(format!(
            "the source has {} events and the target {}, or their heads differ",
            source.head.next_seq, target.head.next_seq
        )));
    }
    if from.cursors().await? != to.cursors().await? {
        return Ok(Some("the cursors of ingest differ".into()));
    }
    let (source, target) = (quarantine(from).await?, quarantine(to).await?);
    let differ = source.len() != target.len()
        || source.iter().any(|(key, kept)| target.get(key).is_none_or(|k| !k.is_same(kept)));
    Ok(differ.then(|| "the items in quarantine differ".into()))
}

/// Whether all documents of the target's directory are in the source's too, in the
/// same form or a later one.
///
/// # Errors
/// `state_conflict` names one that is not. Nothing was changed.
pub async fn check_directory(from: &dyn DirectoryStore, to: &dyn DirectoryStore) -> Result<()> {
    let mut documents = Documents::new(to);
    while let Some(page) = documents.next().await? {
        for document in page {
            let source = find(from, &document).await?;
            let is_earlier = source
                .is_some_and(|source| source.version() > document.version() || source == document);
            if !is_earlier {
                return Err(conflict(format!(
                    "the target's directory holds a {} of its own: name an empty store as the target",
                    named(&document)
                )));
            }
        }
    }
    Ok(())
}

/// Brings over the documents that the target's directory lacks, or has in an earlier
/// form. `progress` is called with how many were looked at.
///
/// Cancel-safe: what was brought over stays.
///
/// # Errors
/// Those of [`check_directory`], and of [`DirectoryStore::restore`].
pub async fn copy_directory(
    from: &dyn DirectoryStore,
    to: &dyn DirectoryStore,
    mut progress: impl FnMut(u64),
) -> Result<DocumentCounts> {
    check_directory(from, to).await?;
    let (mut counts, mut looked_at) = (DocumentCounts::default(), 0);
    // What one document gave up and another took since an earlier copy is free only
    // when both come together.
    let mut waiting = Vec::new();
    let mut documents = Documents::new(from);
    while let Some(page) = documents.next().await? {
        let of_kind = match page.first() {
            Some(DirectoryChange::Partner(_)) => &mut counts.partners,
            Some(DirectoryChange::Tenant(_)) => &mut counts.tenants,
            _ => &mut counts.users,
        };
        *of_kind += page.len() as u64;
        looked_at += page.len() as u64;
        waiting.extend(restore_free(to, page).await?);
        progress(looked_at);
    }
    while !waiting.is_empty() {
        let rest = waiting.split_off(waiting.len().min(MAX_CHANGES));
        to.restore(std::mem::replace(&mut waiting, rest)).await?;
    }
    Ok(counts)
}

/// What the first difference between two directories is, as one line; `None` if they
/// hold the same documents.
pub async fn compare_directories(
    from: &dyn DirectoryStore,
    to: &dyn DirectoryStore,
) -> Result<Option<String>> {
    let (mut source, mut target) = (Documents::new(from), Documents::new(to));
    loop {
        let (left, right) = (source.next().await?, target.next().await?);
        if left == right {
            if left.is_none() {
                return Ok(None);
            }
            continue;
        }
        let (left, right) = (left.unwrap_or_default(), right.unwrap_or_default());
        let same = left.iter().zip(&right).take_while(|(a, b)| a == b).count();
        return Ok(left
            .get(same)
            .or(right.get(same))
            .map(|document| format!("the directories differ, first at the {}", named(document))));
    }
}

fn part_of(source: &LogState) -> LogPart {
    LogPart {
        log_id: source.log_id,
        cursor_key: source.cursor_key,
        rows: Vec::new(),
        cursors: Vec::new(),
        quarantine: Vec::new(),
    }
}

/// How many rows are asked for, by how large the last ones were.
struct PartSize {
    rows: usize,
    most: usize,
    bytes: usize,
}

impl PartSize {
    fn new(options: CopyOptions) -> Self {
        let most = options.max_rows.clamp(1, MAX_BATCH_EVENTS);
        Self { rows: most.min(MIN_ROWS * 16), most, bytes: options.max_bytes }
    }

    fn learn(&mut self, rows: &[StoredRow]) {
        let bytes: usize = rows.iter().map(weight).sum();
        let fitting = self.bytes / (bytes / rows.len().max(1)).max(1);
        // Rows may grow at once, so parts grow by and by.
        self.rows = fitting.clamp(MIN_ROWS, self.rows * 2).min(self.most);
    }
}

/// About how many bytes a row takes.
fn weight(row: &StoredRow) -> usize {
    row.stored.event.metadata.as_str().len() + row.folds.search.len() + 512
}

/// Readable rows, by `seq`.
async fn rows(store: &dyn AuditStore, from_seq: u64, max_rows: usize) -> Result<Vec<StoredRow>> {
    let from_seq = i64::try_from(from_seq).unwrap_or(i64::MAX);
    let rows = store.scan(from_seq, max_rows).await?;
    let readable = rows.into_iter().collect::<std::result::Result<Vec<_>, _>>();
    readable.map_err(|row| {
        corrupt(format!("seq {}: the row can't be read: {}: run verify", row.seq, row.problem))
    })
}

/// What is compared of a quarantined item.
struct Kept {
    number: i64,
    seen: u64,
    content: [u8; 32],
}

impl Kept {
    fn of(kept: &QuarantinedItem) -> Self {
        let mut content = Sha256::new();
        let item = &kept.item;
        for part in [item.reason.as_bytes(), item.detail.as_bytes(), &item.raw] {
            content.update((part.len() as u64).to_be_bytes());
            content.update(part);
        }
        content.update(item.at.as_millis().to_be_bytes());
        Self { number: kept.number, seen: kept.seen, content: content.finalize().into() }
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.seen, self.content) == (other.seen, other.content)
    }
}

/// All items by their identity, without their bytes.
async fn quarantine(store: &dyn AuditStore) -> Result<HashMap<String, Kept>> {
    let mut all = HashMap::new();
    let mut after = 0;
    loop {
        let page = store.quarantined(after, ITEMS).await?;
        let Some(last) = page.last() else { return Ok(all) };
        after = last.number;
        all.extend(page.iter().map(|kept| (kept.item.digest(), Kept::of(kept))));
    }
}

async fn copy_quarantine(
    from: &dyn AuditStore,
    to: &dyn AuditStore,
    source: &LogState,
) -> Result<()> {
    let (wanted, here) = (quarantine(from).await?, quarantine(to).await?);
    // Decided since an earlier copy, and perhaps come again as something else.
    let is_old = |(digest, kept): &(&String, &Kept)| {
        wanted.get(*digest).is_none_or(|w| w.content != kept.content || w.seen < kept.seen)
    };
    let old: Vec<_> = here.iter().filter(is_old).map(|(_, kept)| kept.number).collect();
    for release in old.chunks(MAX_BATCH_RELEASE) {
        let options = AppendOptions { release: release.to_vec(), ..AppendOptions::default() };
        to.append(Vec::new(), options).await?;
    }
    let is_missing = |item: &QuarantinedItem| {
        here.get(&item.item.digest()).is_none_or(|kept| !kept.is_same(&Kept::of(item)))
    };
    let mut after = 0;
    loop {
        let mut page = from.quarantined(after, ITEMS).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.number;
        page.retain(is_missing);
        if !page.is_empty() {
            to.restore(LogPart { quarantine: page, ..part_of(source) }).await?;
        }
    }
}

/// All documents of a directory, page by page.
struct Documents<'s> {
    store: &'s dyn DirectoryStore,
    place: Option<DocumentPlace>,
}

/// After which document the next page begins.
enum DocumentPlace {
    Partners(Option<String>),
    Tenants(Option<String>),
    Users(Option<UserCursor>),
}

impl<'s> Documents<'s> {
    fn new(store: &'s dyn DirectoryStore) -> Self {
        Self { store, place: Some(DocumentPlace::Partners(None)) }
    }

    /// The next documents, of one kind; `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<DirectoryChange>>> {
        while let Some(place) = self.place.take() {
            let (page, next): (Vec<DirectoryChange>, _) = match place {
                DocumentPlace::Partners(after) => {
                    let query = PartnerQuery { after, limit: DOCUMENTS, ..PartnerQuery::default() };
                    let page = self.store.partners(&query).await?;
                    let next = match page.last() {
                        Some(last) => DocumentPlace::Partners(Some(last.slug.clone())),
                        None => DocumentPlace::Tenants(None),
                    };
                    (page.into_iter().map(Into::into).collect(), Some(next))
                }
                DocumentPlace::Tenants(after) => {
                    let query = TenantQuery { after, limit: DOCUMENTS, ..TenantQuery::default() };
                    let page = self.store.tenants(&query).await?;
                    let next = match page.last() {
                        Some(last) => DocumentPlace::Tenants(Some(last.slug.clone())),
                        None => DocumentPlace::Users(None),
                    };
                    (page.into_iter().map(Into::into).collect(), Some(next))
                }
                DocumentPlace::Users(after) => {
                    let query = UserQuery { after, limit: DOCUMENTS, ..UserQuery::default() };
                    let page = self.store.users(&query).await?;
                    let next = page.last().map(|l| DocumentPlace::Users(Some(UserCursor::of(l))));
                    (page.into_iter().map(Into::into).collect(), next)
                }
            };
            self.place = next;
            if !page.is_empty() {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }
}

/// Brings documents over, and returns those of which another has what is theirs.
async fn restore_free(
    to: &dyn DirectoryStore,
    documents: Vec<DirectoryChange>,
) -> Result<Vec<DirectoryChange>> {
    match to.restore(documents.clone()).await {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        done => return done.map(|()| Vec::new()),
    }
    let mut taken = Vec::new();
    for document in documents {
        match to.restore(vec![document.clone()]).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => taken.push(document),
            done => done?,
        }
    }
    Ok(taken)
}

/// The document with the same id.
async fn find(
    store: &dyn DirectoryStore,
    document: &DirectoryChange,
) -> Result<Option<DirectoryChange>> {
    Ok(match document {
        DirectoryChange::Partner(p) => store.partner(PartnerKey::Id(&p.id)).await?.map(Into::into),
        DirectoryChange::Tenant(t) => store.tenant(TenantKey::Id(&t.id)).await?.map(Into::into),
        DirectoryChange::User(u) => store.user(UserKey::Id(&u.id)).await?.map(Into::into),
    })
}

fn named(document: &DirectoryChange) -> String {
    let (what, id) = document.identity();
    format!("{what} {id}")
}

fn conflict(problem: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::StateConflict, problem)
}

fn corrupt(problem: String) -> Error {
    Error::new(ErrorKind::StoreCorrupt, problem)
}

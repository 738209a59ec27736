//! Copies of whole stores, from any engine to any other.
//!
//! Start a copy with [`check_log`] and [`check_directory`], which reject a target with contents of
//! its own before anything is written. [`copy_log`] and [`copy_directory`] then copy what is
//! missing, in parts of bounded size. Each can be stopped at any time and called again: it
//! continues from what the target already has. [`compare_logs`] and [`compare_directories`] report
//! whether both ends are the same; [`verify`](crate::verify::verify) checks that the log is intact.
//!
//! Leases are not copied: they belong to processes that use the source.
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

/// The number of quarantined items held in memory; each may have 64 KiB.
const ITEMS: usize = 100;
/// The number of documents held in memory.
const DOCUMENTS: usize = 200;
/// The minimum number of rows per part, however large they are.
const MIN_ROWS: usize = 16;

/// The size of the parts in which a log is copied and held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyOptions {
    /// Maximum number of rows per part, 1 to 10,000; 2,000 by default.
    pub max_rows: usize,
    /// Approximate number of bytes per part; 8 MiB by default. Parts have fewer rows where rows are
    /// large.
    pub max_bytes: usize,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self { max_rows: 2_000, max_bytes: 8 << 20 }
    }
}

/// The progress of a log's copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyProgress {
    /// The number of rows in the target.
    pub done: u64,
    /// The number of rows in the source when the copy started.
    pub total: u64,
}

/// The result of copying a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopiedLog {
    /// The number of rows copied by this call.
    pub rows: u64,
    /// The head of the target after the copy.
    pub head: Head,
}

/// Numbers of documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DocumentCounts {
    /// Partners.
    pub partners: u64,
    /// Tenants.
    pub tenants: u64,
    /// Users.
    pub users: u64,
}

/// Moves all events from the outbox into the log, so that a copy includes them. Returns their
/// number.
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

/// Checks that the target's log is empty or a prefix of the source's, and returns its position.
///
/// # Errors
/// `state_conflict` describes the target's log otherwise. Nothing was changed.
pub async fn check_log(from: &dyn AuditStore, to: &dyn AuditStore) -> Result<CopyProgress> {
    let (source, target) = (from.state().await?, to.state().await?);
    let progress = CopyProgress { done: target.head.next_seq, total: source.head.next_seq };
    if source.base != Head::EMPTY {
        return Err(conflict(
            "the source log has been pruned: copy from a log that still has its first event",
        ));
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
            "the target holds {} events and the source only {}: the target has accepted its own events, or source and target are interchanged",
            progress.done, progress.total
        )));
    }
    let Some(last) = progress.done.checked_sub(1) else { return Ok(progress) };
    let row = rows(from, last, 1).await?.pop();
    if row.is_some_and(|row| row.stored.seq == last && row.stored.hash == target.head.hash) {
        return Ok(progress);
    }
    Err(conflict(format!(
        "the target and the source have different events at seq {last}: name an empty store as the target"
    )))
}

/// Copies what the target's log lacks: rows with their hashes, salts and erasures, cursors, and
/// quarantined items.
///
/// Continues from the target's head. A cursor is copied after the rows that were committed with it.
/// Cancel-safe: copied parts persist, and a later call continues. Events that the source accepts in
/// the meantime are left to a further call.
///
/// # Errors
/// Those of [`check_log`]; `store_corrupt` if a row does not match its hash or can't be read;
/// `store_unavailable` and `store_busy`, after which a later call continues.
pub async fn copy_log(
    from: &dyn AuditStore,
    to: &dyn AuditStore,
    options: CopyOptions,
    mut progress: impl FnMut(CopyProgress),
) -> Result<CopiedLog> {
    // Read before the rows: a cursor may lag behind them, but must never be ahead.
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
            return Err(corrupt(format!("seq {done}: the source lacks this row")));
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
        // An empty log has nothing but its identity to copy.
        to.restore(part_of(&source)).await?;
    }
    Ok(CopiedLog { rows: done - began, head: to.state().await?.head })
}

/// Returns the first difference between two logs as one line without values; `None` if they have
/// the same identity, head, cursors and quarantined items.
///
/// Rows are compared by the head's hash, which does not cover rows altered later:
/// [verify](crate::verify::verify) both logs.
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
        return Ok(Some("the ingest cursors differ".into()));
    }
    let (source, target) = (quarantine(from).await?, quarantine(to).await?);
    let differ = source.len() != target.len()
        || source.iter().any(|(key, item)| target.get(key).is_none_or(|t| !t.is_same(item)));
    Ok(differ.then(|| "the quarantined items differ".into()))
}

/// Checks that every document of the target's directory is in the source's, in the same or a later
/// version.
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
                    "the target's directory has its own {}: name an empty store as the target",
                    named(&document)
                )));
            }
        }
    }
    Ok(())
}

/// Copies the documents that the target's directory lacks or has in an earlier version. `progress`
/// is called with the number of documents processed.
///
/// Cancel-safe: copied documents persist.
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
    // A value that one document gave up to another since an earlier copy is free only if both are
    // written together.
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

/// Returns the first difference between two directories as one line; `None` if they hold the same
/// documents.
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

/// The number of rows to request, adapted to the size of recent rows.
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
        // Rows may suddenly become larger, so parts grow gradually.
        self.rows = fitting.clamp(MIN_ROWS, self.rows * 2).min(self.most);
    }
}

/// The approximate size of a row in bytes.
fn weight(row: &StoredRow) -> usize {
    row.stored.event.metadata.as_str().len() + row.search_columns.search.len() + 512
}

/// Returns rows from `from_seq` on; an unreadable row is an error.
async fn rows(store: &dyn AuditStore, from_seq: u64, max_rows: usize) -> Result<Vec<StoredRow>> {
    let from_seq = i64::try_from(from_seq).unwrap_or(i64::MAX);
    let rows = store.scan(from_seq, max_rows).await?;
    let readable = rows.into_iter().collect::<std::result::Result<Vec<_>, _>>();
    readable.map_err(|row| {
        corrupt(format!("seq {}: can't read the row: {}: run verify", row.seq, row.problem))
    })
}

/// The compared properties of a quarantined item.
struct ItemState {
    number: i64,
    seen: u64,
    content: [u8; 32],
}

impl ItemState {
    fn of(quarantined: &QuarantinedItem) -> Self {
        let mut content = Sha256::new();
        let item = &quarantined.item;
        for part in [item.reason.as_bytes(), item.detail.as_bytes(), &item.raw] {
            content.update((part.len() as u64).to_be_bytes());
            content.update(part);
        }
        content.update(item.at.as_millis().to_be_bytes());
        let (number, seen) = (quarantined.number, quarantined.seen);
        Self { number, seen, content: content.finalize().into() }
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.seen, self.content) == (other.seen, other.content)
    }
}

/// All items by their identity, without their bytes.
async fn quarantine(store: &dyn AuditStore) -> Result<HashMap<String, ItemState>> {
    let mut all = HashMap::new();
    let mut after = 0;
    loop {
        let page = store.quarantined(after, ITEMS).await?;
        let Some(last) = page.last() else { return Ok(all) };
        after = last.number;
        all.extend(page.iter().map(|item| (item.item.digest(), ItemState::of(item))));
    }
}

async fn copy_quarantine(
    from: &dyn AuditStore,
    to: &dyn AuditStore,
    source: &LogState,
) -> Result<()> {
    let (wanted, here) = (quarantine(from).await?, quarantine(to).await?);
    // Released since an earlier copy, and possibly received again with other content.
    let is_old = |(digest, item): &(&String, &ItemState)| {
        wanted.get(*digest).is_none_or(|w| w.content != item.content || w.seen < item.seen)
    };
    let old: Vec<_> = here.iter().filter(is_old).map(|(_, item)| item.number).collect();
    for release in old.chunks(MAX_BATCH_RELEASE) {
        let options = AppendOptions { release: release.to_vec(), ..AppendOptions::default() };
        to.append(Vec::new(), options).await?;
    }
    let is_missing = |item: &QuarantinedItem| {
        here.get(&item.item.digest()).is_none_or(|known| !known.is_same(&ItemState::of(item)))
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

/// Iterates over all documents of a directory, page by page.
struct Documents<'s> {
    store: &'s dyn DirectoryStore,
    place: Option<DocumentPlace>,
}

/// The last document of the previous page.
enum DocumentPlace {
    Partners(Option<String>),
    Tenants(Option<String>),
    Users(Option<UserCursor>),
}

impl<'s> Documents<'s> {
    fn new(store: &'s dyn DirectoryStore) -> Self {
        Self { store, place: Some(DocumentPlace::Partners(None)) }
    }

    /// Returns the next documents, all of one kind; `None` at the end.
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

/// Writes documents, and returns those with a value that another document still has.
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

/// Finds the document with the same id.
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

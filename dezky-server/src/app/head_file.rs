//! The head file: the log's head, written outside of the database.
//!
//! A database that is restored from a backup forgets everything after it: cursors and
//! deduplication go back and acknowledged events are gone, and nothing in the database says so.
//! The head file remembers. At the start a log that is shorter, or that differs at the noted
//! place, is refused until an operator acknowledges it.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AppendOptions, AuditStore, Head, LogState};
use dezky_core::{Actor, NewEvent, NewMetadata, Runtime};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::config::{NOT_A_HEAD_FILE, folder_of, reason};
use crate::failure::Failure;

/// The version of the file.
const VERSION: u32 = 1;
/// The maximum size of the file, in bytes.
const MAX_BYTES: u64 = 4_096;

/// A log and its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogPosition {
    /// The log's id.
    pub(crate) log_id: Uuid,
    /// Its head.
    pub(crate) head: Head,
}

impl LogPosition {
    fn of(state: &LogState) -> Self {
        Self { log_id: state.log_id, head: state.head }
    }

    pub(crate) fn to_json(self) -> serde_json::Value {
        json!({
            "logId": self.log_id,
            "nextSeq": self.head.next_seq,
            "headHash": hex::encode(self.head.hash),
        })
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { log_id, head } = self;
        match head.next_seq.checked_sub(1) {
            Some(last) => write!(f, "head {last}:{} of log {log_id}", hex::encode(head.hash)),
            None => write!(f, "the empty log {log_id}"),
        }
    }
}

/// The content of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Note {
    version: u32,
    log_id: Uuid,
    next_seq: u64,
    head_hash: String,
}

/// The log compared with the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// The file does not exist yet.
    First,
    /// The log continues from the noted head.
    Continued,
    /// The log is shorter, or differs at the noted place.
    WentBack {
        /// The position in the file.
        noted: LogPosition,
        /// The position of the log.
        found: LogPosition,
    },
}

/// The file with the head.
#[derive(Debug, Clone)]
pub(crate) struct HeadFile {
    path: PathBuf,
}

impl HeadFile {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The noted position; `None` without a file.
    ///
    /// # Errors
    /// If the file can't be read or has another content.
    pub(crate) async fn read(&self) -> Result<Option<LogPosition>, Failure> {
        let path = self.path.clone();
        unblock(move || read(&path)).await.map_err(|problem| {
            Failure::usage(format!("head.path {}: {problem}", self.path.display()))
        })
    }

    /// The noted position of a log with events; `None` without a file.
    pub(crate) async fn noted(&self) -> Result<Option<LogPosition>, Failure> {
        Ok(self.read().await?.filter(|noted| noted.head.next_seq > 0))
    }

    /// Compares the log with the file. Writes nothing.
    pub(crate) async fn compare(&self, log: &dyn AuditStore) -> Result<Comparison, Failure> {
        let Some(noted) = self.read().await? else { return Ok(Comparison::First) };
        let found = continues(log, noted).await;
        let found = found.map_err(|error| Failure::failed(format!("store: {error}")))?;
        Ok(found.map_or(Comparison::Continued, |found| Comparison::WentBack { noted, found }))
    }

    /// Refuses a log that does not continue from the noted head.
    pub(crate) async fn check(&self, log: &dyn AuditStore) -> Result<(), Failure> {
        match self.compare(log).await? {
            Comparison::First | Comparison::Continued => Ok(()),
            Comparison::WentBack { noted, found } => Err(Failure::usage(format!(
                "store: expected {noted} or a later one, found {found}: was a backup restored? If so, accept it with: dezky-server doctor --acknowledge-head (noted in {})",
                self.path.display()
            ))),
        }
    }

    /// Refuses to create a new log if the file notes one: its database is gone, or is about to be
    /// restored, which needs an empty one.
    pub(crate) async fn check_missing(
        &self,
        is_missing: impl AsyncFnOnce() -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let Some(noted) = self.noted().await? else { return Ok(()) };
        if !is_missing().await? {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "store: expected {noted}, found no log: restore it, or begin a new one by removing {}; \
             for another store, set head.path (DEZKY_HEAD_PATH) to another file",
            self.path.display()
        )))
    }

    /// Writes a position durably.
    pub(crate) async fn write(&self, place: LogPosition) -> Result<(), UpdateError> {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let path = self.path.clone();
        unblock(move || write(&path, place)).await.map_err(|error| {
            let (path, why) = (self.path.display(), reason(&error));
            if matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
                return UpdateError::NoRoom(Failure::failed(format!(
                    "head.path {path}: can't be written ({why}): make room"
                )));
            }
            UpdateError::File(Failure::usage(format!(
                "head.path {path}: can't be written ({why}): let this user write there, or set DEZKY_HEAD_PATH"
            )))
        })
    }

    /// Accepts a log that went back: records that on the timeline and writes the new head.
    /// Returns the noted and the found position.
    pub(crate) async fn acknowledge(
        &self,
        log: &dyn AuditStore,
        actor: Actor,
    ) -> Result<Option<(LogPosition, LogPosition)>, Failure> {
        let Comparison::WentBack { noted, found } = self.compare(log).await? else {
            return Ok(None);
        };
        let mut event = NewEvent::new("log.head_acknowledged", actor);
        event.resource_type = Some("log".into());
        event.resource_id = Some(found.log_id.to_string());
        event.metadata = NewMetadata::from_value(
            json!({ "expected": noted.to_json(), "found": found.to_json() }),
        );
        let untold = |error| Failure::failed(format!("store: {error}"));
        let event = event.seal(&TokioRuntime);
        log.append(vec![event], AppendOptions::default()).await.map_err(untold)?;
        let now = LogPosition::of(&log.state().await.map_err(untold)?);
        self.write(now).await.map_err(|error| Failure::usage(error.to_string()))?;
        Ok(Some((noted, found)))
    }

    /// Writes the log's current head, unless the log went back.
    pub(crate) async fn update(&self, log: &dyn AuditStore) -> Result<(), UpdateError> {
        // The file is read first: whichever server wrote it, the log is at least as long afterwards.
        let noted = self.read().await.map_err(UpdateError::File)?;
        if let Some(noted) = noted
            && let Some(found) = continues(log, noted).await.map_err(UpdateError::Store)?
        {
            return Err(UpdateError::WentBack { noted, found });
        }
        let now = LogPosition::of(&log.state().await.map_err(UpdateError::Store)?);
        if noted == Some(now) {
            return Ok(());
        }
        self.write(now).await
    }
}

/// The reason why a head was not written.
#[derive(Debug)]
pub(crate) enum UpdateError {
    /// The store does not answer.
    Store(dezky_core::Error),
    /// The file can't be read or written.
    File(Failure),
    /// The disk has no room for it.
    NoRoom(Failure),
    /// The database was restored under a running server.
    WentBack {
        /// The position in the file.
        noted: LogPosition,
        /// The position of the log.
        found: LogPosition,
    },
}

impl fmt::Display for UpdateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => write!(f, "store: {error}"),
            Self::File(failure) | Self::NoRoom(failure) => write!(f, "{failure}"),
            Self::WentBack { noted, found } => {
                write!(f, "the log went back from {noted} to {found}: was a backup restored?")
            }
        }
    }
}

/// `None` if the log continues from `noted`, otherwise its position.
async fn continues(
    log: &dyn AuditStore,
    noted: LogPosition,
) -> dezky_core::Result<Option<LogPosition>> {
    let state = log.state().await?;
    let is_same = state.log_id == noted.log_id
        && state.head.next_seq >= noted.head.next_seq
        && hash_at(log, &state, noted.head.next_seq)
            .await?
            .is_none_or(|hash| hash == noted.head.hash);
    Ok((!is_same).then(|| LogPosition::of(&state)))
}

/// The head's hash when the log had `next_seq` events; `None` if that is before its base.
async fn hash_at(
    log: &dyn AuditStore,
    state: &LogState,
    next_seq: u64,
) -> dezky_core::Result<Option<[u8; 32]>> {
    for known in [state.head, state.base] {
        if known.next_seq == next_seq {
            return Ok(Some(known.hash));
        }
    }
    if next_seq < state.base.next_seq {
        return Ok(None);
    }
    let last = i64::try_from(next_seq - 1).unwrap_or(i64::MAX);
    let row = log.scan(last, 1).await?.pop();
    // An unreadable row never matches; `verify` reports what is wrong with it.
    Ok(row.map(|row| row.map_or([0; 32], |row| row.stored.hash)))
}

async fn unblock<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    dezky_core::rt::unblock(&TokioRuntime, work).await
}

fn read(path: &Path) -> Result<Option<LogPosition>, String> {
    let mut text = String::new();
    // Opening a pipe may block, so only regular files are opened.
    let read = std::fs::metadata(path).and_then(|metadata| {
        if !metadata.is_file() {
            return Ok(false);
        }
        std::fs::File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
        Ok(true)
    });
    match read {
        Ok(true) => {}
        Ok(false) => return Err(NOT_A_HEAD_FILE.into()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(format!("can't be read ({}): let this user read it", reason(&error)));
        }
    }
    place(&text).map(Some).ok_or_else(|| {
        "is not a head file: restore it, or remove it once `verify --expect-head` with a head kept elsewhere confirms that the log is intact".to_owned()
    })
}

fn place(text: &str) -> Option<LogPosition> {
    let note: Note = serde_json::from_str(text).ok()?;
    let hash = hex::decode(note.head_hash).ok()?.try_into().ok()?;
    let head = Head { next_seq: note.next_seq, hash };
    (note.version == VERSION).then_some(LogPosition { log_id: note.log_id, head })
}

/// Replaces the file atomically: writes a new file and renames it.
fn write(path: &Path, place: LogPosition) -> std::io::Result<()> {
    let note = Note {
        version: VERSION,
        log_id: place.log_id,
        next_seq: place.head.next_seq,
        head_hash: hex::encode(place.head.hash),
    };
    let mut random = [0; 8];
    TokioRuntime.fill_random(&mut random);
    let mut name = path.as_os_str().to_owned();
    // Unique for each write, because servers may share the file.
    name.push(format!(".{}", hex::encode(random)));
    let temporary = PathBuf::from(name);
    let written = write_new(&temporary, &note).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
        return written;
    }
    std::fs::File::open(folder_of(path)).and_then(|folder| folder.sync_all())
}

fn write_new(path: &Path, note: &Note) -> std::io::Result<()> {
    let mut file = std::fs::File::create_new(path)?;
    let mut text = serde_json::to_string(note)?;
    text.push('\n');
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dezky_core::store::MemoryAuditStore;

    use super::*;

    async fn record(log: &dyn AuditStore, count: usize) {
        let event = || NewEvent::new("tenant.created", Actor::system()).seal(&TokioRuntime);
        let events = (0..count).map(|_| event()).collect();
        log.append(events, AppendOptions::default()).await.unwrap();
    }

    fn memory() -> Arc<dyn AuditStore> {
        Arc::new(MemoryAuditStore::open(Arc::new(TokioRuntime)))
    }

    #[tokio::test]
    async fn a_log_that_went_on_is_fine_and_any_other_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = HeadFile::new(folder.path().join("x.head"));
        let log = memory();
        assert_eq!(file.compare(&*log).await.unwrap(), Comparison::First);
        file.update(&*log).await.unwrap();
        assert_eq!(file.compare(&*log).await.unwrap(), Comparison::Continued, "an empty one");
        record(&*log, 3).await;
        file.update(&*log).await.unwrap();
        record(&*log, 2).await;
        assert_eq!(file.compare(&*log).await.unwrap(), Comparison::Continued);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

        let other = memory();
        record(&*other, 9).await;
        let said = file.check(&*other).await.unwrap_err().to_string();
        for word in ["expected head 2:", "found head 8:", "doctor --acknowledge-head", "x.head"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        // The same log by name, but shorter, or with another event at the place.
        let state = log.state().await.unwrap();
        for head in [
            Head { next_seq: 6, hash: state.head.hash },
            Head { next_seq: 5, hash: [7; 32] },
            Head { next_seq: 2, hash: [7; 32] },
            Head { next_seq: 0, hash: [7; 32] },
        ] {
            file.write(LogPosition { log_id: state.log_id, head }).await.unwrap();
            let found = file.compare(&*log).await.unwrap();
            assert!(matches!(found, Comparison::WentBack { .. }), "{head:?}");
        }
    }

    #[tokio::test]
    async fn an_acknowledgement_is_on_the_timeline_and_then_all_is_well() {
        let folder = tempfile::tempdir().unwrap();
        let file = HeadFile::new(folder.path().join("x.head"));
        let (old, log) = (memory(), memory());
        record(&*old, 3).await;
        file.update(&*old).await.unwrap();
        record(&*log, 1).await;
        assert!(file.acknowledge(&*log, Actor::system()).await.unwrap().is_some());
        let events = log.scan(1, 9).await.unwrap();
        let event = &events[0].as_ref().unwrap().stored.event;
        assert_eq!(event.action, "log.head_acknowledged");
        let metadata: serde_json::Value = serde_json::from_str(event.metadata.as_str()).unwrap();
        assert_eq!(metadata["expected"]["nextSeq"], 3);
        assert_eq!(metadata["found"]["nextSeq"], 1);
        assert_eq!(file.compare(&*log).await.unwrap(), Comparison::Continued);
        assert!(file.acknowledge(&*log, Actor::system()).await.unwrap().is_none());
        assert_eq!(log.state().await.unwrap().head.next_seq, 2, "one event");
    }

    #[tokio::test]
    async fn a_head_that_goes_back_under_a_server_is_noticed_and_not_noted() {
        let folder = tempfile::tempdir().unwrap();
        let file = HeadFile::new(folder.path().join("x.head"));
        let (old, log) = (memory(), memory());
        record(&*old, 3).await;
        file.update(&*old).await.unwrap();
        let noted = file.read().await.unwrap();
        assert!(matches!(file.update(&*log).await, Err(UpdateError::WentBack { .. })));
        assert_eq!(file.read().await.unwrap(), noted);
    }

    #[tokio::test]
    async fn what_can_not_be_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.head");
        for text in [
            "",
            "{}",
            "{\"version\":2,\"logId\":\"00000000-0000-0000-0000-000000000000\",\"nextSeq\":0,\"headHash\":\"\"}",
        ] {
            std::fs::write(&path, text).unwrap();
            let said = HeadFile::new(&path).read().await.unwrap_err().to_string();
            assert!(said.contains("x.head") && said.contains("not a head file"), "{said}");
        }
        assert!(HeadFile::new(folder.path()).read().await.is_err());
    }

    /// The file as version 1 wrote it.
    #[test]
    fn files_of_version_1_stay_readable() {
        let text = "{\"version\":1,\"logId\":\"0193b3c0-7d3a-7000-8000-00000000002a\",\"nextSeq\":7,\"headHash\":\"1111111111111111111111111111111111111111111111111111111111111111\"}\n";
        let read = place(text).unwrap();
        assert_eq!(read.head, Head { next_seq: 7, hash: [0x11; 32] });
        assert_eq!(read.log_id.to_string(), "0193b3c0-7d3a-7000-8000-00000000002a");
    }
}

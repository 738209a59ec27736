//! Flags as documents: their tables, and how a stored flag is read.

use std::sync::Arc;

use async_trait::async_trait;
use dezky_core::documents::{
    Collection, Counts, Database, Document, Documents, Key, Kind, MemoryDatabase, Put, Refusal,
    Removal, Schema, Set, Stored, Text, Transaction, Which,
};
use dezky_core::store::{Anomaly, Capabilities};
use dezky_core::{AuditStore, Error, ErrorKind, Result, SealedEvent};

use super::{
    FlagChange, FlagStore, FlagTable, InvalidFlag, Snapshot, check_flag, check_room, check_size,
    mismatch, not_found,
};
use crate::Flag;

/// The documents of flags.
pub static FLAGS: Set = Set {
    component: "flags",
    state: "dezky_flags_state",
    counts: Some(Counts { present: "flags", known: "keys" }),
    kinds: &[&FLAG],
    schema: Schema::Steps {
        sqlite: &[include_str!("sqlite/v1.sql")],
        postgres: &[include_str!("postgres/v1.sql")],
        catalogue: include_str!("postgres/catalogue.tsv"),
        mongodb: &[&[
            Collection { name: "dezky_flags", indexes: &[] },
            Collection { name: "dezky_flags_state", indexes: &[] },
        ]],
    },
};

pub(super) static FLAG: Kind = Kind {
    id: "key",
    document: "flag",
    removal: Removal::Kept,
    refuse,
    ..Kind::new("flag", "dezky_flags")
};

pub(super) fn refuse(_kind: &Kind, key: &str, refusal: &Refusal<'_>) -> Error {
    match refusal {
        Refusal::Exists => Error::new(
            ErrorKind::AlreadyExists,
            format!("the flag {key} already exists: change it, or choose another key"),
        ),
        Refusal::Missing => not_found(key),
        _ => mismatch(key),
    }
}

/// Flags in the database of an audit log: a change and its event are one commit.
///
/// Clones share the connections. Any number of processes may use one database: changes are made one
/// at a time, and reads never wait.
///
/// ```
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::{SqliteAuditStore, SqliteConfig};
/// use dezky_flags::store::{DocumentFlagStore, FlagStore};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("audit.db");
/// let log = SqliteAuditStore::open(SqliteConfig::new(path), &TokioRuntime).await?;
/// let store = DocumentFlagStore::open(&log.database()).await?;
/// assert!(store.snapshot().await?.flags.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct DocumentFlagStore {
    documents: Documents,
}

impl DocumentFlagStore {
    /// Opens the flags of a database; creates or migrates their tables.
    ///
    /// # Errors
    /// The errors of [`Documents::open`].
    pub async fn open(database: impl Into<Database>) -> Result<Self> {
        Ok(Self { documents: Documents::open(&FLAGS, database).await? })
    }

    /// Creates an empty store in memory, lost when the process ends, whose events are staged in
    /// `log`.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// use dezky_core::{rt::TokioRuntime, store::MemoryAuditStore};
    /// use dezky_flags::store::{DocumentFlagStore, FlagStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> dezky_core::Result<()> {
    /// let log = Arc::new(MemoryAuditStore::open(Arc::new(TokioRuntime)));
    /// let store = DocumentFlagStore::in_memory(log);
    /// assert_eq!(store.revision().await?, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn in_memory(log: Arc<dyn AuditStore>) -> Self {
        Self { documents: Documents::in_memory(&FLAGS, MemoryDatabase::new(log)) }
    }
}

#[async_trait]
impl FlagStore for DocumentFlagStore {
    fn capabilities(&self) -> Capabilities {
        self.documents.capabilities()
    }

    async fn examine(&self) -> Result<Vec<Anomaly>> {
        self.documents.examine().await
    }

    async fn table(&self) -> Result<FlagTable> {
        let (state, known) = self.documents.all(&FLAG, Which::Known).await?;
        let (mut flags, mut removed) = (Vec::new(), Vec::new());
        for stored in known {
            match flag_of(&stored)? {
                Some(flag) => flags.push(flag),
                None => removed.push((stored.version()?, stored.id)),
            }
        }
        let removed = removed.into_iter().map(|(version, key)| (key, version));
        FlagTable::from_parts(state.revision, flags, removed)
    }

    async fn flag(&self, key: &str) -> Result<Option<Flag>> {
        let stored = self.documents.get(&FLAG, Key::Id(key)).await?;
        stored.map_or(Ok(None), |stored| flag_of(&stored))
    }

    async fn last_version(&self, key: &str) -> Result<u64> {
        let stored = self.documents.get(&FLAG, Key::Id(key)).await?;
        stored.map_or(Ok(0), |stored| stored.version())
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        let (state, present) = self.documents.all(&FLAG, Which::Present).await?;
        let mut snapshot = Snapshot { revision: state.revision, ..Snapshot::default() };
        for stored in present {
            match read(&stored) {
                Ok(flag) => snapshot.flags.push(flag),
                Err(problem) => snapshot.invalid.push(InvalidFlag { key: stored.id, problem }),
            }
        }
        Ok(snapshot)
    }

    async fn revision(&self) -> Result<u64> {
        Ok(self.documents.state().await?.revision)
    }

    async fn commit(&self, changes: Vec<FlagChange>, events: Vec<SealedEvent>) -> Result<()> {
        check_size(&changes)?;
        let mut tx = self.documents.begin().await?;
        let changed = change(&mut tx, changes).await;
        tx.stage(events);
        tx.commit_after(changed).await
    }

    async fn restore(&self, table: FlagTable) -> Result<()> {
        let mut tx = self.documents.begin().await?;
        if tx.state().revision != 0 {
            tx.abort().await;
            // `FlagTable` decides whether the store already has this table.
            return self.table().await?.restore(table);
        }
        let copied = copy(&mut tx, &table).await;
        tx.commit_after(copied).await
    }

    async fn changed(&self, revision: u64) {
        self.documents.changed(revision).await;
    }
}

async fn change(tx: &mut Transaction<'_>, changes: Vec<FlagChange>) -> Result<()> {
    tx.lock(&FLAG, changes.iter().map(FlagChange::key)).await?;
    for change in changes {
        check_flag(&change)?;
        match change {
            FlagChange::Create(flag) => {
                tx.put(&FLAG, Put::New, document(&flag)?)?;
                check_room(tx.state())?;
            }
            FlagChange::Replace(flag) => tx.put(&FLAG, Put::Next, document(&flag)?)?,
            FlagChange::Remove { key, version } => tx.remove(&FLAG, &key, version)?,
        }
    }
    Ok(())
}

async fn copy(tx: &mut Transaction<'_>, table: &FlagTable) -> Result<()> {
    tx.lock(&FLAG, table.flags().map(|flag| flag.key.as_str())).await?;
    tx.lock(&FLAG, table.removed().map(|(key, _)| key)).await?;
    for flag in table.flags() {
        tx.put(&FLAG, Put::AsIs, document(flag)?)?;
    }
    for (key, version) in table.removed() {
        tx.put_removed(&FLAG, key, version)?;
    }
    tx.set_revision(table.revision());
    Ok(())
}

fn document(flag: &Flag) -> Result<Document> {
    Document::new(&flag.key, flag.version, flag)
}

/// The stored flag; `None` if it was removed.
fn flag_of(stored: &Stored) -> Result<Option<Flag>> {
    if stored.text == Text::Removed {
        return Ok(None);
    }
    read(stored).map(Some).map_err(|problem| {
        let key = &stored.id;
        let named = if crate::model::is_key(key) { key } else { "with an invalid key" };
        Error::new(
            ErrorKind::StoreCorrupt,
            format!(
                "the flag {named} is invalid, and off: {problem}: kill or remove it, or restore the database from a backup"
            ),
        )
    })
}

/// Reads a stored flag. Errors don't quote it.
fn read(stored: &Stored) -> std::result::Result<Flag, String> {
    let Text::Json(text) = &stored.text else { return Err("it is not a text".to_owned()) };
    let flag: Flag = serde_json::from_str(text).map_err(|error| {
        let problem = if error.is_data() {
            "it lacks a field, or has a field or value that this version does not know"
        } else {
            "it is not JSON"
        };
        problem.to_owned()
    })?;
    flag.validate().map_err(|error| error.to_string())?;
    if flag.key != stored.id || stored.version != Some(flag.version) {
        return Err("it has another key or version than its row".to_owned());
    }
    Ok(flag)
}

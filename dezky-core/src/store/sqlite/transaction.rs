use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use sqlx::{Sqlite, SqliteConnection, Transaction};

use super::files::Files;
use super::store_error;
use crate::Result;

/// A transaction of a [`SqliteDatabase`](super::SqliteDatabase) that may write. Dropped
/// before [`commit`](Self::commit) it changes nothing.
///
/// It derefs to the connection, for sqlx's own ways. After an error that makes SQLite
/// end the transaction by itself (a full disk, an input or output error) nothing of it
/// can be committed, and its connection is not lent again.
pub struct SqliteTransaction {
    pub(super) tx: Transaction<'static, Sqlite>,
    pub(super) files: Arc<Files>,
}

impl SqliteTransaction {
    /// Commits, durably.
    ///
    /// # Errors
    /// `store_replaced` if the database's files are no longer those at their paths: what
    /// was committed is in none of them. `store_unavailable` if the disk is full.
    pub async fn commit(self) -> Result<()> {
        self.tx.commit().await.map_err(store_error)?;
        self.files.check()
    }

    /// Takes everything back.
    pub async fn rollback(self) -> Result<()> {
        self.tx.rollback().await.map_err(store_error)
    }
}

impl Deref for SqliteTransaction {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.tx
    }
}

impl DerefMut for SqliteTransaction {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.tx
    }
}

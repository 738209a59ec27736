use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use sqlx::{Sqlite, SqliteConnection, Transaction};

use super::files::Files;
use super::store_error;
use crate::Result;

/// A write transaction of a [`SqliteDatabase`](super::SqliteDatabase). If dropped before
/// [`commit`](Self::commit), it changes nothing.
///
/// It derefs to sqlx's connection. If an error makes SQLite roll the transaction back (a full
/// disk, an I/O error), nothing of it can be committed, and its connection is not reused.
pub struct SqliteTransaction {
    pub(super) tx: Transaction<'static, Sqlite>,
    pub(super) files: Arc<Files>,
}

impl SqliteTransaction {
    /// Commits, durably.
    ///
    /// # Errors
    /// `store_replaced` if the files at the database's paths are no longer the open ones, so that
    /// the commit is lost. `store_unavailable` if the disk is full.
    pub async fn commit(self) -> Result<()> {
        self.tx.commit().await.map_err(store_error)?;
        self.files.check()
    }

    /// Undoes all changes.
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

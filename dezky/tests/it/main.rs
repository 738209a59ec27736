//! A platform on each engine, opened by its URL.

#[path = "../../../dezky-core/tests/it/database.rs"]
mod database;
mod engines;
mod jobs;
mod urls;

use database::Database;
use tempfile::TempDir;

/// A test's own store, with its URL.
pub(crate) struct Place {
    pub(crate) url: String,
    _folder: TempDir,
    _database: Option<Database>,
}

impl Place {
    fn new(url: impl FnOnce(&TempDir) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { url: url(&folder), _folder: folder, _database: None }
    }

    pub(crate) fn sqlite() -> Self {
        Self::new(|folder| format!("sqlite://{}", folder.path().join("dezky.db").display()))
    }

    pub(crate) async fn postgres() -> Self {
        let database = Database::postgres().await;
        Self::new(|_| database.url()).keeping(database)
    }

    pub(crate) fn mongodb() -> Self {
        let database = Database::mongodb();
        Self::new(|_| database.url()).keeping(database)
    }

    fn keeping(self, database: Database) -> Self {
        Self { _database: Some(database), ..self }
    }
}

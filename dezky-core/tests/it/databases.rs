//! The databases of a test that reopens one of them. Tests of other crates include this file.

use std::sync::Mutex;

use crate::database::Database;

/// The databases of one test; the last one created is the one that is reopened.
#[derive(Default)]
pub(crate) struct Databases(Mutex<Vec<Database>>);

impl Databases {
    /// Creates an empty database and returns its URL.
    pub(crate) async fn make(&self) -> String {
        let database = Database::postgres().await;
        self.0.lock().unwrap().push(database);
        self.url()
    }

    /// The URL of the last one.
    pub(crate) fn url(&self) -> String {
        self.0.lock().unwrap().last().expect("was made").url()
    }
}

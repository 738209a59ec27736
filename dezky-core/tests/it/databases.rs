//! The databases of a test that opens one of them again. Tests of other crates take
//! this file as theirs.

use std::sync::Mutex;

use crate::database::Database;

/// The databases of one test; the last one that was made is the one that is reopened.
#[derive(Default)]
pub(crate) struct Databases(Mutex<Vec<Database>>);

impl Databases {
    /// A new, empty one; its URL.
    pub(crate) async fn make(&self) -> String {
        let database = Database::postgres().await;
        self.0.lock().unwrap().push(database);
        self.url()
    }

    /// The last one that was made.
    pub(crate) fn url(&self) -> String {
        self.0.lock().unwrap().last().expect("was made").url()
    }
}

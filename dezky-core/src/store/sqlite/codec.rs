//! Access to the columns of SQLite's rows.

use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use crate::Result;
use crate::store::codec::{Columns, Problem};
use crate::store::sql::get;

impl Columns for SqliteRow {
    const SEQ: &'static str = "seq";
    const NUMBER: &'static str = "number";

    fn int(&self, column: &str) -> Result<i64, Problem> {
        get(self, column)
    }

    fn uuid(&self, column: &str) -> Result<Uuid, Problem> {
        Uuid::from_slice(get(self, column)?).map_err(|_| format!("{column} is not a UUID"))
    }

    fn optional_text(&self, column: &str) -> Result<Option<&str>, Problem> {
        get(self, column)
    }

    fn optional_bytes(&self, column: &str) -> Result<Option<&[u8]>, Problem> {
        get(self, column)
    }
}

use std::collections::BTreeMap;
use std::path::Path;

use dezky_core::Error;
use dezky_core::store::{sqlite_error, sqlite_reader};
use sqlx::{Connection as _, SqliteConnection};

/// The components' versions; none if the file is missing or has no schema.
pub(crate) async fn versions(path: &Path) -> Result<BTreeMap<String, usize>, Error> {
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let mut connection = sqlite_reader(path).await?;
    let versions = versions_of(&mut connection).await;
    connection.close().await.map_err(sqlite_error)?;
    versions
}

/// The same over an open connection.
pub(crate) async fn versions_of(
    connection: &mut SqliteConnection,
) -> Result<BTreeMap<String, usize>, Error> {
    let ours: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'dezky_schema')",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(sqlite_error)?;
    if !ours {
        return Ok(BTreeMap::new());
    }
    let rows: Vec<(String, i64)> = sqlx::query_as("SELECT component, version FROM dezky_schema")
        .fetch_all(connection)
        .await
        .map_err(sqlite_error)?;
    Ok(rows
        .into_iter()
        .map(|(name, version)| (name, usize::try_from(version).unwrap_or(0)))
        .collect())
}

use std::collections::BTreeMap;

use dezky_core::store::{postgres_error, postgres_options};
use dezky_core::{Error, ErrorKind};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Row as _};

use super::bounded::answer;
use crate::config::{RemoteUrl, StoreConfig};

pub(crate) fn options(url: &RemoteUrl) -> Result<PgConnectOptions, Error> {
    Ok(postgres_options(&url.expose())?.application_name("dezky-doctor"))
}

pub(crate) async fn connect(config: &StoreConfig, url: &RemoteUrl) -> Result<PgConnection, Error> {
    let options = options(url)?;
    let connected = tokio::time::timeout(config.acquire_timeout, options.connect()).await;
    match connected {
        Ok(connected) => connected.map_err(postgres_error),
        Err(_) => Err(Error::new(
            ErrorKind::StoreUnavailable,
            format!("no connection within {} s", config.acquire_timeout.as_secs()),
        )),
    }
}

/// Queries one row by the simple protocol, which every pooler supports; all columns are text.
pub(crate) async fn row(connection: &mut PgConnection, sql: &'static str) -> Result<PgRow, Error> {
    answer(async { connection.fetch_one(sqlx::raw_sql(sql)).await.map_err(postgres_error) }).await
}

pub(crate) async fn rows(
    connection: &mut PgConnection,
    sql: &'static str,
) -> Result<Vec<PgRow>, Error> {
    answer(async { connection.fetch_all(sqlx::raw_sql(sql)).await.map_err(postgres_error) }).await
}

pub(crate) fn get<'r, T>(row: &'r PgRow, column: &str) -> Result<T, Error>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(column).map_err(postgres_error)
}

/// The components' versions; none without a schema.
pub(crate) async fn versions(
    config: &StoreConfig,
    url: &RemoteUrl,
) -> Result<BTreeMap<String, usize>, Error> {
    let mut connection = connect(config, url).await?;
    let versions = versions_of(&mut connection).await;
    let _ = connection.close().await;
    versions
}

pub(crate) async fn versions_of(
    connection: &mut PgConnection,
) -> Result<BTreeMap<String, usize>, Error> {
    let found = row(connection, "SELECT to_regclass('dezky_schema') IS NOT NULL AS ours").await?;
    if !get::<bool>(&found, "ours")? {
        return Ok(BTreeMap::new());
    }
    let found = rows(connection, "SELECT component, version FROM dezky_schema").await?;
    found
        .iter()
        .map(|row| {
            let version = usize::try_from(get::<i64>(row, "version")?).unwrap_or(0);
            Ok((get(row, "component")?, version))
        })
        .collect()
}

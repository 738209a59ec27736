use std::collections::BTreeMap;

use dezky_core::Error;
use dezky_core::store::mongo_error;
use futures_util::TryStreamExt as _;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};

use super::bounded::answer;
use crate::config::{RemoteUrl, StoreConfig};

/// A connection to a server, and its database.
pub(crate) struct Server {
    pub(crate) client: Client,
    pub(crate) database: Database,
    pub(crate) options: ClientOptions,
}

pub(crate) async fn connect(config: &StoreConfig, url: &RemoteUrl) -> Result<Server, Error> {
    let mut options = ask(async { ClientOptions::parse(url.expose()).await }).await?;
    options.app_name = Some("dezky-doctor".into());
    options.server_selection_timeout.get_or_insert(config.acquire_timeout);
    options.connect_timeout.get_or_insert(config.acquire_timeout);
    let client = Client::with_options(options.clone()).map_err(|error| mongo_error(&error))?;
    let name = options.default_database.clone().unwrap_or_else(|| "dezky".into());
    Ok(Server { database: client.database(&name), client, options })
}

pub(crate) async fn ask<T>(
    asked: impl Future<Output = mongodb::error::Result<T>>,
) -> Result<T, Error> {
    answer(async { asked.await.map_err(|error| mongo_error(&error)) }).await
}

impl Server {
    pub(crate) async fn admin(&self, command: Document) -> Result<Document, Error> {
        ask(async { self.client.database("admin").run_command(command).await }).await
    }

    pub(crate) async fn versions(&self) -> Result<BTreeMap<String, usize>, Error> {
        let documents: Vec<Document> = ask(async {
            let schema = self.database.collection::<Document>("dezky_schema");
            schema.find(doc! {}).await?.try_collect().await
        })
        .await?;
        let version = |document: Document| {
            let component = document.get_str("_id").ok()?.to_owned();
            let version = document.get("version").and_then(integer).unwrap_or(0);
            Some((component, usize::try_from(version).unwrap_or(0)))
        };
        Ok(documents.into_iter().filter_map(version).collect())
    }
}

pub(crate) fn integer(value: &Bson) -> Option<i64> {
    value.as_i64().or_else(|| value.as_i32().map(i64::from))
}

/// The components' versions; none without a schema.
pub(crate) async fn versions(
    config: &StoreConfig,
    url: &RemoteUrl,
) -> Result<BTreeMap<String, usize>, Error> {
    let server = connect(config, url).await?;
    let versions = server.versions().await;
    server.client.shutdown().await;
    versions
}

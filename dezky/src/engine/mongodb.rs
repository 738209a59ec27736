//! A platform in a MongoDB database.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::mongodb::bson::{Bson, Document, doc};
use ::mongodb::options::{ClientOptions, ReadConcern, Tls, WriteConcern};
use ::mongodb::{Client, Database};
use async_trait::async_trait;
use dezky_core::directory::DIRECTORY;
use dezky_core::documents;
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AuditStore, MongoAuditStore, MongoConfig, mongo_error};
use dezky_core::{ErrorKind, Result, Runtime as _};
use dezky_flags::store::FLAGS;
use futures_util::TryStreamExt as _;

use super::remote::{Server, answer, answered, is_local};
use super::{Access, Backend, Opened, Report};
use crate::url::RemoteUrl;

pub(super) struct Mongodb(pub(super) Server);

#[async_trait]
impl Backend for Mongodb {
    fn known_versions(&self) -> [usize; 3] {
        [MongoAuditStore::schema_version(), DIRECTORY.versions().mongodb, FLAGS.versions().mongodb]
    }

    async fn versions(&self) -> Result<BTreeMap<String, usize>> {
        versions(&self.0).await
    }

    async fn examine(&self, report: &mut Report) -> Option<BTreeMap<String, usize>> {
        examine(&self.0, report).await
    }

    async fn open(&self, access: Access) -> Result<Arc<dyn Opened>> {
        let mut mongodb = MongoConfig::new(self.0.url.expose());
        mongodb.max_pool_size = self.0.config.max_connections;
        mongodb.connect_timeout = self.0.config.acquire_timeout;
        mongodb.server_selection_timeout = self.0.config.acquire_timeout;
        mongodb.busy_timeout = self.0.config.lock_timeout;
        mongodb.operation_timeout = self.0.config.statement_timeout;
        mongodb.shared = self.0.config.shared;
        mongodb.migrate = access == Access::Migrate;
        mongodb.must_write = access.must_write();
        Ok(Arc::new(MongoAuditStore::open(mongodb, Arc::new(TokioRuntime)).await?))
    }
}

#[async_trait]
impl Opened for MongoAuditStore {
    fn log(self: Arc<Self>) -> Arc<dyn AuditStore> {
        self
    }

    fn documents(self: Arc<Self>) -> documents::Database {
        (&self.database()).into()
    }

    async fn close(&self) {
        Self::close(self).await;
    }
}

/// The first wire protocol that works: MongoDB 4.4's.
const OLDEST_WIRE: i32 = 9;

/// The maximum time that a stalled writer may block the others.
const LONGEST_TRANSACTION_SECONDS: i64 = 10;

const EVENTS: &str = "dezky_audit_events";

struct Connection {
    client: Client,
    database: Database,
    options: ClientOptions,
}

async fn connect(Server { url, config }: &Server) -> Result<Connection> {
    let mut options = ask(async { ClientOptions::parse(url.expose()).await }).await?;
    options.app_name = Some("dezky-doctor".into());
    options.server_selection_timeout.get_or_insert(config.acquire_timeout);
    options.connect_timeout.get_or_insert(config.acquire_timeout);
    let client = Client::with_options(options.clone()).map_err(|error| mongo_error(&error))?;
    let name = options.default_database.clone().unwrap_or_else(|| "dezky".into());
    Ok(Connection { database: client.database(&name), client, options })
}

async fn ask<T>(asked: impl Future<Output = ::mongodb::error::Result<T>>) -> Result<T> {
    answer(async { asked.await.map_err(|error| mongo_error(&error)) }).await
}

impl Connection {
    async fn admin(&self, command: Document) -> Result<Document> {
        ask(async { self.client.database("admin").run_command(command).await }).await
    }

    async fn versions(&self) -> Result<BTreeMap<String, usize>> {
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

fn integer(value: &Bson) -> Option<i64> {
    value.as_i64().or_else(|| value.as_i32().map(i64::from))
}

/// Returns the components' versions; empty without a schema.
async fn versions(server: &Server) -> Result<BTreeMap<String, usize>> {
    let server = connect(server).await?;
    let versions = server.versions().await;
    server.client.shutdown().await;
    versions
}

/// Examines the server; returns the schema's versions if it answers.
async fn examine(server: &Server, report: &mut Report) -> Option<BTreeMap<String, usize>> {
    let fix = format!("check {} and that it is up", server.url);
    let connection = answered(connect(server).await, &fix, report)?;
    let examined = examine_server(&connection, &server.url, report).await;
    connection.client.shutdown().await;
    answered(examined, &fix, report)
}

async fn examine_server(
    server: &Connection,
    url: &RemoteUrl,
    report: &mut Report,
) -> Result<BTreeMap<String, usize>> {
    let before = TokioRuntime.now();
    let hello = server.admin(doc! { "hello": 1 }).await?;
    let after = TokioRuntime.now();
    examine_version(server, &hello, report).await?;
    examine_tls(server, url, report);
    let fit = examine_topology(&hello, report);
    if let Ok(now) = hello.get_datetime("localTime") {
        report.clocks(before, now.timestamp_millis(), after);
    }
    examine_durability(server, report).await;
    examine_lifetime(server, report).await;
    let versions = server.versions().await?;
    if versions.contains_key("audit") {
        if fit {
            probe(server, report).await;
        }
        let waiting = ask(async {
            let outbox = server.database.collection::<Document>("dezky_outbox");
            outbox.count_documents(doc! {}).limit(100_001).await
        });
        report.outbox(waiting.await?);
        examine_change_streams(server, report).await;
    }
    Ok(versions)
}

async fn examine_version(server: &Connection, hello: &Document, report: &mut Report) -> Result<()> {
    let build = server.admin(doc! { "buildInfo": 1 }).await?;
    let version = build.get_str("version").unwrap_or("unknown");
    if hello.get("maxWireVersion").and_then(integer).unwrap_or(0) < i64::from(OLDEST_WIRE) {
        report.bad("version", format!("MongoDB {version}"), "use 4.4 or newer");
    } else {
        report.ok("version", format!("MongoDB {version}"));
    }
    Ok(())
}

fn examine_tls(server: &Connection, url: &RemoteUrl, report: &mut Report) {
    let (what, fix) =
        ("tls", "set tls=true in the URL, and tlsCAFile for your own certificate authority");
    match &server.options.tls {
        Some(Tls::Enabled(tls)) if tls.allow_invalid_certificates == Some(true) => {
            let fix = "remove tlsInsecure and tlsAllowInvalidCertificates from the URL";
            report.warn(what, "encrypted, but the server's certificate is not verified", fix);
        }
        Some(Tls::Enabled(_)) => {
            report.ok(what, "encrypted, and the server's certificate is verified");
        }
        _ if is_local(url.host()) => report.ok(what, "not encrypted, on this machine"),
        _ => report.warn(what, "not encrypted, over a network", fix),
    }
}

/// Returns whether the server supports transactions.
fn examine_topology(hello: &Document, report: &mut Report) -> bool {
    let what = "topology";
    let is_router = hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
    let writable = hello.get_bool("isWritablePrimary").unwrap_or(false);
    match hello.get_str("setName") {
        _ if is_router => report.ok(what, "a router (mongos) of a sharded cluster"),
        Err(_) => {
            let fix = "start mongod with --replSet rs0 and run rs.initiate() once";
            report.bad(what, "a standalone server, which has no transactions", fix);
            return false;
        }
        Ok(set) if !writable => {
            let fix = "remove directConnection from the URL, or name the primary";
            report.bad(
                what,
                format!("a member of the replica set {set} that is not its primary"),
                fix,
            );
            return false;
        }
        Ok(set) => {
            let members = hello.get_array("hosts").map_or(1, Vec::len);
            report.ok(
                what,
                format!(
                    "the primary of the replica set {set}, with {members} data-bearing members"
                ),
            );
        }
    }
    true
}

/// The log itself requests acknowledgement by the majority and the journal, so durability
/// only depends on the storage engine.
async fn examine_durability(server: &Connection, report: &mut Report) {
    let what = "durability";
    let status = server.admin(doc! { "serverStatus": 1, "repl": 0, "metrics": 0, "locks": 0 });
    let persistent = status
        .await
        .ok()
        .and_then(|status| status.get_document("storageEngine").ok()?.get_bool("persistent").ok());
    match persistent {
        Some(false) => report.bad(what, "the storage engine is not persistent", "use WiredTiger"),
        Some(true) => report.ok(what, "on disk; each write waits for the majority and the journal"),
        None => report.ok(what, "each write waits for the majority and the journal; the server does not report its storage engine"),
    }
    let ours = WriteConcern::majority();
    if let Some(asked) = &server.options.write_concern
        && asked.w.is_some()
        && asked.w != ours.w
    {
        report.warn(
            what,
            "the URL has another write concern; the log ignores it, other programs with this URL don't",
            "set w=majority in the URL, or remove it",
        );
    }
}

async fn examine_lifetime(server: &Connection, report: &mut Report) {
    let what = "transactions";
    let name = "transactionLifetimeLimitSeconds";
    let fix = format!(
        "db.adminCommand({{setParameter: 1, {name}: {LONGEST_TRANSACTION_SECONDS}}}), and in the server's configuration"
    );
    let answer = server.admin(doc! { "getParameter": 1, name: 1 }).await;
    match answer.ok().as_ref().and_then(|answer| integer(answer.get(name)?)) {
        Some(seconds) if seconds > LONGEST_TRANSACTION_SECONDS => report.warn(
            what,
            format!("{name} is {seconds}: a stalled writer may block the others for that long"),
            fix,
        ),
        Some(seconds) => report.ok(what, format!("{name} is {seconds}")),
        None => report.warn(
            what,
            format!("{name} can't be read with these permissions"),
            format!(
                "ask an administrator to check that it is {LONGEST_TRANSACTION_SECONDS} or less"
            ),
        ),
    }
}

/// Writes a document in a transaction that is aborted.
async fn probe(server: &Connection, report: &mut Report) {
    let probed = ask(async {
        let mut session = server.client.start_session().await?;
        session
            .start_transaction()
            .read_concern(ReadConcern::snapshot())
            .write_concern(WriteConcern::majority())
            .await?;
        let outbox = server.database.collection::<Document>("dezky_outbox");
        let written = outbox.insert_one(doc! { "probe": true }).session(&mut session).await;
        session.abort_transaction().await?;
        written
    });
    match probed.await {
        Ok(_) => report.ok("writing", "a document was written in a transaction that was aborted"),
        Err(error) => {
            let fix = match error.kind() {
                ErrorKind::AuthFailed => "grant the user readWrite on the database",
                _ => "see the topology",
            };
            report.bad("writing", error.to_string(), fix);
        }
    }
}

async fn examine_change_streams(server: &Connection, report: &mut Report) {
    let watched =
        ask(async { server.database.collection::<Document>(EVENTS).watch().await.map(drop) });
    match watched.await {
        Ok(()) => report.ok("news", "change streams notify of appends by other processes"),
        Err(_) => report.warn(
            "news",
            "change streams don't work, so appends by other processes are found by polling",
            "grant the user readWrite on the database, which includes changeStream",
        ),
    }
}

use std::collections::BTreeMap;
use std::time::SystemTime;

use dezky_core::{Error, ErrorKind};
use mongodb::bson::{Document, doc};
use mongodb::options::{ReadConcern, Tls, WriteConcern};

use super::report::{Report, is_local};
use crate::app::schema::mongodb::{Server, ask, connect, integer};
use crate::config::{RemoteUrl, StoreConfig};

/// The first wire protocol that will do, of MongoDB 4.4.
const OLDEST_WIRE: i32 = 9;

/// How long a writer that stalls may hold the others up.
const LONGEST_TRANSACTION_SECONDS: i64 = 10;

const EVENTS: &str = "dezky_audit_events";

/// Looks at the server; gives the schema's versions if it answers.
pub(super) async fn examine(
    config: &StoreConfig,
    url: &RemoteUrl,
    report: &mut Report,
) -> Option<BTreeMap<String, usize>> {
    let server = match connect(config, url).await {
        Ok(server) => server,
        Err(error) => {
            report.bad("server", error.to_string(), format!("check {url} and that it is up"));
            return None;
        }
    };
    let examined = examine_server(&server, url, report).await;
    server.client.shutdown().await;
    match examined {
        Ok(versions) => Some(versions),
        Err(error) => {
            report.bad("server", error.to_string(), format!("check {url} and that it is up"));
            None
        }
    }
}

async fn examine_server(
    server: &Server,
    url: &RemoteUrl,
    report: &mut Report,
) -> Result<BTreeMap<String, usize>, Error> {
    let before = SystemTime::now();
    let hello = server.admin(doc! { "hello": 1 }).await?;
    let after = SystemTime::now();
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

async fn examine_version(
    server: &Server,
    hello: &Document,
    report: &mut Report,
) -> Result<(), Error> {
    let build = server.admin(doc! { "buildInfo": 1 }).await?;
    let version = build.get_str("version").unwrap_or("unknown");
    if hello.get("maxWireVersion").and_then(integer).unwrap_or(0) < i64::from(OLDEST_WIRE) {
        report.bad("version", format!("MongoDB {version}"), "use 4.4 or newer");
    } else {
        report.ok("version", format!("MongoDB {version}"));
    }
    Ok(())
}

fn examine_tls(server: &Server, url: &RemoteUrl, report: &mut Report) {
    let (what, fix) =
        ("tls", "set tls=true in the URL, and tlsCAFile for an authority of your own");
    match &server.options.tls {
        Some(Tls::Enabled(tls)) if tls.allow_invalid_certificates == Some(true) => {
            let fix = "take tlsInsecure and tlsAllowInvalidCertificates out of the URL";
            report.warn(what, "encrypted, but whoever answers is believed", fix);
        }
        Some(Tls::Enabled(_)) => {
            report.ok(what, "encrypted, and the server's certificate is verified");
        }
        _ if is_local(url.host()) => report.ok(what, "not encrypted, on this machine"),
        _ => report.warn(what, "not encrypted, over a network", fix),
    }
}

/// Whether it has transactions.
fn examine_topology(hello: &Document, report: &mut Report) -> bool {
    let what = "topology";
    let is_router = hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
    let writable = hello.get_bool("isWritablePrimary").unwrap_or(false);
    match hello.get_str("setName") {
        _ if is_router => report.ok(what, "a router of a sharded cluster"),
        Err(_) => {
            let fix = "start mongod with --replSet rs0 and run rs.initiate() once";
            report.bad(what, "a standalone, which has no transactions", fix);
            return false;
        }
        Ok(set) if !writable => {
            let fix = "leave directConnection out of the URL, or name the primary";
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
                    "the primary of the replica set {set}, of {members} members that hold data"
                ),
            );
        }
    }
    true
}

/// The log asks for the majority and the journal itself; what is left is a server that
/// keeps nothing on a disk.
async fn examine_durability(server: &Server, report: &mut Report) {
    let what = "durability";
    let status = server.admin(doc! { "serverStatus": 1, "repl": 0, "metrics": 0, "locks": 0 });
    let persistent = status
        .await
        .ok()
        .and_then(|status| status.get_document("storageEngine").ok()?.get_bool("persistent").ok());
    match persistent {
        Some(false) => report.bad(what, "the storage engine keeps nothing on a disk", "use WiredTiger"),
        Some(true) => report.ok(what, "on disk; each write waits for the majority and the journal"),
        None => report.ok(what, "each write waits for the majority and the journal; the server does not tell of its storage engine"),
    }
    let ours = WriteConcern::majority();
    if let Some(asked) = &server.options.write_concern
        && asked.w.is_some()
        && asked.w != ours.w
    {
        report.warn(
            what,
            "the URL asks for another write concern; it does not hold for the log, but for what else uses the URL",
            "set w=majority in the URL, or leave it out",
        );
    }
}

async fn examine_lifetime(server: &Server, report: &mut Report) {
    let what = "transactions";
    let name = "transactionLifetimeLimitSeconds";
    let fix = format!(
        "db.adminCommand({{setParameter: 1, {name}: {LONGEST_TRANSACTION_SECONDS}}}), and in the server's configuration"
    );
    let answer = server.admin(doc! { "getParameter": 1, name: 1 }).await;
    match answer.ok().as_ref().and_then(|answer| integer(answer.get(name)?)) {
        Some(seconds) if seconds > LONGEST_TRANSACTION_SECONDS => report.warn(
            what,
            format!("{name} is {seconds}: a writer that stalls holds the others up for so long"),
            fix,
        ),
        Some(seconds) => report.ok(what, format!("{name} is {seconds}")),
        None => report.warn(
            what,
            format!("{name} can't be read with these permissions"),
            format!("let an administrator see that it is {LONGEST_TRANSACTION_SECONDS} or less"),
        ),
    }
}

/// Writes as the log does, and takes it back.
async fn probe(server: &Server, report: &mut Report) {
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
        Ok(_) => report.ok("writing", "a document was written in a transaction and taken back"),
        Err(error) => {
            let fix = match error.kind() {
                ErrorKind::AuthFailed => "grant the user readWrite on the database",
                _ => "see the topology",
            };
            report.bad("writing", error.to_string(), fix);
        }
    }
}

async fn examine_change_streams(server: &Server, report: &mut Report) {
    let watched =
        ask(async { server.database.collection::<Document>(EVENTS).watch().await.map(drop) });
    match watched.await {
        Ok(()) => report.ok("news", "change streams tell of what others append"),
        Err(_) => report.warn(
            "news",
            "change streams don't work, so what others append is found by polling",
            "grant the user readWrite on the database: that contains changeStream",
        ),
    }
}

//! Stores written by earlier versions: they open, verify and accept changes. The fixtures contain a
//! log, a directory, flags (also a removed one), quarantine, cursors and a spool.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use mongodb::bson::{Document, doc};
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection};

use crate::servers::{collection, sql};
use crate::support::{Database, Engine, Process, run, until, verbs};

/// The events of each fixture, without the spool's.
const EVENTS: usize = 35;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stored").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(fixture(name)).unwrap()
}

/// Writes the fixture into an empty store and returns its URL and head.
async fn write(
    engine: Engine,
    folder: &Path,
    database: Option<&Database>,
) -> (String, &'static str) {
    match engine {
        Engine::Sqlite => {
            let url = format!("sqlite://{}", folder.join("audit.db").display());
            let mut file = SqliteConnection::connect(&format!("{url}?mode=rwc")).await.unwrap();
            sqlx::raw_sql(sqlx::AssertSqlSafe(text("sqlite.sql")))
                .execute(&mut file)
                .await
                .unwrap();
            file.close().await.unwrap();
            (url, "34:f1b74f59219b3d0a56028141231aa07844b24a4d90e55191594effcbdf8a3cc6")
        }
        Engine::Postgres => {
            let url = database.unwrap().url.clone();
            sql(&url, &text("postgres.sql")).await;
            (url, "34:a9e979885f5132a06f47cfbedabc51331b3693ea5c70d107bc8556f8db144ca3")
        }
        Engine::Mongodb => {
            let url = database.unwrap().url.clone();
            // Straight into documents, because the order of an index's fields counts.
            let stored: BTreeMap<String, Collection> =
                serde_json::from_str(&text("mongodb.json")).unwrap();
            for (name, content) in stored {
                write_collection(&url, &name, content).await;
            }
            (url, "34:29bab79be9bccc09f142a286cfe943b67efafe49fd04e8d68815ca1b86c3557e")
        }
    }
}

/// A collection of the fixture.
#[derive(serde::Deserialize)]
struct Collection {
    indexes: Vec<Document>,
    documents: Vec<Document>,
}

async fn write_collection(url: &str, name: &str, content: Collection) {
    let collection = collection(url, name).await;
    let database = collection.client().database(&collection.namespace().db);
    database.create_collection(name).await.unwrap();
    if !content.indexes.is_empty() {
        database
            .run_command(doc! { "createIndexes": name, "indexes": content.indexes })
            .await
            .unwrap();
    }
    if !content.documents.is_empty() {
        collection.insert_many(content.documents).await.unwrap();
    }
}

async fn an_earlier_store_opens_verifies_and_goes_on(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::new(engine).await;
    let (url, head) = write(engine, folder.path(), database.as_ref()).await;
    let verify = |more: &[&str]| {
        let output = run(&[&["verify", "--store", &url], more].concat(), &[]);
        assert!(output.status.success(), "{output:?}");
    };
    verify(&["--expect-head", head]);

    let spool = folder.path().join("audit.spool");
    fs::copy(fixture(&format!("{engine:?}.spool").to_lowercase()), &spool).unwrap();
    fs::set_permissions(&spool, Permissions::from_mode(0o600)).unwrap();
    let set = [("DEZKY_STORE", url.as_str()), ("DEZKY_SPOOL_PATH", "audit.spool")];
    let server = Process::start(folder.path(), &set);
    let client = &server.client;
    until("the spool is empty", async || client.all("").await.len() == EVENTS + 3).await;
    let spooled = verbs(
        client.all("&source=stalwart&since=2026-08-17T10:00:30Z&until=2026-08-18T00:00:00Z").await,
    );
    assert_eq!(spooled, ["stalwart.auth_success", "stalwart.auth_failed"]);

    let tenants = client.get("/tenants").await.with_status(200);
    let named = |list: &Value, field: &str| -> Vec<String> {
        list.as_array().unwrap().iter().map(|one| one[field].to_string()).collect()
    };
    assert_eq!(named(&tenants["tenants"], "slug"), [r#""acme""#, r#""beta""#]);
    assert_eq!(named(&tenants["tenants"], "status"), [r#""pending""#, r#""suspended""#]);
    let flags = client.get("/flags").await.with_status(200);
    assert_eq!(named(&flags["flags"], "key"), [r#""by_cli""#, r#""new_editor""#, r#""third""#]);
    assert_eq!(named(&flags["flags"], "pct"), ["0", "60", "0"]);
    assert_eq!(
        client.get("/users").await.with_status(200)["users"][0]["identities"][0]["id"],
        "4c510ada"
    );

    // Versions continue, also that of a removed flag, and owned names stay reserved.
    let flag = client.patch("/flags/new_editor", json!({ "pct": 61 })).await.with_status(200);
    assert_eq!((&flag["version"], flag["history"].as_array().unwrap().len()), (&3.into(), 3));
    let again = client.post("/flags", json!({ "key": "old_editor" })).await.with_status(201);
    assert_eq!(again["version"], 3);
    let tenant = client.patch("/tenants/acme", json!({ "name": "Acme SE" })).await.with_status(200);
    assert_eq!(tenant["version"], 3);
    let taken =
        json!({ "slug": "other", "name": "Other", "plan": "pro", "domains": ["www.acme.example"] });
    client.post("/tenants", taken).await.problem(409, "already_exists");
    server.stop().await;
    verify(&[]);
    assert!(run(&["migrate", "--check", "--store", &url], &[]).status.success());
}

#[tokio::test]
async fn an_earlier_store_in_sqlite_opens_verifies_and_goes_on() {
    an_earlier_store_opens_verifies_and_goes_on(Engine::Sqlite).await;
}

#[tokio::test]
async fn an_earlier_store_in_postgres_opens_verifies_and_goes_on() {
    an_earlier_store_opens_verifies_and_goes_on(Engine::Postgres).await;
}

#[tokio::test]
async fn an_earlier_store_in_mongodb_opens_verifies_and_goes_on() {
    an_earlier_store_opens_verifies_and_goes_on(Engine::Mongodb).await;
}

//! `doctor` on every engine, with healthy and damaged stores.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;

use dezky_server::testkit::{IdentityProvider, SigningKey};
use mongodb::IndexModel;
use mongodb::bson::doc;
use mongodb::options::IndexOptions;
use serde_json::Value;

use crate::servers::{OwnServer, collection, free_port, sql};
use crate::support::{Database, Engine, run, stdout};

fn doctor(url: &str, environment: &[(&str, &str)]) -> Output {
    run(&["doctor", "--store", url], environment)
}

fn migrated(url: &str) {
    let output = run(&["migrate", "--store", url], &[]);
    assert!(output.status.success(), "{output:?}");
}

/// The lines with this level.
fn lines(output: &Output, level: &str) -> Vec<String> {
    let text = stdout(output);
    text.lines().filter(|line| line.starts_with(level)).map(str::to_owned).collect()
}

/// Checks that exactly one line has this level, and that it contains these words.
fn only(output: &Output, level: &str, words: &[&str]) {
    let found = lines(output, level);
    assert_eq!(found.len(), 1, "{output:?}");
    for word in words {
        assert!(found[0].contains(word), "{word}: {}", found[0]);
    }
}

#[test]
fn a_file_fit_and_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.db");
    let url = format!("sqlite://{}", path.display());
    let output = doctor(&url, &[]);
    assert_eq!(output.status.code(), Some(1));
    only(&output, "bad", &["there is none yet", "dezky-server migrate"]);
    assert!(!path.exists(), "it creates nothing");

    migrated(&url);
    let output = doctor(&url, &[]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(lines(&output, "ok").len(), stdout(&output).lines().count(), "{output:?}");
    for word in ["writing", "synced at every commit", "schema", "structure", "head"] {
        assert!(stdout(&output).contains(word), "{word}: {output:?}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "it leaves nothing behind");

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = doctor(&url, &[]);
    assert!(output.status.success());
    only(&output, "warn", &["mode 644", "chmod 600"]);

    let json = run(&["doctor", "--json", "--store", &url], &[]);
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&report["ok"], &report["store"]), (&true.into(), &url.as_str().into()));
    assert!(report["checks"][0]["level"].is_string() && report["checks"][0]["fix"].is_null());
}

#[test]
fn a_disk_without_room_is_no_matter_of_rights() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("audit.db").display());
    migrated(&url);
    // A limit on file sizes has the same effect as a full disk.
    let script = "trap '' XFSZ; ulimit -S -f 8; exec \"$0\" doctor --store \"$1\"";
    let output = std::process::Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_dezky-server"), &url])
        .env_clear()
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let bad = lines(&output, "bad");
    assert!(bad[0].contains("has no room for 65536 bytes"), "{bad:?}");
    assert!(bad[0].contains("make room"), "{bad:?}");
    assert!(!stdout(&output).contains("let this user write"), "{output:?}");
}

#[tokio::test]
async fn a_file_that_lacks_an_index() {
    use sqlx::Connection as _;
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("audit.db").display());
    migrated(&url);
    let mut file = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("DROP INDEX dezky_audit_events_tenant").execute(&mut file).await.unwrap();
    let output = doctor(&url, &[]);
    assert_eq!(output.status.code(), Some(1));
    only(&output, "bad", &["dezky_audit_events_tenant"]);
    let drop =
        "DROP TABLE dezky_leases; CREATE INDEX dezky_audit_events_tenant ON dezky_cursors (source)";
    sqlx::raw_sql(drop).execute(&mut file).await.unwrap();
    file.close().await.unwrap();
    only(&doctor(&url, &[]), "bad", &["schema", "dezky_leases"]);
}

/// The tables of flags and directory are checked as well.
#[tokio::test]
async fn what_acts_on_tables_by_itself_is_named() {
    use sqlx::Connection as _;
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("audit.db").display());
    migrated(&url);
    let mut file = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let trigger =
        "CREATE TRIGGER quiet AFTER UPDATE ON dezky_flags BEGIN DELETE FROM dezky_outbox; END";
    sqlx::raw_sql(trigger).execute(&mut file).await.unwrap();
    let output = doctor(&url, &[]);
    assert_eq!(output.status.code(), Some(1));
    only(&output, "bad", &["structure", "trigger quiet on dezky_flags", "drop it"]);
    // A partial index hides tenants from lists.
    let partial = "DROP TRIGGER quiet; DROP INDEX dezky_tenants_status; \
        CREATE INDEX dezky_tenants_status ON dezky_tenants (status, slug) WHERE slug <> 'acme'";
    sqlx::raw_sql(partial).execute(&mut file).await.unwrap();
    file.close().await.unwrap();
    only(&doctor(&url, &[]), "bad", &["structure", "dezky_tenants_status", "acme"]);

    let database = Database::new(Engine::Postgres).await.unwrap();
    migrated(&database.url);
    for (made, named) in [
        (
            "ALTER TABLE dezky_users ALTER subject TYPE text COLLATE \"POSIX\"",
            "dezky_users.subject",
        ),
        ("ALTER TABLE dezky_flags ADD CHECK (key <> 'a')", "dezky_flags_key_check"),
        (
            "CREATE RULE quiet AS ON DELETE TO dezky_tenants DO INSTEAD NOTHING",
            "rule quiet on dezky_tenants",
        ),
        ("CREATE POLICY few ON dezky_users USING (false)", "policy few on dezky_users"),
        (
            "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER quiet BEFORE INSERT ON dezky_flags FOR EACH ROW EXECUTE FUNCTION nothing()",
            "trigger quiet on dezky_flags",
        ),
    ] {
        sql(&database.url, made).await;
        let output = doctor(&database.url, &[]);
        let bad = lines(&output, "bad");
        assert!(bad.iter().any(|line| line.contains(named)), "{named}: {bad:?}");
    }

    let database = Database::new(Engine::Mongodb).await.unwrap();
    migrated(&database.url);
    let client = mongodb::Client::with_uri_str(&database.url).await.unwrap();
    let validator = doc! { "collMod": "dezky_flags", "validator": { "key": "none" } };
    client.default_database().unwrap().run_command(validator).await.unwrap();
    only(&doctor(&database.url, &[]), "bad", &["structure", "dezky_flags", "validator"]);
    collection(&database.url, "dezky_tenants").await.drop_index("by_status").await.unwrap();
    let output = doctor(&database.url, &[]);
    let bad = lines(&output, "bad");
    assert!(bad.iter().any(|line| line.contains("dezky_tenants.by_status")), "{bad:?}");
}

/// The shared server runs without fsync, because its data need not be durable.
#[tokio::test]
async fn a_postgres_that_syncs_nothing() {
    let database = Database::new(Engine::Postgres).await.unwrap();
    let output = doctor(&database.url, &[]);
    assert!(stdout(&output).contains("dezky-server migrate"), "{output:?}");
    migrated(&database.url);
    let output = doctor(&database.url, &[]);
    assert_eq!(output.status.code(), Some(1));
    let bad = lines(&output, "bad");
    assert!(bad.iter().all(|line| line.contains("durability")), "{bad:?}");
    assert!(bad.iter().any(|line| line.contains("fsync is off")), "{bad:?}");
}

#[tokio::test]
async fn a_postgres_fit_and_not() {
    let server = OwnServer::postgres(&["max_connections=20"]).await;
    migrated(&server.url);
    let output = doctor(&server.url, &[]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(lines(&output, "ok").len(), stdout(&output).lines().count(), "{output:?}");
    for word in ["PostgreSQL 1", "a primary", "pooler", "writing", "clock", "structure", "head"] {
        assert!(stdout(&output).contains(word), "{word}: {output:?}");
    }
    let output = doctor(&server.url, &[("DEZKY_STORE_MAX_CONNECTIONS", "20")]);
    only(&output, "warn", &["connections", "20"]);

    sql(&server.url, "ALTER ROLE dezky SET synchronous_commit = off").await;
    only(&doctor(&server.url, &[]), "warn", &["synchronous_commit is off"]);
    sql(&server.url, "ALTER ROLE dezky SET synchronous_commit = on").await;

    let index = "'dezky_audit_events_at'::regclass";
    let set = format!("UPDATE pg_index SET indisvalid = false WHERE indexrelid = {index}");
    sql(&server.url, &set).await;
    let output = doctor(&server.url, &[]);
    assert_eq!(output.status.code(), Some(1));
    only(&output, "bad", &["REINDEX INDEX CONCURRENTLY dezky_audit_events_at"]);
    sql(&server.url, &set.replace("= false", "= true")).await;

    sql(
        &server.url,
        "CREATE ROLE reader LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader",
    )
    .await;
    let output = doctor(&server.url.replace("dezky@", "reader@"), &[]);
    let bad = lines(&output, "bad");
    assert!(bad.iter().any(|line| line.contains("GRANT SELECT, INSERT, UPDATE, DELETE ON dezky_audit_events")), "{bad:?}");
    assert!(bad.iter().any(|line| line.contains("writing")), "{bad:?}");
    assert!(lines(&output, "warn").iter().any(|line| line.contains("GRANT CREATE")), "{output:?}");

    // As after a partly restored backup.
    sql(&server.url, "DROP TABLE dezky_leases, dezky_flags").await;
    only(&doctor(&server.url, &[]), "bad", &["schema", "missing: dezky_flags, dezky_leases"]);

    sql(&server.url, "ALTER DATABASE postgres SET default_transaction_read_only = on").await;
    let output = doctor(&server.url, &[]);
    assert!(lines(&output, "bad").iter().any(|line| line.contains("topology")), "{output:?}");
}

#[tokio::test]
async fn a_pooler_is_noticed() {
    let server = OwnServer::postgres(&[]).await;
    migrated(&server.url);
    let pooler = OwnServer::pgbouncer(&server.url).await;
    let output = doctor(&pooler.url, &[]);
    assert_eq!(output.status.code(), Some(1));
    let bad = lines(&output, "bad");
    assert!(bad[0].contains("pooler") && bad[0].contains("DEZKY_STORE_POOLER"), "{bad:?}");
    let output = doctor(&pooler.url, &[("DEZKY_STORE_POOLER", "transaction")]);
    assert!(output.status.success(), "{output:?}");
    assert!(stdout(&output).contains("as configured"), "{output:?}");
}

#[tokio::test]
async fn a_mongodb_fit_and_not() {
    let database = Database::new(Engine::Mongodb).await.unwrap();
    let url = &database.url;
    let output = doctor(url, &[]);
    only(&output, "bad", &["there is none yet", "dezky-server migrate"]);
    migrated(url);
    let output = doctor(url, &[]);
    assert!(output.status.success(), "{output:?}");
    for word in ["MongoDB ", "replica set", "writing", "clock", "structure", "outbox", "head"] {
        assert!(stdout(&output).contains(word), "{word}: {output:?}");
    }

    let expires = std::time::Duration::from_mins(1);
    let options = IndexOptions::builder().expire_after(expires).build();
    let index = IndexModel::builder().keys(doc! { "at": 1 }).options(options).build();
    collection(url, "dezky_leases").await.create_index(index).await.unwrap();
    let output = doctor(url, &[]);
    assert_eq!(output.status.code(), Some(1));
    only(&output, "bad", &["dezky_leases", "TTL", "drop it"]);
    collection(url, "dezky_audit_events").await.drop_index("by_tenant_at_seq").await.unwrap();
    let output = doctor(url, &[]);
    let is_missing = |line: &String| line.contains("by_tenant_at_seq");
    assert!(lines(&output, "bad").iter().any(is_missing), "{output:?}");
    // Objects that an older schema lacks come from its migration, not from a backup.
    let older = doc! { "$set": { "version": 1_i64 } };
    let schema = collection(url, "dezky_schema").await;
    schema.update_one(doc! { "_id": "audit" }, older).await.unwrap();
    let output = doctor(url, &[]);
    let bad = lines(&output, "bad");
    assert!(!bad.iter().any(is_missing), "{bad:?}");
    assert!(bad.iter().any(|line| line.contains("audit is at version 1")), "{bad:?}");
}

#[test]
fn a_server_that_is_not_there() {
    let port = free_port();
    for url in [
        format!("postgres://dezky:p4ssw0rd@127.0.0.1:{port}/x"),
        format!("mongodb://dezky:p4ssw0rd@127.0.0.1:{port}/x"),
    ] {
        let output = doctor(&url, &[("DEZKY_STORE_ACQUIRE_TIMEOUT_SECONDS", "1")]);
        assert_eq!(output.status.code(), Some(1));
        only(&output, "bad", &["server", "check", "dezky@127.0.0.1"]);
        assert!(!format!("{output:?}").contains("p4ssw0rd"));
    }
}

/// Discovery, keys, the clock, and subjects that can be given to other users.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issuers_are_examined() {
    let provider = IdentityProvider::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("audit.db").display());
    migrated(&url);
    let issuer = provider.issuer();
    let environment = [("AUTHENTIK_ISSUER", issuer.as_str()), ("AUTHENTIK_AUDIENCE", "api")];
    let examine = async || {
        let (url, issuer) = (url.clone(), issuer.clone());
        let environment = [("AUTHENTIK_ISSUER", issuer), ("AUTHENTIK_AUDIENCE", "api".to_owned())];
        let work = move || {
            let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
            doctor(&url, &environment)
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    };
    let output = examine().await;
    assert!(output.status.success(), "{output:?}");
    for word in ["the keys are at", "/jwks/", "issuer clock"] {
        assert!(stdout(&output).contains(word), "{word}: {output:?}");
    }
    provider.set_clock_ahead(90);
    only(&examine().await, "warn", &["differs from this machine's", "synchronise"]);
    provider.set_clock_ahead(0);
    provider.set_key_set(Some(serde_json::json!({})));
    let output = examine().await;
    assert_eq!(output.status.code(), Some(1));
    only(&output, "bad", &["publishes no key", "Signing Key"]);
    provider.set_key_set(None);
    let key = SigningKey::ps256("ps");
    provider.rotate(key, false);
    only(&examine().await, "bad", &["publishes no key", "configured algorithms"]);
    provider.rotate(SigningKey::es256("key-1"), false);
    provider.set_issuer(issuer.trim_end_matches('/'));
    let both = [format!("\"{issuer}\""), format!("\"{}\"", issuer.trim_end_matches('/'))];
    only(&examine().await, "bad", &[&both[0], &both[1]]);
    // A configured key set needs no document, but then nothing compares the issuer.
    let file = folder.path().join("dezky.toml");
    let text = format!(
        "[auth.issuers.main]\npreset = \"authentik\"\nissuer = \"{issuer}\"\naudiences = [\"api\"]\njwks_uri = \"{}\"\n",
        provider.jwks_uri()
    );
    std::fs::write(&file, text).unwrap();
    let arguments =
        ["doctor", "--store", &url, "--config", file.to_str().unwrap()].map(str::to_owned);
    let work = move || run(&arguments.each_ref().map(String::as_str), &[]);
    let output = tokio::task::spawn_blocking(work).await.unwrap();
    only(&output, "warn", &[&both[0], &both[1], "configured jwks_uri"]);
    provider.set_issuer(issuer.as_str());
    // A machine without certificates is told so, beside everything else.
    let output = doctor(
        &url,
        &[
            ("AUTHENTIK_ISSUER", "https://id.example.com/"),
            ("AUTHENTIK_AUDIENCE", "api"),
            ("SSL_CERT_FILE", "/nowhere"),
            ("SSL_CERT_DIR", "/nowhere"),
        ],
    );
    assert_eq!(output.status.code(), Some(1));
    only(&output, "bad", &["certificates", "install them"]);
    assert!(!lines(&output, "ok").is_empty());
    let add =
        ["users", "add", "--store", &url, "--issuer", &issuer, "--subject", "ana@acme.example"];
    assert!(run(&add, &environment).status.success());
    only(&examine().await, "warn", &["e-mail addresses", "Subject mode"]);
}

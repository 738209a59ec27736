//! Changes made to the rows by other tools are found and reported.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dezky_core::integrity::{Erasure, Evidence, field_salt};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AppendOptions, AuditStore, AuditStoreExt, SqliteAuditStore, SqliteConfig};
use dezky_core::testkit::{EventGenerator, ManualRuntime};
use dezky_core::verify::{Difference, ExpectedHead, Finding, Verdict, verify};
use dezky_core::{ErrorKind, Field, SealedEvent};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};
use tempfile::TempDir;

use crate::sqlite::tokio;

struct Log {
    _folder: TempDir,
    path: PathBuf,
}

impl Log {
    /// Creates a log of 20 events, the first of which have every field.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.db");
        let store = open(&path).await;
        let runtime = ManualRuntime::new(21);
        let mut events = Vec::new();
        for n in 0..20 {
            let mut event = EventGenerator::new(&runtime).next_event();
            event.actor.id = Some(format!("u-{n}"));
            event.actor.email = Some(format!("User{n}@acme.test"));
            event.actor.ip = Some("203.0.113.7".into());
            event.resource_type = Some("tenant".into());
            event.resource_id = Some(format!("t-{n}"));
            event.resource_name = Some(format!("Tenant {n}"));
            event.tenant_slug = Some("acme".into());
            event.partner_slug = Some("nordic".into());
            event.external_id = Some(format!("x-{n}"));
            events.push(event.seal(&runtime));
        }
        append(&store, events).await;
        store.close().await;
        Self { _folder: folder, path }
    }

    async fn sql(&self, sql: &str) {
        let mut connection = raw(&self.path).await;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    async fn verdict(&self, expected: Option<ExpectedHead>) -> Verdict {
        let store =
            SqliteAuditStore::open(SqliteConfig::read_only(&self.path), &TokioRuntime).await;
        let store = store.unwrap();
        let verdict = verify(&store, expected, |_| ()).await.unwrap();
        store.close().await;
        verdict
    }

    async fn finding(&self) -> Finding {
        self.finding_after("the log was changed").await
    }

    async fn finding_after(&self, change: &str) -> Finding {
        self.verdict(None).await.finding.unwrap_or_else(|| panic!("not found: {change}"))
    }
}

async fn open(path: &Path) -> SqliteAuditStore {
    SqliteAuditStore::open(SqliteConfig::new(path), &TokioRuntime).await.unwrap()
}

async fn raw(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.unwrap()
}

async fn append(store: &SqliteAuditStore, events: Vec<SealedEvent>) {
    store.append(events, AppendOptions::default()).await.unwrap();
}

fn check(finding: &Finding, seq: i64, kind: Difference) {
    assert_eq!((finding.seq, finding.kind), (seq, kind), "{}", finding.detail);
}

#[test]
fn every_column_is_evidence() {
    tokio().block_on(async {
        let log = Log::new().await;
        let mut connection = raw(&log.path).await;
        let columns: Vec<String> =
            sqlx::query_scalar("SELECT name FROM pragma_table_info('dezky_audit_events')")
                .fetch_all(&mut connection)
                .await
                .unwrap();
        connection.close().await.unwrap();
        assert_eq!(columns.len(), 24, "every column of the schema is tried");
        let original = std::fs::read(&log.path).unwrap();
        for column in columns.iter().filter(|c| *c != "seq") {
            let changes: &[&str] = match column.as_str() {
                "id" | "prev_hash" | "hash" | "salt" => {
                    &["randomblob(length({}))", "x'00'", "zeroblob(32)"]
                }
                "at" | "received_at" => &["{} + 1", "-999999999999999"],
                "erasure" => &["x'01'"],
                "metadata" => &["'{}'", "{} || ' '", "'not json'"],
                "actor_type" => {
                    &["'operator2'", "CASE {} WHEN 'user' THEN 'service' ELSE 'user' END", "''"]
                }
                "outcome" => {
                    &["'maybe'", "CASE {} WHEN 'success' THEN 'denied' ELSE 'success' END"]
                }
                "action" | "source" | "search" => &["'else.where'", "{} || 'x'"],
                _ => &["'elsewhere'", "NULL", "{} || 'x'", "''"],
            };
            for change in changes {
                let change = change.replace("{}", column);
                log.sql(&format!(
                    "UPDATE dezky_audit_events SET {column} = {change} WHERE seq = 7"
                ))
                .await;
                let finding = log.finding_after(&format!("{column} = {change}")).await;
                assert_eq!(
                    (finding.seq, finding.kind),
                    (7, Difference::Altered),
                    "{column} = {change}: {}",
                    finding.detail
                );
                restore(&log, &original);
            }
        }
        assert_eq!(log.verdict(None).await.finding, None, "the clean log passes");
        let files = std::fs::read_dir(log.path.parent().unwrap()).unwrap().count();
        assert_eq!(files, 1, "reading leaves no other files");
    });
}

fn restore(log: &Log, original: &[u8]) {
    for suffix in ["-wal", "-shm"] {
        let mut side = log.path.clone().into_os_string();
        side.push(suffix);
        let _ = std::fs::remove_file(side);
    }
    std::fs::write(&log.path, original).unwrap();
}

#[test]
fn rows_deleted_are_missing() {
    tokio().block_on(async {
        for (condition, seq) in
            [("seq = 0", 0), ("seq = 7", 7), ("seq IN (3, 9)", 3), ("seq = 19", 19)]
        {
            let log = Log::new().await;
            log.sql(&format!("DELETE FROM dezky_audit_events WHERE {condition}")).await;
            check(&log.finding().await, seq, Difference::Missing);
        }
        let log = Log::new().await;
        log.sql("DELETE FROM dezky_audit_events").await;
        check(&log.finding().await, 0, Difference::Missing);
        // Renumbered, so that no number is missing.
        let log = Log::new().await;
        log.sql(
            "DELETE FROM dezky_audit_events WHERE seq = 7;
             UPDATE dezky_audit_events SET seq = -seq WHERE seq > 7;
             UPDATE dezky_audit_events SET seq = -seq - 1 WHERE seq < 0;",
        )
        .await;
        check(&log.finding().await, 7, Difference::Missing);
    });
}

#[test]
fn rows_swapped_are_reordered() {
    tokio().block_on(async {
        for (a, b) in [(7, 8), (3, 15), (0, 19), (0, 1), (18, 19)] {
            let log = Log::new().await;
            log.sql(&format!(
                "UPDATE dezky_audit_events SET seq = -1 WHERE seq = {a};
                 UPDATE dezky_audit_events SET seq = {a} WHERE seq = {b};
                 UPDATE dezky_audit_events SET seq = {b} WHERE seq = -1;"
            ))
            .await;
            check(&log.finding().await, a, Difference::Reordered);
        }
        // The events alone, under hashes that stay in place.
        let log = Log::new().await;
        log.sql(
            "CREATE TEMP TABLE h AS SELECT seq, prev_hash, hash FROM dezky_audit_events;
             UPDATE dezky_audit_events SET seq = -1 WHERE seq = 4;
             UPDATE dezky_audit_events SET seq = 4 WHERE seq = 11;
             UPDATE dezky_audit_events SET seq = 11 WHERE seq = -1;
             UPDATE dezky_audit_events SET prev_hash = (SELECT h.prev_hash FROM h WHERE h.seq = dezky_audit_events.seq),
                                           hash = (SELECT h.hash FROM h WHERE h.seq = dezky_audit_events.seq);",
        )
        .await;
        check(&log.finding().await, 4, Difference::Reordered);
        // One event moved away, leaving a gap.
        let log = Log::new().await;
        log.sql("UPDATE dezky_audit_events SET seq = 100 WHERE seq = 5").await;
        check(&log.finding().await, 5, Difference::Reordered);
    });
}

const COPY: &str = "INSERT INTO dezky_audit_events SELECT SEQ, randomblob(16), at, received_at, actor_type, actor_id, actor_email, actor_ip, action, outcome, resource_type, resource_id, resource_name, tenant_slug, partner_slug, source, NULL, metadata, salt, erasure, prev_hash, hash, actor_email_fold, search FROM dezky_audit_events WHERE seq = 7;";

#[test]
fn rows_inserted_are_named() {
    tokio().block_on(async {
        for (seq, expected) in [("20", 20), ("-5", -5), ("400", 400)] {
            let log = Log::new().await;
            log.sql(&COPY.replace("SEQ", seq)).await;
            check(&log.finding().await, expected, Difference::Inserted);
        }
        // Inserted in between, with the later ones moved up.
        for at in [0, 7, 12, 19] {
            let log = Log::new().await;
            log.sql(&format!(
                "UPDATE dezky_audit_events SET seq = -seq - 1 WHERE seq >= {at};
                 UPDATE dezky_audit_events SET seq = -seq WHERE seq < 0;
                 {}",
                COPY.replace("SEQ", &at.to_string()).replace("seq = 7", "seq = 2")
            ))
            .await;
            check(&log.finding().await, at, Difference::Inserted);
        }
    });
}

#[test]
fn a_head_that_was_changed_is_found() {
    tokio().block_on(async {
        let log = Log::new().await;
        log.sql("UPDATE dezky_audit_log SET head_hash = zeroblob(32)").await;
        check(&log.finding().await, 19, Difference::Altered);
        let log = Log::new().await;
        log.sql("UPDATE dezky_audit_log SET next_seq = 25").await;
        check(&log.finding().await, 20, Difference::Missing);
        let log = Log::new().await;
        log.sql("UPDATE dezky_audit_log SET next_seq = 15").await;
        check(&log.finding().await, 15, Difference::Altered);
    });
}

#[test]
fn a_beginning_that_was_cut_is_missing() {
    tokio().block_on(async {
        let log = Log::new().await;
        let head = log.verdict(None).await.head;
        log.sql(
            "UPDATE dezky_audit_log SET base_seq = 5, base_hash = (SELECT hash FROM dezky_audit_events WHERE seq = 4);
             DELETE FROM dezky_audit_events WHERE seq < 5;",
        )
        .await;
        check(&log.finding().await, 0, Difference::Missing);
        let expected = ExpectedHead { seq: head.next_seq - 1, hash: head.hash };
        check(&log.verdict(Some(expected)).await.finding.unwrap(), 0, Difference::Missing);
    });
}

#[test]
fn values_planted_with_a_forged_erasure_are_found() {
    tokio().block_on(async {
        let log = Log::new().await;
        let original = std::fs::read(&log.path).unwrap();
        let fields = [
            (Field::ActorIp, "actor_ip = '198.51.100.66'"),
            (Field::TenantSlug, "tenant_slug = 'victim'"),
            (Field::ResourceName, "resource_name = 'Planted'"),
            (Field::ActorEmail, "actor_email = 'eve@acme.test', actor_email_fold = 'eve@acme.test'"),
        ];
        for (field, change) in fields {
            restore(&log, &original);
            let runtime = ManualRuntime::new(5);
            let mut bare = dezky_core::testkit::named_event("bare");
            bare.tenant_slug = None;
            bare.actor.email = None;
            let sealed = bare.seal(&runtime);
            let store = open(&log.path).await;
            append(&store, vec![sealed.clone()]).await;
            store.close().await;
            // The surviving salts if nothing is erased, as an attacker with access to the database
            // would compute them, and an erasure that names the field.
            let mut erasure = Erasure::default();
            for present in [Field::ActorId, Field::ResourceId, Field::Metadata] {
                erasure.salts.insert(present, field_salt(sealed.salt(), present));
            }
            let nothing_erased = erasure.to_bytes();
            erasure.commitments.insert(Field::ExternalId, [7; 32]);
            for erasure in [nothing_erased, erasure.to_bytes()] {
                let erasure = hex::encode(erasure);
                log.sql(&format!(
                    "UPDATE dezky_audit_events SET salt = NULL, erasure = x'{erasure}', {change} WHERE seq = 20"
                ))
                .await;
                let finding = log.finding_after(field.name()).await;
                check(&finding, 20, Difference::Altered);
            }
        }
    });
}

#[test]
fn a_row_at_the_end_of_all_numbers_ends_verification() {
    tokio().block_on(async {
        let log = Log::new().await;
        log.sql("UPDATE dezky_audit_events SET seq = 9223372036854775807 WHERE seq = 7").await;
        check(&log.finding().await, 7, Difference::Reordered);
    });
}

#[test]
fn a_cut_tail_needs_an_expected_head() {
    tokio().block_on(async {
        let log = Log::new().await;
        let head = log.verdict(None).await.head;
        let expected = ExpectedHead { seq: head.next_seq - 1, hash: head.hash };
        assert_eq!(log.verdict(Some(expected)).await.finding, None);
        // Rows and head cut together leave an intact, shorter log.
        log.sql(
            "DELETE FROM dezky_audit_events WHERE seq >= 15;
             UPDATE dezky_audit_log SET next_seq = 15, head_hash = (SELECT hash FROM dezky_audit_events WHERE seq = 14);",
        )
        .await;
        assert_eq!(log.verdict(None).await.finding, None);
        check(&log.verdict(Some(expected)).await.finding.unwrap(), 15, Difference::Cut);
        // The rows alone.
        let log = Log::new().await;
        log.sql("DELETE FROM dezky_audit_events WHERE seq >= 15").await;
        let head = log.verdict(None).await;
        check(&head.finding.unwrap(), 15, Difference::Missing);
        check(&log.verdict(Some(expected)).await.finding.unwrap(), 15, Difference::Cut);
    });
}

#[test]
fn events_appended_while_verifying_are_no_difference() {
    tokio().block_on(async {
        let log = Log::new().await;
        let store = Arc::new(open(&log.path).await);
        let runtime = ManualRuntime::new(77);
        let mut events = EventGenerator::new(&runtime);
        for _ in 0..20 {
            let batch: Vec<_> = (0..50)
                .map(|_| {
                    let mut event = events.next_event();
                    event.external_id = None;
                    event.seal(&runtime)
                })
                .collect();
            let (verdict, ()) =
                futures_util::join!(verify(&*store, None, |_| ()), append(&store, batch));
            assert_eq!(verdict.unwrap().finding, None);
        }
        assert_eq!(store.state().await.unwrap().head.next_seq, 1_020);
    });
}

#[test]
fn a_foreign_newer_or_broken_database_is_refused_unchanged() {
    tokio().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let foreign = folder.path().join("foreign.db");
        let mut connection = raw(&foreign).await;
        sqlx::raw_sql("CREATE TABLE customers (id INTEGER)")
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        let newer = folder.path().join("newer.db");
        open(&newer).await.close().await;
        let mut connection = raw(&newer).await;
        sqlx::raw_sql("UPDATE dezky_schema SET version = 99")
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        let broken = folder.path().join("broken.db");
        std::fs::write(&broken, [7; 9_000]).unwrap();
        for (path, kind) in [
            (&foreign, ErrorKind::StoreForeign),
            (&newer, ErrorKind::SchemaNewer),
            (&broken, ErrorKind::StoreCorrupt),
        ] {
            let before = std::fs::read(path).unwrap();
            for config in [SqliteConfig::new(path), SqliteConfig::read_only(path)] {
                let error = SqliteAuditStore::open(config, &TokioRuntime).await.err().unwrap();
                assert_eq!(error.kind(), kind, "{error}");
                let name = path.file_name().unwrap().to_str().unwrap();
                assert!(error.to_string().contains(name), "{error} names the file");
            }
            assert_eq!(std::fs::read(path).unwrap(), before, "nothing changed");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "nothing was left there");
        let missing = folder.path().join("missing.db");
        let config = SqliteConfig::read_only(&missing);
        let error = SqliteAuditStore::open(config, &TokioRuntime).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        assert!(!missing.exists(), "reading makes no file");
        let config = SqliteConfig::new(folder.path().join("no/such/folder.db"));
        let error = SqliteAuditStore::open(config, &TokioRuntime).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    });
}

#[test]
fn an_altered_row_holds_up_nobody() {
    tokio().block_on(async {
        let log = Log::new().await;
        let store = open(&log.path).await;
        let rows = store.scan(7, 1).await.unwrap();
        let again = rows.into_iter().next().unwrap().unwrap();
        let Evidence::Salt(salt) = again.evidence else { panic!("nothing was erased") };
        let again = SealedEvent::new(again.stored.event, salt);
        log.sql("UPDATE dezky_audit_events SET outcome = 'maybe', metadata = 'x' WHERE seq = 7")
            .await;
        let fresh = dezky_core::testkit::named_event("fresh").seal(&TokioRuntime);
        let (replayed, unrelated) = futures_util::join!(
            store.append(vec![again], AppendOptions::default()),
            store.append(vec![fresh], AppendOptions::default()),
        );
        assert_eq!(replayed.unwrap().conflicts(), 1, "it is there, and differs");
        assert_eq!(unrelated.unwrap().appended(), 1);
    });
}

#[test]
fn a_bad_row_of_the_outbox_goes_to_the_quarantine() {
    tokio().block_on(async {
        let log = Log::new().await;
        let store = open(&log.path).await;
        let good = |name| dezky_core::testkit::named_event(name).seal(&TokioRuntime);
        let mut bad = dezky_core::testkit::named_event("bad");
        bad.action = "BAD ACTION".into();
        let bad = bad.seal(&TokioRuntime).to_json();
        // Written by hand: an event that would vouch for an erasure.
        let mut forged = dezky_core::testkit::named_event("forged");
        forged.action = "dezky.erased".into();
        let forged = forged.seal(&TokioRuntime).to_json();
        store.stage(vec![good("first")]).await.unwrap();
        log.sql(&format!(
            "INSERT INTO dezky_outbox (event) VALUES ('{{\"v\":2}}'), ('{bad}'), ('{forged}');"
        ))
        .await;
        store.stage(vec![good("second")]).await.unwrap();
        let relayed = store.relay(10).await.unwrap();
        assert_eq!((relayed.appended, relayed.quarantined), (2, 3));
        assert_eq!(store.relay(10).await.unwrap(), dezky_core::store::Relayed::default());
        let kept = store.quarantined(0, 10).await.unwrap();
        let reasons: Vec<_> = kept.iter().map(|k| k.item.reason.as_str()).collect();
        assert_eq!(reasons, ["unreadable", "event_invalid", "event_invalid"]);
        store.close().await;
        assert_eq!(log.verdict(None).await.finding, None);
    });
}

#[test]
fn a_tail_says_that_its_place_is_gone() {
    tokio().block_on(async {
        let log = Log::new().await;
        let store: Arc<dyn AuditStore> = Arc::new(open(&log.path).await);
        let mut tail = store.tail(Arc::new(TokioRuntime), 0);
        for _ in 0..20 {
            tail.next().await.unwrap();
        }
        let mut early = store.tail(Arc::new(TokioRuntime), 2);
        log.sql(
            "DELETE FROM dezky_audit_events WHERE seq >= 15 OR seq < 5;
             UPDATE dezky_audit_log SET next_seq = 15, base_seq = 5;",
        )
        .await;
        assert_eq!(tail.next().await.unwrap_err().kind(), ErrorKind::StoreCorrupt);
        assert_eq!(early.next().await.unwrap_err().kind(), ErrorKind::Pruned);
        let mut gap = store.tail(Arc::new(TokioRuntime), 8);
        log.sql("DELETE FROM dezky_audit_events WHERE seq = 8").await;
        assert_eq!(gap.next().await.unwrap_err().kind(), ErrorKind::StoreCorrupt);
    });
}

#[test]
fn tables_of_your_own_commit_with_their_events() {
    tokio().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shared.db");
        let mut own = raw(&path).await;
        sqlx::raw_sql("CREATE TABLE tenants (slug TEXT)").execute(&mut own).await.unwrap();
        let mut config = SqliteConfig::new(&path);
        config.shared = true;
        let store = SqliteAuditStore::open(config, &TokioRuntime).await.unwrap();
        let event = dezky_core::testkit::named_event("acme").seal(&TokioRuntime);
        for commit in [false, true] {
            let mut tx = own.begin().await.unwrap();
            sqlx::query("INSERT INTO tenants VALUES ('acme')").execute(&mut *tx).await.unwrap();
            SqliteAuditStore::stage_in(&mut tx, std::slice::from_ref(&event)).await.unwrap();
            if commit {
                tx.commit().await.unwrap();
            } else {
                tx.rollback().await.unwrap();
            }
            let relayed = store.relay(10).await.unwrap();
            assert_eq!(relayed.appended, usize::from(commit), "both or neither");
        }
        let tenants: i64 =
            sqlx::query_scalar("SELECT count(*) FROM tenants").fetch_one(&mut own).await.unwrap();
        assert_eq!(tenants, 1);
        assert_eq!(store.state().await.unwrap().head.next_seq, 1);
    });
}

#[cfg(unix)]
#[test]
fn a_new_file_is_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    tokio().block_on(async {
        let log = Log::new().await;
        assert_eq!(std::fs::metadata(&log.path).unwrap().permissions().mode() & 0o777, 0o600);
    });
}

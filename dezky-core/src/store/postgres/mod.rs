//! The log in PostgreSQL 13 or newer.
//!
//! Tokio-only, because sqlx is built for tokio here.

mod codec;
mod config;
mod database;
mod error;
mod insert;
mod list_scan;
mod listen;
mod schema;
mod search;
mod structure;
mod transaction;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use async_trait::async_trait;
use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres, query};
use uuid::Uuid;

pub use self::config::{PostgresConfig, postgres_options};
pub use self::database::PostgresDatabase;
pub use self::error::postgres_error;
pub use self::transaction::PostgresTransaction;
use super::codec::{
    Columns, corrupt, existing_row, lease_row, limit, missing_log, quarantined_item, scanned_row,
    signed, staged_event,
};
use super::engine::{
    CursorKey, ExistingRow, LeaseRow, ListScan, NewRow, RowStore, RowTx, ScanEnd, ScanPage,
    StagedEvent, TallyScan,
};
use super::operator::at_start;
use super::sql::{COLUMNS, COMPARED_COLUMNS};
use super::{
    Anomaly, Capabilities, ChainedStore, Extent, Head, LogState, QuarantinedItem, ScannedRow,
    TallyCount,
};
use crate::event::uuid_v7;
use crate::source::QuarantineItem;
use crate::{Error, ErrorKind, Result, Runtime, SealedEvent, Timestamp};

/// The channel of notifications about the log's head.
const CHANNEL: &str = "audit";

/// The privileges that the log needs, and no more.
const RIGHTS: &[(&str, &[&str])] = &[
    ("dezky_schema", &["SELECT"]),
    ("dezky_audit_log", &["SELECT", "UPDATE"]),
    ("dezky_audit_events", &["SELECT", "INSERT"]),
    ("dezky_cursors", &["SELECT", "INSERT", "UPDATE"]),
    ("dezky_leases", &["SELECT", "INSERT", "UPDATE"]),
    ("dezky_quarantine", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("dezky_outbox", &["SELECT", "INSERT", "DELETE"]),
];

/// Maximum number of quarantine items per statement; each may have 64 KiB.
const QUARANTINE_PART: usize = 200;

/// An [`AuditStore`](super::AuditStore) in PostgreSQL.
///
/// Acknowledged data is on the server's disk (`synchronous_commit` is never off here). Any number
/// of processes may use one log: they take turns on its head, and are notified of each other's
/// events.
///
/// ```no_run
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::{AuditStore, PostgresAuditStore, PostgresConfig};
/// use dezky_core::{Actor, NewEvent};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// let url = "postgres://dezky@db.example.com/platform?sslmode=verify-full";
/// let store = PostgresAuditStore::open(PostgresConfig::new(url), &TokioRuntime).await?;
/// let event = NewEvent::new("tenant.created", Actor::user("u-1")).seal(&TokioRuntime);
/// store.append(vec![event], Default::default()).await?;
/// # Ok(())
/// # }
/// ```
pub type PostgresAuditStore = ChainedStore<PostgresRows>;

impl PostgresAuditStore {
    /// Opens the log at the configuration's URL, and creates or migrates it if configured.
    ///
    /// # Errors
    /// `config_invalid` if the URL or a bound is wrong, the server is too old or read-only, or the
    /// role lacks privileges, all of which are named; `store_foreign`, `store_corrupt`,
    /// `schema_newer`. Nothing was changed then. `store_unavailable` if no server answers within
    /// `acquire_timeout`.
    pub async fn open(config: PostgresConfig, runtime: &dyn Runtime) -> Result<Self> {
        let pool = config.pool()?;
        Self::with_pool(pool, config, runtime).await
    }

    /// Like [`open`](Self::open), on your own pool; see [`PostgresConfig::for_pool`]. Each call in
    /// progress uses one of its connections; one more connection with the same options listens for
    /// notifications.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub async fn with_pool(
        pool: PgPool,
        config: PostgresConfig,
        runtime: &dyn Runtime,
    ) -> Result<Self> {
        config.check()?;
        let database = PostgresDatabase::new(pool, &config);
        let rows = PostgresRows::open(database, &config, runtime).await;
        rows.map(Self::new).map_err(at_start)
    }

    /// Writes events into the outbox within your own transaction (`&mut tx` derefs to the
    /// connection), so that they commit with your mutation or not at all. Assigns no `seq` and
    /// does not lock the head. Call [`relay`](super::AuditStore::relay) after your commit.
    pub async fn stage_in(connection: &mut PgConnection, events: &[SealedEvent]) -> Result<()> {
        super::chained::check_events(events)?;
        if events.is_empty() {
            return Ok(());
        }
        // Not prepared, because a pooler may be behind the caller's connection.
        let staged = staging(events).persistent(false).execute(connection).await;
        staged.map(drop).map_err(postgres_error)
    }

    /// The log's connections, for other data in the same database.
    pub fn database(&self) -> PostgresDatabase {
        self.rows().database.clone()
    }

    /// The schema version of the log in this build.
    pub fn schema_version() -> usize {
        schema::known_version()
    }

    /// Closes the connections, after waiting for those in use.
    pub async fn close(&self) {
        self.rows().database.close().await;
    }
}

/// The rows of a [`PostgresAuditStore`].
pub struct PostgresRows {
    database: PostgresDatabase,
}

impl PostgresRows {
    async fn open(
        database: PostgresDatabase,
        config: &PostgresConfig,
        runtime: &dyn Runtime,
    ) -> Result<Self> {
        let mut tx = database.read().await?;
        schema::check_server(&mut tx, config.must_write).await?;
        let found = schema::inspect(&mut tx).await?;
        tx.commit().await?;
        let migrates = config.migrate;
        let behind = found.is_behind(schema::known_version(), config.shared, migrates)?;
        if behind {
            let log_id = uuid_v7(runtime.now(), runtime);
            let mut cursor_key = [0; 32];
            runtime.fill_random(&mut cursor_key);
            let mut tx = database.begin_migration().await?;
            schema::migrate(&mut tx, log_id, &cursor_key).await?;
            tx.commit().await?;
        }
        database.check_rights(RIGHTS).await?;
        database.find_scope().await?;
        Ok(Self { database })
    }

    /// Runs a query in its own transaction, and returns its rows.
    async fn read(&self, query: Query<'_, Postgres, PgArguments>) -> Result<Vec<PgRow>> {
        let mut tx = self.database.read().await?;
        let rows = tx.fetch_all(query).await?;
        tx.commit().await?;
        Ok(rows)
    }
}

#[async_trait]
impl RowStore for PostgresRows {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn begin(&self) -> Result<Box<dyn RowTx>> {
        let mut tx = self.database.begin_log().await?;
        // The statement waits for the previous writer, and then reads the head that it left.
        let head = log_state(&mut tx, " FOR UPDATE").await?.head;
        Ok(Box::new(PostgresTx { tx, head, database: self.database.clone() }))
    }

    async fn state(&self) -> Result<LogState> {
        let mut tx = self.database.read().await?;
        let state = log_state(&mut tx, "").await?;
        tx.commit().await?;
        Ok(state)
    }

    async fn scan(&self, from_seq: i64, max_rows: usize) -> Result<Vec<ScannedRow>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM dezky_audit_events WHERE seq >= $1 ORDER BY seq LIMIT $2"
        );
        let query = query(AssertSqlSafe(sql)).bind(from_seq).bind(limit(max_rows));
        Ok(self.read(query).await?.iter().map(scanned_row).collect())
    }

    async fn seq_of(&self, id: Uuid) -> Result<Option<i64>> {
        let query = query("SELECT seq FROM dezky_audit_events WHERE id = $1").bind(id);
        self.read(query).await?.first().map(|row| get(row, "seq")).transpose()
    }

    async fn tally(&self, scan: &TallyScan<'_>) -> Result<(Vec<TallyCount>, ScanEnd)> {
        // One snapshot for all windows of the scan.
        let mut tx = self.database.read_scan().await?;
        let counted = super::list_scan::tally(&mut tx, scan).await?;
        tx.commit().await?;
        Ok(counted)
    }

    async fn list(&self, scan: &ListScan<'_>) -> Result<ScanPage> {
        // One snapshot for all windows of the scan.
        let mut tx = self.database.read_scan().await?;
        let page = search::list(&mut tx, scan).await?;
        tx.commit().await?;
        Ok(page)
    }

    async fn examine(&self, extent: Extent) -> Result<Vec<Anomaly>> {
        // One snapshot for all comparisons, with the settings of a scan.
        let mut tx = self.database.examination().await?;
        let anomalies = structure::examine(&mut tx, extent).await?;
        tx.commit().await?;
        Ok(anomalies)
    }

    async fn cursor(&self, source: &str) -> Result<Option<String>> {
        let mut tx = self.database.read().await?;
        let cursor = cursor(&mut tx, source).await?;
        tx.commit().await?;
        Ok(cursor)
    }

    async fn quarantined(&self, after: i64, max_items: usize) -> Result<Vec<QuarantinedItem>> {
        let query = query(
            "SELECT number, source, key, reason, detail, raw, at, seen FROM dezky_quarantine WHERE number > $1 ORDER BY number LIMIT $2",
        );
        let rows = self.read(query.bind(after).bind(limit(max_items))).await?;
        rows.iter().map(quarantined_item).collect()
    }

    async fn cursors(&self) -> Result<Vec<(String, String)>> {
        let query = query("SELECT source, cursor FROM dezky_cursors ORDER BY source");
        let rows = self.read(query).await?;
        rows.iter().map(|row| Ok((get(row, "source")?, get(row, "cursor")?))).collect()
    }

    async fn has_staged(&self) -> Result<bool> {
        let query = query("SELECT EXISTS (SELECT 1 FROM dezky_outbox) AS staged");
        let rows = self.read(query).await?;
        rows.first().map_or(Ok(false), |row| get(row, "staged"))
    }

    async fn changed(&self, next_seq: u64) {
        self.database.changed(CHANNEL, next_seq).await;
    }
}

struct PostgresTx {
    tx: PostgresTransaction,
    /// The head, which no other writer can change: its row is locked.
    head: Head,
    database: PostgresDatabase,
}

#[async_trait]
impl RowTx for PostgresTx {
    async fn head(&mut self) -> Result<Head> {
        Ok(self.head)
    }

    async fn existing(&mut self, events: &[&SealedEvent]) -> Result<Vec<ExistingRow>> {
        let sql = format!(
            "SELECT {COMPARED_COLUMNS} FROM unnest($1::uuid[]) AS k (id) JOIN dezky_audit_events AS e ON e.id = k.id UNION ALL SELECT {COMPARED_COLUMNS} FROM unnest($2::text[], $3::text[]) AS k (source, external_id) JOIN dezky_audit_events AS e ON e.source = k.source AND e.external_id = k.external_id"
        );
        let ids: Vec<Uuid> = events.iter().map(|sealed| sealed.event().id).collect();
        let (sources, external_ids): (Vec<&str>, Vec<&str>) = events
            .iter()
            .map(|sealed| sealed.event())
            .filter_map(|event| Some((event.source.as_str(), event.external_id.as_deref()?)))
            .unzip();
        let query = query(AssertSqlSafe(sql)).bind(ids).bind(sources).bind(external_ids);
        Ok(self.tx.fetch_all(query).await?.iter().map(existing_row).collect())
    }

    async fn insert(&mut self, rows: &[NewRow<'_>]) -> Result<()> {
        insert::insert(&mut self.tx, rows).await
    }

    async fn set_head(&mut self, head: Head) -> Result<()> {
        // PostgreSQL sends notifications at commit, in commit order.
        let query = query(
            "WITH moved AS (UPDATE dezky_audit_log SET next_seq = $1, head_hash = $2) SELECT pg_notify($3, $4)",
        );
        let query = query
            .bind(signed(head.next_seq)?)
            .bind(&head.hash[..])
            .bind(listen::CHANNEL)
            .bind(self.database.payload(CHANNEL, head.next_seq));
        self.tx.execute(query).await?;
        self.head = head;
        Ok(())
    }

    async fn cursor(&mut self, source: &str) -> Result<Option<String>> {
        cursor(&mut self.tx, source).await
    }

    async fn set_identity(&mut self, log_id: Uuid, cursor_key: &CursorKey) -> Result<()> {
        let query = query("UPDATE dezky_audit_log SET log_id = $1, cursor_key = $2");
        self.tx.execute(query.bind(log_id).bind(&cursor_key.0[..])).await.map(drop)
    }

    async fn set_cursor(&mut self, source: &str, cursor: &str) -> Result<()> {
        storable("a cursor's source", source)?;
        storable("a cursor", cursor)?;
        let query = query(
            "INSERT INTO dezky_cursors (source, cursor) VALUES ($1, $2) ON CONFLICT (source) DO UPDATE SET cursor = excluded.cursor",
        );
        self.tx.execute(query.bind(source).bind(cursor)).await.map(drop)
    }

    async fn now(&mut self) -> Result<Timestamp> {
        let query =
            query("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now");
        let rows = self.tx.fetch_all(query).await?;
        let row = rows.first().ok_or_else(|| corrupt("the server returned no time"))?;
        Ok(Timestamp::from_millis_clamped(get(row, "now")?))
    }

    async fn lease(&mut self, name: &str) -> Result<Option<LeaseRow>> {
        storable("a lease's name", name)?;
        let query =
            query("SELECT holder, token, expires_at, length_ms FROM dezky_leases WHERE name = $1");
        let row = self.tx.fetch_optional(query.bind(name)).await?;
        row.as_ref().map(lease_row).transpose()
    }

    async fn set_lease(&mut self, name: &str, row: &LeaseRow) -> Result<()> {
        storable("a lease's holder", &row.holder)?;
        let query = query(
            "INSERT INTO dezky_leases (name, holder, token, expires_at, length_ms) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = excluded.token, expires_at = excluded.expires_at, length_ms = excluded.length_ms",
        );
        let query = query
            .bind(name)
            .bind(&row.holder)
            .bind(signed(row.token)?)
            .bind(row.expires_at.as_millis())
            .bind(row.length_ms());
        self.tx.execute(query).await.map(drop)
    }

    async fn quarantine(&mut self, items: &[QuarantineItem]) -> Result<usize> {
        // ON CONFLICT accepts each key once per statement, so repeated ones are counted here.
        let mut indexes: HashMap<(&str, &str), usize> = HashMap::new();
        let mut counted: Vec<(&QuarantineItem, i64)> = Vec::new();
        for item in items {
            match indexes.entry((&item.source, &item.key)) {
                Entry::Occupied(index) => counted[*index.get()].1 += 1,
                Entry::Vacant(free) => {
                    free.insert(counted.len());
                    counted.push((item, 1));
                }
            }
        }
        let mut new = 0;
        for part in counted.chunks(QUARANTINE_PART) {
            new += part.len() - self.count_quarantined(part).await?;
            self.upsert_quarantine(part, "q.seen + excluded.seen").await?;
        }
        Ok(new)
    }

    async fn keep_quarantined(&mut self, items: &[QuarantinedItem]) -> Result<()> {
        let counted: Vec<(&QuarantineItem, i64)> =
            items.iter().map(|kept| Ok((&kept.item, signed(kept.seen)?))).collect::<Result<_>>()?;
        for part in counted.chunks(QUARANTINE_PART) {
            self.upsert_quarantine(part, "greatest(q.seen, excluded.seen)").await?;
        }
        Ok(())
    }

    async fn release(&mut self, numbers: &[i64]) -> Result<usize> {
        let query = query("DELETE FROM dezky_quarantine WHERE number = ANY($1)");
        let deleted = self.tx.execute(query.bind(numbers)).await?;
        Ok(usize::try_from(deleted).unwrap_or(usize::MAX))
    }

    async fn stage(&mut self, events: &[SealedEvent]) -> Result<()> {
        self.tx.execute(staging(events)).await.map(drop)
    }

    async fn staged(&mut self, max_events: usize) -> Result<Vec<StagedEvent>> {
        let query = query("SELECT number, event FROM dezky_outbox ORDER BY number LIMIT $1");
        let rows = self.tx.fetch_all(query.bind(limit(max_events))).await?;
        rows.iter()
            .map(|row| {
                let number = row.int("number").map_err(corrupt)?;
                Ok(staged_event(number, row.text("event").map_err(corrupt)?))
            })
            .collect()
    }

    async fn unstage(&mut self, numbers: &[i64]) -> Result<()> {
        let query = query("DELETE FROM dezky_outbox WHERE number = ANY($1)");
        self.tx.execute(query.bind(numbers)).await.map(drop)
    }

    async fn touch(&mut self) -> Result<()> {
        // Two statements, because within one the deletion would not see the row.
        let query = query("INSERT INTO dezky_outbox (event) VALUES ('') RETURNING number");
        let rows = self.tx.fetch_all(query).await?;
        let row = rows.first().ok_or_else(|| corrupt("the outbox gives no number"))?;
        self.unstage(&[get(row, "number")?]).await
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        self.tx.commit().await
    }
}

impl PostgresTx {
    /// The number of items that are already in the quarantine.
    async fn count_quarantined(&mut self, items: &[(&QuarantineItem, i64)]) -> Result<usize> {
        let query = query(
            "SELECT count(*) AS known FROM unnest($1::text[], $2::text[]) AS k (source, key) JOIN dezky_quarantine AS q ON q.source = k.source AND q.key = k.key",
        );
        let (sources, keys): (Vec<&str>, Vec<&str>) =
            items.iter().map(|(item, _)| (item.source.as_str(), item.key.as_str())).unzip();
        let rows = self.tx.fetch_all(query.bind(sources).bind(keys)).await?;
        let known: i64 = rows.first().map_or(Ok(0), |row| get(row, "known"))?;
        Ok(usize::try_from(known).unwrap_or(0))
    }

    /// Stores items in their order; `seen` is the expression for the count of existing ones.
    async fn upsert_quarantine(
        &mut self,
        items: &[(&QuarantineItem, i64)],
        seen: &'static str,
    ) -> Result<()> {
        let sql = format!(
            "INSERT INTO dezky_quarantine AS q (source, key, reason, detail, raw, at, seen) SELECT k.source, k.key, k.reason, k.detail, k.raw, k.at, k.seen FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::bigint[], $7::bigint[]) WITH ORDINALITY AS k (source, key, reason, detail, raw, at, seen, place) ORDER BY k.place ON CONFLICT (source, key) DO UPDATE SET seen = {seen}"
        );
        let texts = |text: fn(&QuarantineItem) -> &str| -> Vec<&str> {
            items.iter().map(|(item, _)| text(item)).collect()
        };
        let query = query(AssertSqlSafe(sql))
            .bind(texts(|item| &item.source))
            .bind(texts(|item| &item.key))
            .bind(texts(|item| &item.reason))
            .bind(texts(|item| &item.detail))
            .bind(items.iter().map(|(item, _)| item.raw.as_slice()).collect::<Vec<_>>())
            .bind(items.iter().map(|(item, _)| item.at.as_millis()).collect::<Vec<_>>())
            .bind(items.iter().map(|(_, seen)| *seen).collect::<Vec<_>>());
        self.tx.execute(query).await.map(drop)
    }
}

async fn log_state(tx: &mut PostgresTransaction, lock: &'static str) -> Result<LogState> {
    let sql = format!(
        "SELECT log_id, cursor_key, base_seq, base_hash, next_seq, head_hash FROM dezky_audit_log{lock}"
    );
    let row = tx.fetch_optional(query(AssertSqlSafe(sql))).await?.ok_or_else(missing_log)?;
    super::codec::log_state(&row)
}

async fn cursor(tx: &mut PostgresTransaction, source: &str) -> Result<Option<String>> {
    storable("a cursor's source", source)?;
    let query = query("SELECT cursor FROM dezky_cursors WHERE source = $1");
    let row = tx.fetch_optional(query.bind(source)).await?;
    row.map(|row| get(&row, "cursor")).transpose()
}

/// The statement that writes events into the outbox, in their order.
fn staging(events: &[SealedEvent]) -> Query<'static, Postgres, PgArguments> {
    let texts: Vec<String> = events.iter().map(SealedEvent::to_json).collect();
    query("INSERT INTO dezky_outbox (event) SELECT k.event FROM unnest($1::text[]) WITH ORDINALITY AS k (event, place) ORDER BY k.place")
        .bind(texts)
}

/// Refuses names with U+0000, which come from callers. Texts of events are in normal form and
/// don't have it.
fn storable(what: &str, text: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(Error::new(
            ErrorKind::ConfigInvalid,
            format!("{what} contains U+0000, which PostgreSQL can't store: remove it"),
        ));
    }
    Ok(())
}

fn get<'r, T>(row: &'r PgRow, column: &'static str) -> Result<T>
where
    T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
{
    super::sql::get(row, column).map_err(corrupt)
}

//! Comparison of tables, indexes, triggers, rules and policies with the schema.

use sqlx::{AssertSqlSafe, query};

use super::get;
use super::transaction::PostgresTransaction;
use crate::Result;
use crate::store::structure::{Object, compare, unreached};
use crate::store::{Anomaly, Extent};

/// The table behind the lists.
const EVENTS: &str = "dezky_audit_events";
/// The optional index and its definition.
const SEARCH_INDEX: (&str, &str) = (
    "dezky_audit_events_search",
    "CREATE INDEX dezky_audit_events_search ON dezky_audit_events USING gin (search gin_trgm_ops)",
);
/// Precedes the columns in the definition of an index that has an order.
const BTREE: &str = " USING btree (";
/// The suffix by which [`CATALOGUE`] marks an index that the planner does not use.
const NOT_VALID: &str = " (not valid)";

/// The result of [`CATALOGUE`] on a database that has only the log's schema: per line the
/// kind, name, table and definition of an object, separated by tabs. A test compares it
/// with a freshly migrated database and prints the differences.
const EXPECTED: &str = include_str!("catalogue.tsv");

/// The relations to which our names resolve, their columns, indexes, constraints, triggers,
/// rules and policies, and entries of the `search_path` that redirect names. Catalogue names
/// are qualified, so that the `search_path` can't redirect these.
const CATALOGUE: &str = r"
WITH ours AS (
    SELECT c.oid, c.relname::text AS name, c.relkind, c.relpersistence,
        c.relrowsecurity OR c.relforcerowsecurity AS secured
    FROM pg_catalog.pg_class c
    WHERE c.relname LIKE 'dezky\_%' AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
        AND pg_catalog.pg_table_is_visible(c.oid)
)
SELECT 'table' AS kind, name, name AS of_table, CASE
        WHEN relkind = 'r' AND relpersistence = 'p' THEN 'a table'
        WHEN relkind = 'r' AND relpersistence = 'u' THEN 'an unlogged table'
        WHEN relkind = 'r' THEN 'a temporary table'
        WHEN relkind = 'p' THEN 'a partitioned table'
        WHEN relkind = 'v' THEN 'a view'
        WHEN relkind = 'm' THEN 'a materialized view'
        ELSE 'a foreign table' END AS definition
    FROM ours
UNION ALL
SELECT 'column', o.name || '.' || a.attname, o.name,
        pg_catalog.format_type(a.atttypid, a.atttypmod)
        || CASE WHEN a.attcollation IN (0, 100) THEN '' ELSE ' COLLATE ' || (
            SELECT pg_catalog.quote_ident(k.collname) FROM pg_catalog.pg_collation k
            WHERE k.oid = a.attcollation) END
        || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
        || CASE WHEN a.attidentity = '' THEN '' ELSE ' IDENTITY' END
        || CASE WHEN a.attgenerated = '' THEN '' ELSE ' GENERATED' END
        || coalesce(' DEFAULT ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid), '')
    FROM ours o
    JOIN pg_catalog.pg_attribute a
        ON a.attrelid = o.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
UNION ALL
SELECT 'index', c.relname::text, o.name, pg_catalog.pg_get_indexdef(i.indexrelid, 0, true)
        || CASE WHEN i.indisvalid AND i.indisready AND i.indislive THEN '' ELSE ' (not valid)' END
    FROM ours o
    JOIN pg_catalog.pg_index i ON i.indrelid = o.oid
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
UNION ALL
SELECT 'constraint', c.conname::text, o.name, pg_catalog.pg_get_constraintdef(c.oid, true)
    FROM ours o
    JOIN pg_catalog.pg_constraint c
        ON c.conrelid = o.oid AND c.contype IN ('p', 'u', 'c', 'f', 'x')
UNION ALL
SELECT 'trigger', t.tgname::text, o.name,
        'calls ' || t.tgfoid::regproc::text
        || CASE t.tgenabled WHEN 'D' THEN ', disabled' ELSE '' END
    FROM ours o
    JOIN pg_catalog.pg_trigger t ON t.tgrelid = o.oid AND NOT t.tgisinternal
UNION ALL
SELECT 'rule', r.rulename::text, o.name, 'a rule'
    FROM ours o
    JOIN pg_catalog.pg_rewrite r ON r.ev_class = o.oid AND o.relkind IN ('r', 'p', 'f')
UNION ALL
SELECT 'policy', p.polname::text, o.name, 'a policy'
    FROM ours o
    JOIN pg_catalog.pg_policy p ON p.polrelid = o.oid
UNION ALL
SELECT 'row security', o.name, o.name, 'switched on' FROM ours o WHERE o.secured
UNION ALL
SELECT 'inheritance', i.inhrelid::regclass::text, o.name, 'its rows are read as rows of ' || i.inhparent::regclass::text
    FROM ours o
    JOIN pg_catalog.pg_inherits i ON o.oid IN (i.inhparent, i.inhrelid)
UNION ALL
SELECT 'another of that name', n.nspname || '.' || c.relname, o.name,
        'the search_path has both schemas'
    FROM ours o
    JOIN pg_catalog.pg_class c
        ON c.relname = o.name AND c.oid <> o.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY (pg_catalog.current_schemas(true))
UNION ALL
SELECT 'search_path', s.schema::text, 'every table', 'comes before pg_catalog, so its functions and operators override the built-in ones'
    FROM unnest(pg_catalog.current_schemas(true)) WITH ORDINALITY AS s (schema, place)
    WHERE s.schema NOT LIKE 'pg\_temp%' AND s.place < (
        SELECT k.place FROM unnest(pg_catalog.current_schemas(true)) WITH ORDINALITY AS k (schema, place)
        WHERE k.schema = 'pg_catalog')
ORDER BY 1, 2";

/// Reads the table itself, without its indexes.
const BY_TABLE: &str = "SET LOCAL enable_seqscan = on; SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off";
/// Reads by an index, as lists do.
const BY_INDEX: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = on; SET LOCAL enable_indexonlyscan = on";

/// Returns the reasons not to trust reads of the log.
pub(super) async fn examine(tx: &mut PostgresTransaction, extent: Extent) -> Result<Vec<Anomaly>> {
    let mut expected = listed(EXPECTED);
    let mut found = objects(tx).await?;
    // The definitions of other components' tables are not known here; triggers, rules and
    // policies are never part of any.
    found.retain(|object| {
        !is_definition(object) || expected.iter().any(|ours| ours.table == object.table)
    });
    let (name, definition) = SEARCH_INDEX;
    if let Some(index) = found.iter_mut().find(|object| object.name == name) {
        // The search does not use it while it is not valid.
        index.definition.truncate(index.definition.trim_end_matches(NOT_VALID).len());
        expected.push(Object { definition: definition.to_owned(), ..index.clone() });
    }
    let mut anomalies = named(compare(&expected, &found));
    if extent == Extent::Rows {
        for index in found.iter().filter(|object| object.kind == "index") {
            if index.table == EVENTS && (expected.contains(index) || is_plain(index)) {
                anomalies.extend(reached(tx, index).await?);
            }
        }
    }
    Ok(anomalies)
}

/// Compares the definitions of a component's tables with its catalogue.
pub(super) async fn definitions(
    tx: &mut PostgresTransaction,
    catalogue: &str,
) -> Result<Vec<Anomaly>> {
    let expected = listed(catalogue);
    let mut found = objects(tx).await?;
    // Triggers, rules and policies on any table are found with the log's structure.
    found.retain(|object| {
        is_definition(object) && expected.iter().any(|ours| ours.table == object.table)
    });
    Ok(named(compare(&expected, &found)))
}

fn is_definition(object: &Object) -> bool {
    matches!(&*object.kind, "table" | "column" | "index" | "constraint")
}

/// Adds the fix for indexes that are not valid.
fn named(mut anomalies: Vec<Anomaly>) -> Vec<Anomaly> {
    for anomaly in anomalies.iter_mut().filter(|a| a.detail.ends_with(NOT_VALID)) {
        anomaly.fix = format!("REINDEX INDEX CONCURRENTLY {}", anomaly.object);
    }
    anomalies
}

/// The objects of a catalogue in the form of [`EXPECTED`].
fn listed(catalogue: &str) -> Vec<Object> {
    let object = |line: &str| {
        let mut parts = line.splitn(4, '\t').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        Object { kind: part(), name: part(), table: part(), definition: part() }
    };
    catalogue.lines().map(object).collect()
}

async fn objects(tx: &mut PostgresTransaction) -> Result<Vec<Object>> {
    let rows = tx.fetch_all(query(CATALOGUE)).await?;
    rows.iter()
        .map(|row| {
            Ok(Object {
                kind: get(row, "kind")?,
                name: get(row, "name")?,
                table: get(row, "of_table")?,
                definition: get(row, "definition")?,
            })
        })
        .collect()
}

/// Whether an additional index covers all rows by plain columns. The planner may prefer it
/// for a list, so it has to cover all of them.
fn is_plain(index: &Object) -> bool {
    let columns = index.definition.split_once(BTREE).and_then(|(_, keys)| keys.strip_suffix(')'));
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_, ".contains(c);
    columns.is_some_and(|columns| columns.chars().all(is_name))
}

/// Compares the number of rows that the index reaches with that of the table. Its definition equals
/// the schema's or has only plain columns, so it is safe to run.
async fn reached(tx: &mut PostgresTransaction, index: &Object) -> Result<Option<Anomaly>> {
    let Some((_, keys)) = index.definition.split_once(BTREE) else { return Ok(None) };
    let Some((columns, rest)) = keys.split_once(')') else { return Ok(None) };
    let condition = rest.strip_prefix(" WHERE ").unwrap_or("true");
    tx.run(BY_TABLE).await?;
    let rows = count(tx, format!("SELECT count(*) AS n FROM {EVENTS} WHERE {condition}")).await?;
    tx.run(BY_INDEX).await?;
    // Only this index gives the order, and sorting is switched off.
    let reached = count(
        tx,
        format!(
            "SELECT count(*) AS n FROM (SELECT 1 FROM {EVENTS} WHERE {condition} ORDER BY {columns} OFFSET 0) AS way"
        ),
    )
    .await?;
    Ok(unreached(&index.name, reached, rows))
}

async fn count(tx: &mut PostgresTransaction, sql: String) -> Result<i64> {
    let rows = tx.fetch_all(query(AssertSqlSafe(sql))).await?;
    rows.first().map_or(Ok(0), |row| get(row, "n"))
}

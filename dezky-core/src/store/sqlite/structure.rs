//! Comparison of the file's structure and indexes with the schema.

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};

use super::{schema, store_error};
use crate::Result;
use crate::store::structure::{Object, compare, shown, unreached};
use crate::store::{Anomaly, Extent};

/// The table behind the lists.
const EVENTS: &str = "dezky_audit_events";

/// All objects that belong to one of our tables, and triggers anywhere that mention one.
/// LIKE ignores case, as SQLite does in names.
const OBJECTS: &str = r"SELECT type, name, tbl_name, sql FROM sqlite_master
    WHERE sql IS NOT NULL AND (name LIKE 'dezky\_%' ESCAPE '\' OR tbl_name LIKE 'dezky\_%' ESCAPE '\'
        OR (type = 'trigger' AND sql LIKE '%dezky\_%' ESCAPE '\'))";

/// Returns the reasons not to trust reads of the log.
pub(super) async fn examine(
    connection: &mut SqliteConnection,
    extent: Extent,
) -> Result<Vec<Anomaly>> {
    let expected = made_by(schema::STEPS).await?;
    let mut found = objects(connection).await?;
    // The definitions of other components' tables are not known here; triggers are never
    // part of any.
    found.retain(|object| {
        object.kind == "trigger" || expected.iter().any(|ours| ours.table == object.table)
    });
    let mut anomalies = compare(&expected, &found);
    if extent == Extent::Rows {
        anomalies.extend(damage(connection).await?);
        for index in expected.iter().filter(|object| object.kind == "index") {
            if index.table == EVENTS && found.contains(index) {
                anomalies.extend(reached(connection, index).await?);
            }
        }
    }
    Ok(anomalies)
}

/// Compares the definitions of a component's tables and indexes with those that its steps
/// create.
pub(super) async fn definitions(
    connection: &mut SqliteConnection,
    steps: &[impl AsRef<str> + Sync],
) -> Result<Vec<Anomaly>> {
    let expected = made_by(steps).await?;
    let mut found = objects(connection).await?;
    // Triggers on any table are found with the log's structure.
    found.retain(|object| {
        object.kind != "trigger" && expected.iter().any(|ours| ours.table == object.table)
    });
    Ok(compare(&expected, &found))
}

/// The objects that the steps create, in a database in memory.
async fn made_by(steps: &[impl AsRef<str> + Sync]) -> Result<Vec<Object>> {
    let memory = SqliteConnectOptions::new().in_memory(true).disable_statement_logging();
    let mut connection = memory.connect().await.map_err(store_error)?;
    for step in steps {
        sqlx::raw_sql(AssertSqlSafe(step.as_ref().to_owned()))
            .execute(&mut connection)
            .await
            .map_err(store_error)?;
    }
    let made = objects(&mut connection).await?;
    connection.close().await.map_err(store_error)?;
    Ok(made)
}

async fn objects(connection: &mut SqliteConnection) -> Result<Vec<Object>> {
    let rows: Vec<(String, String, String, String)> =
        sqlx::query_as(OBJECTS).fetch_all(connection).await.map_err(store_error)?;
    let object = |(kind, name, table, sql): (String, String, String, String)| {
        // A view can take a table's name.
        let kind = if kind == "view" { "table".to_owned() } else { kind };
        Object { kind, name, table, definition: normal(&sql) }
    };
    Ok(rows.into_iter().map(object).collect())
}

/// Removes comments and collapses white space, so that a database matches whatever the
/// layout of the script that created it. A `--` inside a quoted text is cut too, but the
/// opening quote stays, and the schema has no quotes: such a statement never matches.
fn normal(sql: &str) -> String {
    let lines = sql.lines().map(|line| line.split("--").next().unwrap_or_default());
    lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

/// SQLite's own check, which among other things compares every index with its table.
async fn damage(connection: &mut SqliteConnection) -> Result<Vec<Anomaly>> {
    let said: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(20)")
        .fetch_all(connection)
        .await
        .map_err(store_error)?;
    let found = said.iter().flat_map(|text| text.lines()).filter(|line| *line != "ok");
    let anomaly = |line: &str| {
        Anomaly {
        object: "the database file".to_owned(),
        detail: shown(line),
        fix: "keep a copy of the file as evidence, then restore a backup; if only index entries are wrong, REINDEX rebuilds them"
            .to_owned(),
    }
    };
    Ok(found.map(anomaly).collect())
}

/// Compares the number of rows that the index reaches with that of the table.
async fn reached(connection: &mut SqliteConnection, index: &Object) -> Result<Option<Anomaly>> {
    // The definition equals the schema's, so its condition is safe to run.
    let condition = index.definition.split_once(" WHERE ").map_or("1", |(_, condition)| condition);
    let mut counts = [0; 2];
    for (count, way) in
        counts.iter_mut().zip(["NOT INDEXED", &format!("INDEXED BY {}", index.name)])
    {
        // SQLite would answer count(*) from the smallest index, whatever is named here.
        let sql = format!("SELECT coalesce(sum(1), 0) FROM {EVENTS} {way} WHERE {condition}");
        *count = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&mut *connection)
            .await
            .map_err(store_error)?;
    }
    let [rows, reached] = counts;
    Ok(unreached(&index.name, reached, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_ignored_and_conditions_are_not() {
        let ours = normal("CREATE INDEX i ON t (at, id)");
        assert_eq!(normal("CREATE  INDEX i\n  ON t (at,\tid) -- by time"), ours);
        for other in [
            "CREATE INDEX i ON t (at, id)--\nWHERE at > 5",
            "CREATE INDEX i ON t (at, id) WHERE '--' <> id",
        ] {
            assert_ne!(normal(other), ours, "{other}");
        }
    }
}

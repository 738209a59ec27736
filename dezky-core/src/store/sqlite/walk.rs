//! The bounded walk of `list`.

use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::codec::{COLUMNS, listed_row};
use super::store_error;
use crate::store::{Driver, TenantMatch, Walk, WalkEnd, Walked};
use crate::{Result, StoredEvent, Timestamp};

/// The first stretch of an index that a filtered walk looks at; each next one
/// is four times as long, so that a common word is found at once and a rare one
/// costs few statements.
const FIRST_WINDOW_ROWS: usize = 2_000;

type Place = (Timestamp, Uuid);

/// Walks the driver's index, newest first. Where the driver takes in the whole
/// filter the index gives just the rows wanted; else the walk goes window by
/// window, so that no statement looks at more rows than the budget allows.
pub(super) async fn walk(connection: &mut SqliteConnection, walk: &Walk<'_>) -> Result<Walked> {
    let driver = walk.driver();
    if walk.filter.is_driver_only(&driver) {
        let events = select(connection, walk, &driver, walk.before, None, walk.max_rows).await?;
        let end = if events.len() == walk.max_rows { WalkEnd::Full } else { WalkEnd::Exhausted };
        return Ok(Walked { events, end });
    }
    let mut events = Vec::new();
    let mut before = walk.before;
    let mut examined = 0;
    let mut window = FIRST_WINDOW_ROWS;
    loop {
        let size = window.min(walk.max_examined - examined);
        let last = window_end(connection, walk, &driver, before, size).await?;
        let missing = walk.max_rows - events.len();
        events.extend(select(connection, walk, &driver, before, last, missing).await?);
        if events.len() == walk.max_rows {
            return Ok(Walked { events, end: WalkEnd::Full });
        }
        let Some(last) = last else {
            return Ok(Walked { events, end: WalkEnd::Exhausted });
        };
        examined += size;
        if examined >= walk.max_examined {
            return Ok(Walked { events, end: WalkEnd::Budget(last.0, last.1) });
        }
        before = Some(last);
        window *= 4;
    }
}

/// The place of the last of `size` rows of the driver's index; `None` if there
/// are fewer. Reads the index alone.
async fn window_end(
    connection: &mut SqliteConnection,
    walk: &Walk<'_>,
    driver: &Driver,
    before: Option<Place>,
    size: usize,
) -> Result<Option<Place>> {
    let mut query = QueryBuilder::new("SELECT at, id");
    push_range(&mut query, walk, driver, before, None);
    query.push(" ORDER BY at DESC, id DESC LIMIT 1 OFFSET ");
    query.push_bind(super::limit(size - 1));
    let row = query.build().fetch_optional(connection).await.map_err(store_error)?;
    row.map(|row| {
        let at: i64 = row.try_get(0).map_err(store_error)?;
        let id: &[u8] = row.try_get(1).map_err(store_error)?;
        let id = Uuid::from_slice(id).map_err(|_| super::corrupt("an id is not a UUID"))?;
        Ok((Timestamp::from_millis_clamped(at), id))
    })
    .transpose()
}

/// The matching rows from `before` to `last`, both in the driver's order.
async fn select(
    connection: &mut SqliteConnection,
    walk: &Walk<'_>,
    driver: &Driver,
    before: Option<Place>,
    last: Option<Place>,
    max_rows: usize,
) -> Result<Vec<StoredEvent>> {
    let mut query = QueryBuilder::new("SELECT ");
    query.push(COLUMNS).push(", erasure");
    push_range(&mut query, walk, driver, before, last);
    push_conditions(&mut query, walk, driver);
    query.push(" ORDER BY at DESC, id DESC LIMIT ").push_bind(super::limit(max_rows));
    let rows = query.build().fetch_all(connection).await.map_err(store_error)?;
    rows.iter().map(listed_row).collect()
}

/// `FROM` and the conditions that the driver's index answers. Places are row
/// values: the form with OR does not use the index.
fn push_range(
    query: &mut QueryBuilder<Sqlite>,
    walk: &Walk<'_>,
    driver: &Driver,
    before: Option<Place>,
    last: Option<Place>,
) {
    let filter = walk.filter;
    query.push(" FROM dezky_audit_events INDEXED BY ");
    match (driver, &filter.tenant, &filter.actor_id) {
        (Driver::Actor, _, Some(actor)) => {
            query.push("dezky_audit_events_actor WHERE actor_id = ").push_bind(actor.clone());
        }
        (Driver::Tenant, Some(TenantMatch::Slug(slug)), _) => {
            query.push("dezky_audit_events_tenant WHERE tenant_slug = ").push_bind(slug.clone());
        }
        (Driver::Tenant, Some(TenantMatch::None), _) => {
            query.push("dezky_audit_events_tenant WHERE tenant_slug IS NULL");
        }
        _ => {
            query.push("dezky_audit_events_at WHERE 1");
        }
    }
    // A place lies within the range, so it implies the bound on its side; with
    // both the plain bound would take the place's part in the index.
    if let (Some(since), None) = (filter.since, last) {
        query.push(" AND at >= ").push_bind(since.as_millis());
    }
    if let (Some(until), None) = (filter.until, before) {
        query.push(" AND at < ").push_bind(until.as_millis());
    }
    for (place, comparison) in [(before, " < ("), (last, " >= (")] {
        if let Some((at, id)) = place {
            query.push(" AND (at, id)").push(comparison).push_bind(at.as_millis());
            query.push(", ").push_bind(id.as_bytes().to_vec()).push(")");
        }
    }
}

/// The rest of the filter.
fn push_conditions(query: &mut QueryBuilder<Sqlite>, walk: &Walk<'_>, driver: &Driver) {
    let filter = walk.filter;
    if let Some(prefix) = &filter.action_prefix {
        query.push(" AND substr(action, 1, length(").push_bind(prefix.clone());
        query.push(")) = ").push_bind(prefix.clone());
    }
    if *driver != Driver::Tenant {
        match &filter.tenant {
            Some(TenantMatch::Slug(slug)) => {
                query.push(" AND tenant_slug = ").push_bind(slug.clone());
            }
            Some(TenantMatch::None) => {
                query.push(" AND tenant_slug IS NULL");
            }
            None => {}
        }
    }
    for (column, value) in [
        ("partner_slug", &filter.partner_slug),
        ("actor_email_fold", &filter.actor_email_fold),
        ("resource_type", &filter.resource_type),
        ("resource_id", &filter.resource_id),
    ] {
        if let Some(value) = value {
            query.push(" AND ").push(column).push(" = ").push_bind(value.clone());
        }
    }
    if let Some(outcome) = filter.outcome {
        query.push(" AND outcome = ").push_bind(outcome.as_str());
    }
    if let Some(source) = &filter.source {
        query.push(" AND (source = ").push_bind(source.exact.clone());
        if let Some(instances) = &source.instances {
            query.push(" OR substr(source, 1, length(").push_bind(instances.clone());
            query.push(")) = ").push_bind(instances.clone());
        }
        query.push(")");
    }
    if let Some(text) = &filter.search {
        query.push(" AND instr(search, ").push_bind(text.clone()).push(") > 0");
    }
}

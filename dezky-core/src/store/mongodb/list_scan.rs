//! The index reads of a list scan.

use async_trait::async_trait;
use mongodb::ClientSession;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::{FindOptions, Hint};

use super::database::MongoDatabase;
use super::schema::{BY_ACTION, BY_ACTOR, BY_AT, BY_TENANT, EVENTS};
use crate::store::codec::{Columns, corrupt, limit, listed_row, position, tally_count};
use crate::store::engine::{ListPosition, ScanIndex, TallyScan, TenantMatch};
use crate::store::list_scan::{IndexScan, ScanPlan, columns_of};
use crate::store::tally::{Counts, TallyCount};
use crate::{Result, StoredEvent, Timestamp};

/// The reads of one scan.
pub(super) struct MongoScan<'a> {
    pub(super) database: &'a MongoDatabase,
    /// A session with one snapshot for all reads. Without it, events that arrive during the scan
    /// may or may not be included. Earlier ones are neither missed nor repeated, because the
    /// ranges meet at positions.
    pub(super) snapshot: Option<ClientSession>,
}

#[async_trait]
impl IndexScan for MongoScan<'_> {
    async fn actions(&mut self, prefix: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut range = beginning_with(prefix);
        while found.len() < 2 {
            let options = FindOptions::builder()
                .hint(Hint::Name(BY_ACTION.into()))
                .sort(doc! { "action": 1 })
                .projection(doc! { "_id": 0, "action": 1 })
                .limit(1)
                .build();
            let filter = doc! { "action": range.clone() };
            let rows = self.database.find(EVENTS, filter, options, self.snapshot.as_mut()).await?;
            let Some(row) = rows.first() else { break };
            let action = row.text("action").map_err(corrupt)?.to_owned();
            range.remove("$gte");
            range.insert("$gt", action.as_str());
            found.push(action);
        }
        Ok(found)
    }

    async fn window_end(
        &mut self,
        plan: &ScanPlan<'_>,
        before: Option<ListPosition>,
        size: usize,
    ) -> Result<Option<ListPosition>> {
        let Some(range) = KeyRange::of(plan, before, None) else { return Ok(None) };
        let mut options = range.options();
        options.projection = Some(doc! { "at": 1 });
        options.skip = Some(size.saturating_sub(1) as u64);
        options.limit = Some(1);
        let filter = range.filter();
        let rows = self.database.find(EVENTS, filter, options, self.snapshot.as_mut()).await?;
        rows.first().map(position).transpose()
    }

    async fn select(
        &mut self,
        plan: &ScanPlan<'_>,
        before: Option<ListPosition>,
        last: Option<ListPosition>,
        max_rows: usize,
    ) -> Result<Vec<StoredEvent>> {
        let Some(range) = KeyRange::of(plan, before, last) else { return Ok(Vec::new()) };
        let mut options = range.options();
        options.limit = Some(limit(max_rows));
        let mut filter = range.filter();
        filter.extend(conditions(plan));
        let rows = self.database.find(EVENTS, filter, options, self.snapshot.as_mut()).await?;
        rows.iter().map(listed_row).collect()
    }

    /// Counts here, of documents without their metadata: a group on the server would need a range
    /// of a whole key, which only `find` has.
    async fn tally(
        &mut self,
        plan: &ScanPlan<'_>,
        before: Option<ListPosition>,
        last: Option<ListPosition>,
        scan: &TallyScan<'_>,
    ) -> Result<Vec<TallyCount>> {
        let Some(range) = KeyRange::of(plan, before, last) else { return Ok(Vec::new()) };
        let mut options = range.options();
        options.projection = Some(
            doc! { "_id": 0, "at": 1, "source": 1, "action": 1, "outcome": 1, "tenant_slug": 1 },
        );
        let mut filter = range.filter();
        filter.extend(conditions(plan));
        let rows = self.database.find(EVENTS, filter, options, self.snapshot.as_mut()).await?;
        let mut counts = Counts::default();
        for row in &rows {
            counts.add(tally_count(row, scan, "at", None)?);
        }
        Ok(counts.into_counts())
    }
}

/// A range of the plan's index, as bounds on its keys: `min` and `max` compare whole keys, like a
/// row comparison in SQL. With the equivalent `$or`, the planner might not start at the position.
struct KeyRange {
    index: &'static str,
    /// The first field and its value, the same in all keys of the range.
    equal: Option<(&'static str, Bson)>,
    min: Document,
    max: Document,
}

/// A bound on `(at, seq)`; without a `seq`, it precedes all events of its time.
type Bound = (i64, Option<i64>);

impl KeyRange {
    /// Returns `None` if the range is empty.
    fn of(
        plan: &ScanPlan<'_>,
        before: Option<ListPosition>,
        last: Option<ListPosition>,
    ) -> Option<Self> {
        let filter = plan.filter;
        let (index, equal) = match (&plan.index, &filter.tenant, &filter.actor_id) {
            _ if let Some(action) = &plan.action => (BY_ACTION, Some(("action", action.into()))),
            (ScanIndex::Actor, _, Some(actor)) => (BY_ACTOR, Some(("actor_id", actor.into()))),
            (ScanIndex::Tenant, Some(TenantMatch::Slug(slug)), _) => {
                (BY_TENANT, Some(("tenant_slug", slug.into())))
            }
            (ScanIndex::Tenant, Some(TenantMatch::None), _) => {
                (BY_TENANT, Some(("tenant_slug", Bson::Null)))
            }
            _ => (BY_AT, None),
        };
        let of_position = |position| {
            let (at, seq) = columns_of(position);
            (at, Some(seq))
        };
        let of_time = |at: Timestamp| (at.as_millis(), None);
        // A position is within the time range, so it implies the bound on its side.
        let from: Option<Bound> = last.map(of_position).or(filter.since.map(of_time));
        let to: Option<Bound> = before.map(of_position).or(filter.until.map(of_time));
        // The server refuses a `min` that is not below `max`.
        if let (Some(from), Some(to)) = (from, to)
            && from >= to
        {
            return None;
        }
        let key = |bound: Option<Bound>, open: Bson| {
            let mut key = Document::new();
            if let Some((name, value)) = &equal {
                key.insert(*name, value.clone());
            }
            let (at, seq) = match bound {
                Some((at, Some(seq))) => (at.into(), seq.into()),
                Some((at, None)) => (at.into(), Bson::MinKey),
                None => (open.clone(), open),
            };
            key.extend([("at".to_owned(), at), ("_id".to_owned(), seq)]);
            key
        };
        let (min, max) = (key(from, Bson::MinKey), key(to, Bson::MaxKey));
        Some(Self { index, equal, min, max })
    }

    fn options(&self) -> FindOptions {
        FindOptions::builder()
            .hint(Hint::Name(self.index.into()))
            .min(self.min.clone())
            .max(self.max.clone())
            .sort(doc! { "at": -1, "_id": -1 })
            .build()
    }

    fn filter(&self) -> Document {
        match &self.equal {
            Some((name, value)) => equals(name, value.clone()),
            None => Document::new(),
        }
    }
}

/// The conditions that the index does not answer. Every text is an operand of an explicit operator,
/// so that none can be taken for an operator.
fn conditions(plan: &ScanPlan<'_>) -> Document {
    let filter = plan.filter;
    let mut conditions = Document::new();
    if let (Some(prefix), None) = (&filter.action_prefix, &plan.action) {
        conditions.insert("action", beginning_with(prefix));
    }
    if plan.index != ScanIndex::Tenant {
        match &filter.tenant {
            Some(TenantMatch::Slug(slug)) => {
                conditions.extend(equals("tenant_slug", slug.into()));
            }
            Some(TenantMatch::None) => conditions.extend(equals("tenant_slug", Bson::Null)),
            None => {}
        }
    }
    for (name, value) in [
        ("partner_slug", &filter.partner_slug),
        ("actor_email_fold", &filter.actor_email_fold),
        ("resource_type", &filter.resource_type),
        ("resource_id", &filter.resource_id),
    ] {
        if let Some(value) = value {
            conditions.extend(equals(name, value.into()));
        }
    }
    if let Some(outcome) = filter.outcome {
        conditions.extend(equals("outcome", outcome.as_str().into()));
    }
    if let Some(source) = &filter.source {
        let exact = equals("source", (&source.exact).into());
        match &source.instances {
            None => conditions.extend(exact),
            Some(instances) => {
                let instances = doc! { "source": beginning_with(instances) };
                conditions.insert("$or", vec![exact, instances]);
            }
        }
    }
    if let Some(text) = &filter.search {
        conditions.insert("search", doc! { "$regex": literal(text) });
    }
    conditions
}

fn equals(name: &str, value: Bson) -> Document {
    doc! { name: { "$eq": value } }
}

/// The range of texts that begin with `prefix`, compared by bytes.
fn beginning_with(prefix: &str) -> Document {
    let mut range = doc! { "$gte": prefix };
    if let Some(end) = after_prefix(prefix) {
        range.insert("$lt", end);
    }
    range
}

/// The smallest text greater than all those that begin with `prefix`.
fn after_prefix(prefix: &str) -> Option<String> {
    let mut chars = prefix.chars();
    while let Some(last) = chars.next_back() {
        // The range of characters skips the surrogates.
        if let Some(next) = (last..=char::MAX).nth(1) {
            return Some(chars.as_str().chars().chain([next]).collect());
        }
    }
    None
}

/// A regular expression that finds `text` itself.
fn literal(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ListQuery;

    #[test]
    fn punctuation_is_escaped_and_letters_are_not() {
        assert_eq!(literal(r"a.b*\d$(x|y)#"), r"a\.b\*\\d\$\(x\|y\)#");
        assert_eq!(literal("straße 租户"), "straße 租户");
    }

    #[test]
    fn the_range_of_a_prefix_ends_before_the_next_text() {
        for (prefix, after) in [
            ("tenant.", Some("tenant/")),
            ("a\u{d7ff}", Some("a\u{e000}")),
            ("a\u{10ffff}", Some("b")),
            ("\u{10ffff}", None),
        ] {
            assert_eq!(after_prefix(prefix).as_deref(), after);
        }
    }

    #[test]
    fn positions_are_bounds_on_the_indexs_keys_in_their_order() {
        let position = Some((Timestamp::MIN, 7));
        let text = |text: &str| Some(text.to_owned());
        for (tenant, actor, action, names) in [
            (None, None, None, vec!["at", "_id"]),
            (text("acme"), None, None, vec!["tenant_slug", "at", "_id"]),
            (text(""), None, None, vec!["tenant_slug", "at", "_id"]),
            (None, text("u-1"), None, vec!["actor_id", "at", "_id"]),
            (None, None, text("tenant.created"), vec!["action", "at", "_id"]),
        ] {
            let query = ListQuery {
                since: Some(Timestamp::MIN),
                until: Some(Timestamp::MAX),
                tenant_slug: tenant,
                actor_id: actor,
                ..ListQuery::default()
            };
            let filter = query.filter().unwrap();
            let scan = crate::store::engine::ListScan {
                filter: &filter,
                before: None,
                max_rows: 1,
                max_examined: 1,
            };
            let plan = ScanPlan { filter: &filter, index: scan.index(), action };
            assert!(KeyRange::of(&plan, position, position).is_none(), "the range is empty");
            let range = KeyRange::of(&plan, None, position).unwrap();
            for bound in [&range.min, &range.max] {
                assert_eq!(bound.keys().map(String::as_str).collect::<Vec<_>>(), names);
            }
            assert_eq!(range.min.get("_id"), Some(&Bson::Int64(7)), "the position, not the time");
            assert_eq!(range.max.get("_id"), Some(&Bson::MinKey), "only the time");
        }
    }
}

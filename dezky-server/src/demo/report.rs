//! The timeline and the results of a run, as tables or JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use dezky_core::store::{AuditStore, ListQuery};
use dezky_core::{Result, StoredEvent};
use serde::Serialize;
use serde_json::json;

use super::story::TenantFlags;
use crate::render::table::{printable, table};

/// The number of newest events shown of each source.
const SHOWN: usize = 5;

/// The content of the log.
pub(super) struct Counts {
    /// Events by source.
    pub(super) by_source: BTreeMap<String, usize>,
    /// Quarantined items by source, with the number of times they were seen.
    pub(super) quarantined: BTreeMap<String, usize>,
    /// The newest events of each source, newest first.
    pub(super) newest: Vec<StoredEvent>,
}

impl Counts {
    /// Counts by paging through the whole timeline, as a client would.
    pub(super) async fn of(store: &dyn AuditStore) -> Result<Self> {
        let mut counts =
            Self { by_source: BTreeMap::new(), quarantined: BTreeMap::new(), newest: Vec::new() };
        let mut query = ListQuery { limit: ListQuery::MAX_LIMIT, ..ListQuery::default() };
        loop {
            let page = store.list(&query).await?;
            for event in page.events {
                let of_source = counts.by_source.entry(event.event.source.clone()).or_default();
                *of_source += 1;
                if *of_source <= SHOWN {
                    counts.newest.push(event);
                }
            }
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                break;
            }
        }
        let mut after = i64::MIN;
        loop {
            let items = store.quarantined(after, 500).await?;
            let Some(last) = items.last() else { return Ok(counts) };
            after = last.number;
            for item in items {
                *counts.quarantined.entry(item.item.source).or_default() += 1;
            }
        }
    }
}

/// The results of one source's events.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) source: String,
    pub(super) stored: usize,
    pub(super) new: usize,
    pub(super) duplicates: usize,
    pub(super) skipped: u64,
    pub(super) quarantined: usize,
}

/// The results of a run.
pub(super) struct Report {
    pub(super) rows: Vec<Row>,
    pub(super) newest: Vec<StoredEvent>,
    pub(super) flags: TenantFlags,
    pub(super) head: Option<(u64, String)>,
}

impl Report {
    fn totals(&self) -> (usize, usize) {
        let sum = |of: fn(&Row) -> usize| self.rows.iter().map(of).sum();
        (sum(|row| row.stored), sum(|row| row.new))
    }

    /// One JSON object, on one line.
    pub(super) fn to_json(&self) -> String {
        let (events, new) = self.totals();
        let report = json!({
            "events": events,
            "new": new,
            "sources": self.rows,
            "head": self.head.as_ref().map(|(seq, hash)| json!({ "seq": seq, "hash": hash })),
            "newest": self.newest,
            "flags": { "tenant": self.flags.tenant, "decisions": self.flags.decisions },
        });
        format!("{report}\n")
    }

    /// Tables for people.
    pub(super) fn to_text(&self) -> String {
        let mut text = format!("The newest {SHOWN} events of each source, on one timeline:\n\n");
        let header = ["at", "source", "action", "outcome", "tenant", "actor", "ip", "resource"];
        text.push_str(&table(&header, self.newest.iter().map(cells)));
        text.push_str("\nResults by source:\n\n");
        let header = ["source", "stored", "new", "duplicate", "skipped", "quarantined"];
        let rows = self.rows.iter().map(|row| {
            [
                row.source.clone(),
                row.stored.to_string(),
                row.new.to_string(),
                row.duplicates.to_string(),
                row.skipped.to_string(),
                row.quarantined.to_string(),
            ]
        });
        text.push_str(&table(&header, rows));
        let _ = write!(text, "\nThe flags for {}, with reasons:\n\n", self.flags.tenant);
        text.push_str(&self.flags.table);
        let (events, new) = self.totals();
        let _ = write!(text, "\ntimeline: {events} events, {new} new\n");
        if let Some((seq, hash)) = &self.head {
            let _ = writeln!(text, "verified: head {seq}:{hash}");
        }
        text
    }
}

/// One arriving event on one line.
pub(super) fn line(event: &StoredEvent) -> String {
    let [at, source, action, outcome, tenant, actor, ip, resource] = cells(event);
    format!("{at}  {source:9}  {action:24}  {outcome:7}  {tenant:7}  {actor}  {ip}  {resource}\n")
}

fn cells(stored: &StoredEvent) -> [String; 8] {
    let event = &stored.event;
    let actor = event.actor_email.as_deref().or(event.actor_id.as_deref());
    let resource = event.resource_name.as_deref().or(event.resource_id.as_deref());
    [
        event.at.to_string(),
        printable(&event.source),
        printable(&event.action),
        event.outcome.to_string(),
        printable(event.tenant_slug.as_deref().unwrap_or("-")),
        printable(actor.unwrap_or_else(|| event.actor_type.as_str())),
        printable(event.actor_ip.as_deref().unwrap_or("-")),
        match (event.resource_type.as_deref(), resource) {
            (Some(kind), Some(name)) => printable(&format!("{kind} {name}")),
            (kind, name) => printable(name.or(kind).unwrap_or("-")),
        },
    ]
}

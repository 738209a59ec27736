//! `audit`: the timeline on the command line, as the API's routes show it.

mod export;
mod output;

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use dezky::Access;
use dezky::engine::Database;
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AuditStoreExt as _, EventKey, ListQuery, TallyQuery};
use dezky_core::{Outcome, Runtime as _, StoredEvent, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use self::output::{Output, line};
use super::signals::Signals;
use super::{failed, print};
use crate::api::audit::stats;
use crate::config::Settings;
use crate::failure::Failure;
use crate::render::table::{printable, table};
use crate::store;

/// `audit …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List events, newest first
    List(List),
    /// Show one event
    Show {
        /// The event's id, or its seq
        #[arg(value_name = "ID|SEQ", value_parser = event_key)]
        event: EventKey,
    },
    /// Print events as they arrive, until Ctrl-C
    #[command(
        after_help = "Examples:\n  dezky-server audit tail --outcome denied\n  dezky-server audit tail --from 0 --json | jq .action"
    )]
    Tail(Tail),
    /// Write all events that match as NDJSON or CSV
    ///
    /// The export is recorded on the timeline before anything is written, and its end
    /// after it. The last line says that it is whole: NDJSON ends with an object whose
    /// only member is `export`, CSV with a record whose first cell is #whole. In CSV, cells
    /// that begin with = + - @, a tab or a carriage return get an apostrophe in front, so
    /// that no spreadsheet takes them for formulas.
    #[command(
        after_help = "Examples:\n  dezky-server audit export --tenant acme --since 30d --format csv --output acme.csv\n  dezky-server audit export --action auth. | jq .actorEmail\n\nExit status: 0 whole, or nobody reads the output any more, 1 cut off, 2 wrong usage or configuration."
    )]
    Export(export::Options),
    /// Count events by hour or day
    #[command(
        after_help = "Examples:\n  dezky-server audit stats --by outcome\n  dezky-server audit stats --interval day --since 90d --by source,action --tenant acme"
    )]
    Stats(Stats),
}

/// The events to read. All conditions that are set must hold.
#[derive(Debug, Args)]
pub(crate) struct Filters {
    /// At or after this time: RFC 3339, or 90s, 15m, 24h or 30d for that long ago
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// The beginning of the action, such as tenant. or tenant.suspended
    #[arg(long, value_name = "PREFIX")]
    action: Option<String>,
    /// The tenant, by slug; '' for events without a tenant
    #[arg(long, value_name = "SLUG")]
    tenant: Option<String>,
    /// The partner, by slug
    #[arg(long, value_name = "SLUG")]
    partner: Option<String>,
    /// The actor's id
    #[arg(long, value_name = "ID")]
    actor_id: Option<String>,
    /// The actor's e-mail address, ignoring case
    #[arg(long, value_name = "ADDRESS")]
    actor_email: Option<String>,
    /// The resource's type
    #[arg(long, value_name = "TYPE")]
    resource_type: Option<String>,
    /// The resource's id
    #[arg(long, value_name = "ID")]
    resource_id: Option<String>,
    /// success, failure or denied
    #[arg(long, value_parser = outcome)]
    outcome: Option<Outcome>,
    /// The source; ocis includes ocis:eu2
    #[arg(long)]
    source: Option<String>,
    /// A part of action, resource name, e-mail address or tenant, ignoring case
    #[arg(long, short = 'q', value_name = "TEXT")]
    query: Option<String>,
}

impl Filters {
    fn into_query(self) -> ListQuery {
        ListQuery {
            since: self.since,
            until: self.until,
            action: self.action,
            tenant_slug: self.tenant,
            partner_slug: self.partner,
            actor_id: self.actor_id,
            actor_email: self.actor_email,
            resource_type: self.resource_type,
            resource_id: self.resource_id,
            outcome: self.outcome,
            source: self.source,
            q: self.query,
            ..ListQuery::default()
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    filters: Filters,
    /// The maximum number of events, 1 to 500
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=500))]
    limit: u16,
    /// Continue a list, with the cursor that it ended with and the same filters
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Tail {
    #[command(flatten)]
    filters: Filters,
    /// Begin with the event at this seq instead of the next one
    #[arg(long, value_name = "SEQ")]
    from: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Stats {
    #[command(flatten)]
    filters: Filters,
    /// hour or day, in UTC
    #[arg(long, default_value = "hour", value_parser = ["hour", "day"])]
    interval: String,
    /// The fields to count by: source, action, outcome, tenantSlug; all of them by default
    #[arg(long, value_name = "FIELDS")]
    by: Option<String>,
}

fn event_key(text: &str) -> Result<EventKey, String> {
    match (text.parse(), Uuid::parse_str(text)) {
        (Ok(seq), _) => Ok(EventKey::Seq(seq)),
        (_, Ok(id)) => Ok(EventKey::Id(id)),
        _ => Err("must be an event's id (a UUID) or its seq, such as 41".to_owned()),
    }
}

fn outcome(text: &str) -> Result<Outcome, String> {
    text.parse().map_err(|_| "must be success, failure or denied".to_owned())
}

/// A time, or a time ago.
fn time(text: &str) -> Result<Timestamp, String> {
    let ago = || {
        let unit = text.chars().last()?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return None,
        };
        let count: i64 = text.strip_suffix(unit)?.parse().ok().filter(|count| *count >= 0)?;
        let ms = count.checked_mul(seconds)?.checked_mul(1_000)?;
        Timestamp::from_millis(TokioRuntime.now().as_millis().checked_sub(ms)?)
    };
    Timestamp::parse(text).or_else(ago).ok_or_else(|| {
        "must be an RFC 3339 time, such as 2026-11-21T20:12:21Z, or a time ago, such as 90s, 15m, 24h or 30d".to_owned()
    })
}

/// `audit`.
pub(crate) async fn run(
    settings: &Settings,
    command: Command,
    as_json: bool,
) -> Result<(), Failure> {
    match command {
        Command::Export(options) => {
            super::on_platform(settings, async |platform| options.run(platform).await).await
        }
        Command::List(list) => on_log(settings, async |log| list.print(log, as_json).await).await,
        Command::Show { event } => {
            on_log(settings, async |log| show(log, event, as_json).await).await
        }
        Command::Tail(tail) => on_log(settings, async |log| tail.run(log, as_json).await).await,
        Command::Stats(stats) => {
            on_log(settings, async |log| stats.print(log, as_json).await).await
        }
    }
}

/// Runs `work` on the log alone, which is only read.
async fn on_log(
    settings: &Settings,
    work: impl AsyncFnOnce(&Database) -> Result<(), Failure>,
) -> Result<(), Failure> {
    // With `Access::Read`, SQLite would not notice events that others append meanwhile.
    let database = store::open_log(&settings.store()?, Access::Use).await?;
    let done = work(&database).await;
    database.close().await;
    done
}

/// The JSON text. Metadata stays as it is spelled, which a JSON value would not keep.
fn text_of(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::failed(error.to_string()))
}

/// An error of reading the log: wrong filters are wrong usage.
fn refused(error: dezky_core::Error) -> Failure {
    use dezky_core::ErrorKind;
    match error.kind() {
        ErrorKind::QueryInvalid | ErrorKind::CursorInvalid => Failure::usage(error.to_string()),
        _ => failed(error),
    }
}

impl List {
    async fn print(self, database: &Database, as_json: bool) -> Result<(), Failure> {
        let query = ListQuery {
            limit: self.limit.into(),
            cursor: self.cursor,
            ..self.filters.into_query()
        };
        let page = database.log().list(&query).await.map_err(refused)?;
        if as_json {
            return print(&format!("{}\n", text_of(&page)?));
        }
        if page.events.is_empty() {
            print("no events match\n")?;
        }
        let mut out = Output::stdout();
        if !page.events.is_empty() {
            let header =
                ["seq", "at", "outcome", "action", "tenant", "actor", "resource", "source"];
            let text = table(&header, page.events.iter().map(cells));
            let mut lines = text.lines();
            out.line(lines.next().unwrap_or_default(), None)?;
            for (line, stored) in lines.zip(&page.events) {
                out.line(line, Some(stored.event.outcome))?;
            }
        }
        if let Some(cursor) = page.next_cursor {
            let why = if page.partial { "searched a part" } else { "there are more" };
            // A time such as 24h is another one by then, and a cursor is only valid with its filters.
            let times = [("since", query.since), ("until", query.until)];
            let times: String = times
                .into_iter()
                .filter_map(|(name, time)| Some(format!("--{name} {} ", time?)))
                .collect();
            print(&format!("{why}: continue with {times}--cursor {cursor}\n"))?;
        }
        Ok(())
    }
}

fn cells(stored: &StoredEvent) -> [String; 8] {
    let e = &stored.event;
    let text = |text: Option<&str>| printable(text.unwrap_or("-"));
    [
        stored.seq.to_string(),
        e.at.to_string(),
        e.outcome.to_string(),
        printable(&e.action),
        text(e.tenant_slug.as_deref()),
        text(Some(actor(stored))),
        text(Some(&resource(stored))),
        printable(&e.source),
    ]
}

/// The actor's address or id, or kind.
fn actor(stored: &StoredEvent) -> &str {
    let e = &stored.event;
    let name = e.actor_email.as_deref().or(e.actor_id.as_deref());
    name.unwrap_or_else(|| e.actor_type.as_str())
}

fn resource(stored: &StoredEvent) -> String {
    let e = &stored.event;
    let name = e.resource_name.as_deref().or(e.resource_id.as_deref());
    match (e.resource_type.as_deref(), name) {
        (Some(kind), Some(name)) => format!("{kind} {name}"),
        (kind, name) => kind.or(name).unwrap_or("-").to_owned(),
    }
}

async fn show(database: &Database, key: EventKey, as_json: bool) -> Result<(), Failure> {
    let found = database.log().get(key).await.map_err(refused)?;
    let stored = found.ok_or_else(|| Failure::failed("the log has no such event"))?;
    if as_json {
        return print(&format!("{}\n", text_of(&stored)?));
    }
    let event = json!(stored);
    let mut text = String::new();
    for (name, value) in
        event.as_object().into_iter().flatten().filter(|(name, _)| *name != "metadata")
    {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let _ = writeln!(text, "{name:14}{}", crate::render::table::printable_line(&value));
    }
    if let Value::Object(metadata) = &event["metadata"] {
        let _ = writeln!(
            text,
            "metadata      {}",
            serde_json::to_string_pretty(metadata).unwrap_or_default()
        );
    }
    print(&text)
}

impl Tail {
    async fn run(self, database: &Database, as_json: bool) -> Result<(), Failure> {
        let mut signals = Signals::listen()?;
        let filter = self.filters.into_query().filter().map_err(refused)?;
        let log = database.log();
        let from = match self.from {
            Some(from) => from,
            None => log.state().await.map_err(failed)?.head.next_seq,
        };
        let mut tail = log.tail(std::sync::Arc::new(TokioRuntime), from);
        let mut out = Output::stdout();
        loop {
            let stored = tokio::select! {
                biased;
                () = signals.next() => return Ok(()),
                stored = tail.next() => stored,
            };
            match stored {
                Ok(stored) => {
                    let columns = dezky_core::store::engine::SearchColumns::of(&stored.event);
                    if !filter.matches(&stored.event, &columns) {
                        continue;
                    }
                    if as_json {
                        out.line(&text_of(&stored)?, None)?;
                    } else {
                        out.line(&line(&stored), Some(stored.event.outcome))?;
                    }
                    // Nobody reads it any more.
                    if !out.is_open() {
                        return Ok(());
                    }
                }
                Err(error) if error.is_retryable() => {
                    tokio::select! {
                        () = signals.next() => return Ok(()),
                        () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
                    }
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

impl Stats {
    async fn print(self, database: &Database, as_json: bool) -> Result<(), Failure> {
        let interval =
            stats::interval(&self.interval).unwrap_or(dezky_core::store::TallyInterval::Hour);
        let by = stats::dimensions(self.by.as_deref()).ok_or_else(|| {
            Failure::usage("--by must be a list of source, action, outcome and tenantSlug, each at most once, with commas in between")
        })?;
        let mut filters = self.filters.into_query();
        stats::settle_range(&mut filters, interval, TokioRuntime.now());
        let query = TallyQuery { filters, interval, by };
        let checked = query.filter().map_err(refused)?;
        stats::check_range(checked.since, checked.until, interval).map_err(Failure::usage)?;
        let tally = database.log().tally(&query).await.map_err(refused)?;
        if as_json {
            return print(&format!("{}\n", stats::report(&tally, &query)));
        }
        if tally.counts.is_empty() {
            print("no events match\n")?;
        } else {
            let header = ["from", "source", "action", "outcome", "tenant", "events"];
            let text = |text: Option<&str>| printable(text.unwrap_or("-"));
            let rows = tally.counts.iter().map(|counted| {
                [
                    counted.at.to_string(),
                    text(counted.source.as_deref()),
                    text(counted.action.as_deref()),
                    text(counted.outcome.map(Outcome::as_str)),
                    text(counted.tenant_slug.as_deref()),
                    counted.count.to_string(),
                ]
            });
            print(&table(&header, rows))?;
        }
        if let Some(from) = tally.counted_from {
            print(&format!(
                "counted only from {from} on: choose a shorter range or fewer fields (--by)\n"
            ))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_or_ago() {
        assert_eq!(time("2026-11-21T20:12:21Z").ok(), Timestamp::parse("2026-11-21T20:12:21Z"));
        for (text, ms) in [("90s", 90_000), ("15m", 900_000), ("24h", 86_400_000), ("0d", 0)] {
            let ago = TokioRuntime.now().saturating_since(time(text).unwrap()).as_millis();
            assert!((ms..ms + 10_000).contains(&ago), "{text}: {ago}");
        }
        for wrong in ["", "h", "-1h", "1w", "1.5h", "yesterday", "9223372036854775807d"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}

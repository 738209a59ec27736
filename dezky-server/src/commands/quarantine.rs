use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write as _;

use clap::{Args, Subcommand};
use dezky::Platform;
use dezky_core::QuarantineItem;
use dezky_core::store::QuarantinedItem;
use dezky_ingest::generic::Mapping;
use dezky_ingest::quarantine::{RetryOutcome, check_note, drop_item, retry};
use serde_json::{Value, json};

use super::{failed, on_platform, operator, print, print_bytes};
use crate::config::Settings;
use crate::failure::Failure;
use crate::render::table::{printable, table};

/// The number of items read at once: each may have 64 KiB.
const PAGE: usize = 100;

/// `quarantine …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the items, oldest first
    List(List),
    /// Show one item with its kept bytes
    Show {
        /// The item's number
        #[arg(value_parser = clap::value_parser!(i64).range(1..))]
        number: i64,
        /// Print only the kept bytes
        #[arg(long, conflicts_with = "json")]
        raw: bool,
    },
    /// Map items again, and store those that are events now
    ///
    /// A newer version may know a type that an older one did not, a tenant may have been
    /// added, or the map of a declared source, which is read from the configuration, may have
    /// been fixed. Each item is one transaction: either its event is stored, once, and the item
    /// leaves the quarantine, or it stays and the reason is printed. Stored events carry
    /// _dezky.fromQuarantine.
    #[command(
        after_help = "Examples:\n  dezky-server quarantine retry 12 13\n  dezky-server quarantine retry --all --source ocis\n\nExit status: 0 all named items have left the quarantine, 1 some stay."
    )]
    Retry(Retry),
    /// Remove items permanently, and record that on the timeline
    #[command(
        after_help = "Example:\n  dezky-server quarantine drop 12 13 --note 'half lines of the full disk, seen with operations'"
    )]
    Drop {
        /// The items' numbers
        #[arg(required = true, num_args = 1..=1000, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(1..))]
        numbers: Vec<i64>,
        /// The reason
        #[arg(long, value_name = "TEXT")]
        note: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only items of this source; ocis includes ocis:eu2
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,
    /// Only items with this reason
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// The maximum number of items to print, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

#[derive(Debug, Args)]
pub(crate) struct Retry {
    /// The items' numbers
    #[arg(required_unless_present = "all", num_args = 1..=1000, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(1..))]
    numbers: Vec<i64>,
    /// All items
    #[arg(long, conflicts_with = "numbers")]
    all: bool,
    /// With --all: only items of this source; ocis includes ocis:eu2
    #[arg(long, value_name = "SOURCE", requires = "all", conflicts_with = "numbers")]
    source: Option<String>,
}

/// `quarantine`.
pub(crate) async fn run(
    settings: &Settings,
    command: Command,
    as_json: bool,
) -> Result<(), Failure> {
    on_platform(settings, async |platform| match command {
        Command::List(list) => list.print(platform, as_json).await,
        Command::Show { number, raw } => show(platform, number, raw, as_json).await,
        Command::Retry(retry) => retry.run(platform, &settings.mappings()?, as_json).await,
        Command::Drop { numbers, note } => drop_all(platform, &numbers, &note, as_json).await,
    })
    .await
}

/// Reads the quarantine page by page.
struct Walk<'p> {
    platform: &'p Platform,
    source: Option<&'p str>,
    after: i64,
}

impl<'p> Walk<'p> {
    fn new(platform: &'p Platform, source: Option<&'p str>) -> Self {
        Self { platform, source, after: 0 }
    }

    /// The next items of the source; `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<QuarantinedItem>>, Failure> {
        let page = self.platform.store.quarantined(self.after, PAGE).await;
        let mut page = page.map_err(failed)?;
        let Some(last) = page.last() else { return Ok(None) };
        self.after = last.number;
        page.retain(|kept| self.source.is_none_or(|source| is_of(&kept.item, source)));
        Ok(Some(page))
    }
}

/// Whether an item is of a source, or of an instance of it.
fn is_of(item: &QuarantineItem, source: &str) -> bool {
    item.source
        .strip_prefix(source)
        .is_some_and(|rest| rest.is_empty() || (rest.starts_with(':') && !source.contains(':')))
}

async fn find(platform: &Platform, number: i64) -> Result<Option<QuarantinedItem>, Failure> {
    let mut found = platform.store.quarantined(number - 1, 1).await.map_err(failed)?;
    Ok(found.pop().filter(|kept| kept.number == number))
}

fn missing(number: i64) -> Failure {
    Failure::failed(format!("{number}: there is no such item: see `quarantine list`"))
}

impl List {
    async fn print(self, platform: &Platform, as_json: bool) -> Result<(), Failure> {
        let mut walk = Walk::new(platform, self.source.as_deref());
        let (mut items, mut total) = (Vec::new(), 0_usize);
        while let Some(page) = walk.next().await? {
            for kept in page {
                if self.reason.as_ref().is_some_and(|reason| *reason != kept.item.reason) {
                    continue;
                }
                total += 1;
                if items.len() < self.limit.into() {
                    items.push(Listed::from(kept));
                }
            }
        }
        if as_json {
            let items: Vec<_> = items.iter().map(Listed::json).collect();
            return print(&format!("{}\n", json!({ "total": total, "items": items })));
        }
        if total == 0 {
            return print("nothing is in the quarantine\n");
        }
        let shown = items.len();
        let header = ["number", "at", "source", "reason", "seen", "detail"];
        let mut text = table(&header, items.into_iter().map(Listed::cells));
        let _ = match total - shown {
            0 => writeln!(text, "{total} in all"),
            more => writeln!(text, "{total} in all, {more} more than shown: see --limit"),
        };
        print(&text)
    }
}

/// An item without its bytes.
struct Listed {
    kept: QuarantinedItem,
    raw_bytes: usize,
}

impl From<QuarantinedItem> for Listed {
    fn from(mut kept: QuarantinedItem) -> Self {
        let raw_bytes = std::mem::take(&mut kept.item.raw).len();
        Self { kept, raw_bytes }
    }
}

impl Listed {
    fn json(&self) -> Value {
        let QuarantinedItem { number, seen, item } = &self.kept;
        json!({
            "number": number, "at": item.at, "source": item.source, "reason": item.reason,
            "seen": seen, "detail": item.detail, "key": item.key, "rawBytes": self.raw_bytes,
        })
    }

    fn cells(self) -> [String; 6] {
        let QuarantinedItem { number, seen, item } = self.kept;
        [
            number.to_string(),
            item.at.to_string(),
            printable(&item.source),
            printable(&item.reason),
            seen.to_string(),
            printable(&item.detail),
        ]
    }
}

async fn show(
    platform: &Platform,
    number: i64,
    only_raw: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let kept = find(platform, number).await?.ok_or_else(|| missing(number))?;
    let raw = readable(&kept.item);
    if only_raw {
        return print_bytes(&raw);
    }
    let text = std::str::from_utf8(&raw).ok();
    let raw_bytes = raw.len();
    if as_json {
        let mut item = Listed { kept: kept.clone(), raw_bytes }.json();
        match text {
            Some(text) => item["raw"] = text.into(),
            None => item["rawHex"] = hex::encode(&raw).into(),
        }
        return print(&format!("{item}\n"));
    }
    let QuarantinedItem { seen, item, .. } = &kept;
    let clean = |text: &str| harmless(text).replace(['\n', '\t'], "·");
    let mut out = String::new();
    for (name, value) in [
        ("number", number.to_string()),
        ("at", item.at.to_string()),
        ("source", clean(&item.source)),
        ("reason", clean(&item.reason)),
        ("detail", clean(&item.detail)),
        ("key", clean(&item.key)),
        ("seen", seen.to_string()),
        ("raw", format!("{raw_bytes} bytes{}", if text.is_some() { "" } else { ", in hex" })),
    ] {
        let _ = writeln!(out, "{name:8}{value}");
    }
    let _ = match text {
        Some("") => Ok(()),
        Some(text) => writeln!(out, "\n{}", harmless(text)),
        None => writeln!(out, "\n{}", hex::encode(&raw)),
    };
    print(&out)
}

/// Prints text of other systems without characters that control the terminal.
fn harmless(text: &str) -> String {
    let shown = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { '·' } else { c };
    text.chars().map(shown).collect()
}

/// The bytes of an item, without the salt that a row of the outbox holds: salts are never
/// shown.
fn readable(item: &QuarantineItem) -> Cow<'_, [u8]> {
    const SALT: &str = "\"salt\":\"";
    let text = String::from_utf8_lossy(&item.raw);
    let Some((before, rest)) = text.split_once(SALT).filter(|_| item.key.starts_with("outbox:"))
    else {
        return Cow::Borrowed(&item.raw);
    };
    let after = rest.find('"').map_or("", |end| &rest[end..]);
    Cow::Owned(format!("{before}{SALT}…{after}").into_bytes())
}

impl Retry {
    async fn run(
        self,
        platform: &Platform,
        mappings: &[Mapping],
        as_json: bool,
    ) -> Result<(), Failure> {
        let mut results = Results { as_json, ..Results::default() };
        if self.all {
            let mut walk = Walk::new(platform, self.source.as_deref());
            while let Some(page) = walk.next().await? {
                for kept in &page {
                    results.tell(kept.number, &again(platform, kept, mappings).await?)?;
                }
            }
        }
        for number in self.numbers.into_iter().collect::<BTreeSet<_>>() {
            let became = match find(platform, number).await? {
                Some(kept) => again(platform, &kept, mappings).await?,
                None => Became::Missing,
            };
            results.tell(number, &became)?;
        }
        results.end("stay in the quarantine or were not there")
    }
}

async fn again(
    platform: &Platform,
    kept: &QuarantinedItem,
    mappings: &[Mapping],
) -> Result<Became, Failure> {
    Ok(match retry(&platform.intake, kept, mappings).await.map_err(failed)? {
        RetryOutcome::Released { stored: 0, .. } => Became::Duplicate,
        RetryOutcome::Released { stored, .. } => Became::Stored(stored),
        RetryOutcome::Stays(why) => Became::Stays(why),
    })
}

async fn drop_all(
    platform: &Platform,
    numbers: &[i64],
    note: &str,
    as_json: bool,
) -> Result<(), Failure> {
    check_note(note).map_err(failed)?;
    let mut items = Vec::new();
    for number in numbers.iter().copied().collect::<BTreeSet<_>>() {
        // A command with a wrong number drops nothing.
        items.push(find(platform, number).await?.ok_or_else(|| missing(number))?);
    }
    let mut results = Results { as_json, ..Results::default() };
    for kept in &items {
        let dropped = drop_item(&platform.intake, kept, operator(), note).await.map_err(failed)?;
        results.tell(kept.number, if dropped { &Became::Dropped } else { &Became::Missing })?;
    }
    results.end("were not there any more")
}

/// The result for an item.
enum Became {
    Stored(usize),
    Duplicate,
    Dropped,
    Stays(String),
    Missing,
}

impl Became {
    fn status(&self) -> &'static str {
        match self {
            Self::Stored(_) => "stored",
            Self::Duplicate => "duplicate",
            Self::Dropped => "dropped",
            Self::Stays(_) => "stays",
            Self::Missing => "missing",
        }
    }

    fn said(&self) -> String {
        match self {
            Self::Stored(1) => "stored".into(),
            Self::Stored(events) => format!("stored, {events} events"),
            Self::Duplicate => "was in the log already, and has left the quarantine".into(),
            Self::Dropped => "dropped".into(),
            Self::Stays(why) => format!("stays: {}", harmless(why)),
            Self::Missing => "there is no such item".into(),
        }
    }
}

/// The results for the items, printed one by one or as one object at the end.
#[derive(Default)]
struct Results {
    as_json: bool,
    json: Vec<Value>,
    total: usize,
    left: usize,
}

impl Results {
    fn tell(&mut self, number: i64, became: &Became) -> Result<(), Failure> {
        self.total += 1;
        self.left += usize::from(matches!(became, Became::Stays(_) | Became::Missing));
        if !self.as_json {
            return print(&format!("{number}: {}\n", became.said()));
        }
        let mut result = json!({ "number": number, "status": became.status() });
        if let Became::Stays(why) = became {
            result["why"] = why.as_str().into();
        }
        self.json.push(result);
        Ok(())
    }

    /// Exit status 1 if not all have left the quarantine.
    fn end(self, what: &str) -> Result<(), Failure> {
        if self.as_json {
            print(&format!("{}\n", json!({ "results": self.json })))?;
        } else if self.total == 0 {
            print("nothing is in the quarantine\n")?;
        }
        match self.left {
            0 => Ok(()),
            left => Err(Failure::failed(format!("{left} of {} {what}", self.total))),
        }
    }
}

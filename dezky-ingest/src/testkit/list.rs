//! The table of events and the answers to queries.

use serde_json::{Value, json};

use crate::authentik::ACTIONS;

/// The behaviour of a version of Authentik.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Before 2025.8: pages of 100 unless requested otherwise, without a maximum; no `actions`.
    Pre2025_8,
    /// 2025.8: `actions`; `search` matches words, because its query language is licensed.
    V2025_8,
    /// 2025.12: pages of 20 unless requested otherwise, of at most 100.
    V2025_12,
    /// 2026.5: `search` is a query language.
    V2026_5,
}

impl Profile {
    pub(super) fn default_page_size(self) -> usize {
        if matches!(self, Self::Pre2025_8 | Self::V2025_8) { 100 } else { 20 }
    }

    pub(super) fn max_page_size(self) -> usize {
        if matches!(self, Self::Pre2025_8 | Self::V2025_8) { usize::MAX } else { 100 }
    }

    fn has_actions(self) -> bool {
        self != Self::Pre2025_8
    }

    fn has_language(self) -> bool {
        self == Self::V2026_5
    }
}

/// The parameters of a query, in order.
pub(super) type Query = Vec<(String, String)>;

pub(super) fn first<'q>(query: &'q Query, name: &str) -> Option<&'q str> {
    query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// The matching rows in the requested order; or the body of a 400.
pub(super) fn select<'r>(
    rows: &'r [Value],
    query: &Query,
    profile: Profile,
    chance: u64,
) -> Result<Vec<&'r Value>, Value> {
    if profile.has_actions() {
        for (_, action) in query.iter().filter(|(key, _)| key == "actions") {
            // The prefix is a valid choice, though no event has it.
            if !ACTIONS.contains(&action.as_str()) && action != "custom_" {
                let what =
                    format!("Select a valid choice. {action} is not one of the available choices.");
                return Err(json!({"actions": [what]}));
            }
        }
    }
    // Unknown parameters are ignored, above all `created__gt`.
    let order = ordering(first(query, "ordering").unwrap_or_default());
    let found = rows.iter().filter(|row| matches(row, query, profile));
    let mut found: Vec<_> = found.map(|row| (keys(row, &order), lot(row, chance), row)).collect();
    found.sort_unstable_by(|(a, lot_a, _), (b, lot_b, _)| {
        let terms = a.iter().zip(b).zip(&order);
        let mut order =
            terms.map(|((a, b), (_, descends))| if *descends { b.cmp(a) } else { a.cmp(b) });
        // Rows that are equal in the order come in any order.
        order.find(|order| order.is_ne()).unwrap_or_else(|| lot_a.cmp(lot_b))
    });
    Ok(found.into_iter().map(|(.., row)| row).collect())
}

/// The sort keys of a row, as texts.
fn keys(row: &Value, order: &[(&str, bool)]) -> Vec<String> {
    let key = |name: &str| if name == "created" { instant(row) } else { plain(&row[name]) };
    order.iter().map(|(name, _)| key(name)).collect()
}

/// A different number for every row and request.
fn lot(row: &Value, chance: u64) -> u64 {
    let pk = row["pk"].as_str().unwrap_or_default();
    pk.bytes().fold(chance, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3).rotate_left(23)
    })
}

fn matches(row: &Value, query: &Query, profile: Profile) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let lower = |value: &Value| text(value).to_lowercase();
    let actions: Vec<_> = query.iter().filter(|(key, _)| key == "actions").collect();
    if profile.has_actions() && !actions.is_empty() {
        let action = text(&row["action"]);
        if !actions.iter().any(|(_, wanted)| *wanted == action) {
            return false;
        }
    }
    query.iter().filter(|(_, wanted)| !wanted.is_empty()).all(|(key, wanted)| match key.as_str() {
        "action" => lower(&row["action"]).contains(&wanted.to_lowercase()),
        "username" => text(&row["user"]["username"]) == *wanted,
        "client_ip" => text(&row["client_ip"]) == *wanted,
        "context_model_pk" => plain(&row["context"]["model"]["pk"]) == *wanted,
        "context_model_name" => text(&row["context"]["model"]["model_name"]) == *wanted,
        "context_model_app" => text(&row["context"]["model"]["app"]) == *wanted,
        "context_authorized_app" => {
            plain(&row["context"]["authorized_application"]["pk"]) == *wanted
        }
        "brand_name" => text(&brand(row)["name"]) == *wanted,
        // Up to 2024.2, which belongs to the first profile.
        "tenant_name" if profile == Profile::Pre2025_8 => text(&brand(row)["name"]) == *wanted,
        "search" => search(row, wanted, profile),
        _ => true,
    })
}

fn brand(row: &Value) -> &Value {
    if row["brand"].is_null() { &row["tenant"] } else { &row["brand"] }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// By the query language, if there is one and the text is valid in it; otherwise by all its words.
fn search(row: &Value, wanted: &str, profile: Profile) -> bool {
    if let Some(is_found) = profile.has_language().then(|| by_created(row, wanted)).flatten() {
        return is_found;
    }
    let all = row.to_string().to_lowercase();
    wanted.split_whitespace().all(|word| all.contains(&word.trim_matches('"').to_lowercase()))
}

/// `created >= "2026-09-01 10:15:00"`, to the day, the minute or the second.
fn by_created(row: &Value, wanted: &str) -> Option<bool> {
    let rest = wanted.trim().strip_prefix("created")?.trim_start();
    let (operator, text) = [">=", "<=", ">", "<"]
        .into_iter()
        .find_map(|operator| Some((operator, rest.strip_prefix(operator)?)))?;
    let text = text.trim().strip_prefix('"')?.strip_suffix('"')?;
    let full = match text.len() {
        10 => format!("{text}T00:00:00"),
        16 => format!("{}:00", text.replacen(' ', "T", 1)),
        19 => text.replacen(' ', "T", 1),
        _ => return None,
    };
    let created = row["created"].as_str()?.get(..19)?.to_owned();
    Some(match operator {
        ">=" => created >= full,
        "<=" => created <= full,
        ">" => created > full,
        _ => created < full,
    })
}

/// The valid names, each with whether it is descending.
fn ordering(text: &str) -> Vec<(&str, bool)> {
    const NAMES: [&str; 9] =
        ["pk", "user", "action", "app", "context", "client_ip", "created", "expires", "brand"];
    let terms: Vec<_> = text
        .split(',')
        .map(|term| match term.trim().strip_prefix('-') {
            Some(name) => (name, true),
            None => (term.trim(), false),
        })
        .filter(|(name, _)| NAMES.contains(name))
        .collect();
    if terms.is_empty() { vec![("created", true)] } else { terms }
}

/// `created` with a full fraction, so that texts are ordered as times.
fn instant(row: &Value) -> String {
    let text = row["created"].as_str().unwrap_or_default().trim_end_matches('Z');
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}.{fraction:0<6}")
}

/// A page as the server sends it; `None` if it does not exist.
pub(super) fn page(
    rows: &[&Value],
    query: &Query,
    profile: Profile,
    max_page_size: Option<usize>,
) -> Option<Value> {
    let largest = max_page_size.unwrap_or(profile.max_page_size());
    let size = match first(query, "page_size") {
        None => profile.default_page_size(),
        Some(text) => {
            text.parse().ok().filter(|size| *size > 0).unwrap_or(profile.default_page_size())
        }
    };
    let size = size.min(largest);
    let pages = rows.len().div_ceil(size).max(1);
    let number = match first(query, "page") {
        None => 1,
        Some("last") => pages,
        Some(text) => text.parse().ok().filter(|page| (1..=pages).contains(page))?,
    };
    let start = (number - 1) * size;
    let end = (start + size).min(rows.len());
    let mut page = json!({
        "pagination": {
            "next": if number < pages { number + 1 } else { 0 },
            "previous": number - 1,
            "count": rows.len(),
            "current": number,
            "total_pages": pages,
            "start_index": if rows.is_empty() { 0 } else { start + 1 },
            "end_index": end,
        },
        "results": rows[start..end],
    });
    if profile != Profile::Pre2025_8 {
        page["autocomplete"] = json!({});
    }
    Some(page)
}

/// A body as Authentik writes it: the members of a page and of an event in its order.
pub(super) fn text(body: &Value) -> String {
    let Some(results) = body.get("results").and_then(Value::as_array) else {
        return body.to_string();
    };
    let rows: Vec<_> = results.iter().map(event).collect();
    let pagination = &body["pagination"];
    let autocomplete = body.get("autocomplete");
    let autocomplete = autocomplete.map_or_else(String::new, |a| format!(r#","autocomplete":{a}"#));
    format!(r#"{{"pagination":{pagination},"results":[{}]{autocomplete}}}"#, rows.join(","))
}

fn event(row: &Value) -> String {
    const NAMES: [&str; 9] =
        ["pk", "user", "action", "app", "context", "client_ip", "created", "expires", "brand"];
    let Some(members) = row.as_object() else { return row.to_string() };
    let known = NAMES.into_iter().filter_map(|name| members.get_key_value(name));
    let others = members.iter().filter(|(name, _)| !NAMES.contains(&name.as_str()));
    let member = |(name, value): (&String, &Value)| {
        format!("{}:{}", json(&name.as_str().into()), json(value))
    };
    let members: Vec<_> = known.chain(others).map(member).collect();
    format!("{{{}}}", members.join(","))
}

/// JSON text. Faster than `Display`, and than searching long texts byte by byte for characters to
/// escape.
fn json(value: &Value) -> String {
    match value {
        Value::String(text) if text.len() > 1 << 10 && is_plain(text) => format!("\"{text}\""),
        Value::Object(members) => {
            let member = |(name, value): (&String, &Value)| {
                format!("{}:{}", json(&name.as_str().into()), json(value))
            };
            format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","))
        }
        _ => serde_json::to_string(value).unwrap_or_default(),
    }
}

fn is_plain(text: &str) -> bool {
    ('\0'..' ').chain(['"', '\\']).all(|escaped| !text.contains(escaped))
}

//! Bringing a platform's event within bounds instead of refusing it.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::event::{canonical_ip, is_reserved_action};
use crate::{Field, NewEvent};

const ACTION_BYTES: usize = 128;
const SOURCE_BYTES: usize = 64;
/// Maximum lengths of the parts of a repaired source, which also has 16 digits of a digest.
const SYSTEM_BYTES: usize = 30;
const INSTANCE_BYTES: usize = 16;
/// The number of bytes kept of a replaced value.
const HEAD_BYTES: usize = 128;
pub(super) const INVALID: &str = "invalid";

impl NewEvent {
    /// Replaces values out of bounds as [`AuditLog`](super::AuditLog) describes, and notes them in
    /// the metadata. Returns whether there were any. The sealed event is then always valid.
    pub fn repair(&mut self) -> bool {
        repair(self)
    }
}

/// See [`NewEvent::repair`].
pub(super) fn repair(event: &mut NewEvent) -> bool {
    let cut = event.metadata.annotation("cut").cloned();
    event.cut_to_bounds();
    let cut = cut.as_ref() != event.metadata.annotation("cut");
    let odd_ip = event.actor.ip.as_deref().is_some_and(|ip| canonical_ip(ip).is_none());
    let mut notes = Map::new();
    if let Some(action) = repaired_action(&event.action) {
        note(&mut notes, Field::Action, &event.action);
        event.action = action;
    }
    if let Some(source) = repaired_source(&event.source) {
        note(&mut notes, Field::Source, &event.source);
        event.source = source;
    }
    for (field, value) in [
        (Field::ExternalId, &mut event.external_id),
        (Field::TenantSlug, &mut event.tenant_slug),
        (Field::PartnerSlug, &mut event.partner_slug),
        (Field::ResourceType, &mut event.resource_type),
    ] {
        let Some(text) = value.as_deref() else { continue };
        // The bound applies to the normal form, in which U+0000 takes three bytes.
        let bytes = text.len() + 2 * text.matches('\0').count();
        let max = field.max_bytes().unwrap_or(usize::MAX);
        if bytes > max || (text.is_empty() && field != Field::ResourceType) {
            note(&mut notes, field, text);
            *value = (field == Field::ExternalId && !text.is_empty())
                .then(|| format!("sha256:{}", digest(text)));
        }
    }
    if notes.is_empty() {
        return cut || odd_ip;
    }
    // Notes of an earlier repair stay.
    if let Some(Value::Object(before)) = event.metadata.annotation(INVALID) {
        for (field, value) in before {
            notes.entry(field.clone()).or_insert_with(|| value.clone());
        }
    }
    event.metadata.annotate(INVALID, notes);
    true
}

fn note(notes: &mut Map<String, Value>, field: Field, original: &str) {
    let head = &original[..original.floor_char_boundary(HEAD_BYTES)];
    let value = json!({ "bytes": original.len(), "sha256": digest(original), "head": head });
    notes.insert(field.name().to_owned(), value);
}

pub(super) fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

/// The replacement of a malformed action; `None` if it is well-formed.
pub(super) fn repaired_action(action: &str) -> Option<String> {
    let cleaned: String = action
        .chars()
        .map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '_' | '-' | '.') => c,
            _ => '_',
        })
        .collect();
    let mut words = cleaned.split('.').filter(|word| !word.is_empty()).fold(
        String::with_capacity(cleaned.len()),
        |mut words, word| {
            if !words.is_empty() {
                words.push('.');
            }
            words.push_str(word);
            words
        },
    );
    if is_reserved_action(&words) {
        words.insert_str(0, "invalid.");
    }
    words.truncate(ACTION_BYTES);
    words.truncate(words.trim_end_matches('.').len());
    if words == action && !words.is_empty() {
        return None;
    }
    if !words.bytes().any(|b| b.is_ascii_alphanumeric()) {
        "invalid.action".clone_into(&mut words);
    }
    Some(words)
}

/// The replacement of a malformed source; `None` if it is well-formed.
pub(super) fn repaired_source(source: &str) -> Option<String> {
    fn word(text: &str) -> String {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        text.chars().map(|c| if allowed(c) { c } else { '_' }).collect()
    }
    fn start(text: &str, max: usize) -> &str {
        &text[..text.len().min(max)]
    }

    let (system, instance) = match source.split_once(':') {
        Some((system, instance)) if !system.is_empty() => (word(system), Some(word(instance))),
        _ => (word(source), None),
    };
    let words = [Some(&system), instance.as_ref()];
    let cleaned: Vec<&str> = words.into_iter().flatten().map(String::as_str).collect();
    if source.len() <= SOURCE_BYTES
        && cleaned.iter().all(|word| !word.is_empty())
        && cleaned.join(":") == source
    {
        return None;
    }
    let system = if system.is_empty() { INVALID } else { start(&system, SYSTEM_BYTES) };
    let digest = &digest(source)[..16];
    Some(match instance {
        Some(instance) => format!("{system}:{}-{digest}", start(&instance, INSTANCE_BYTES)),
        None => format!("{system}-{digest}"),
    })
}

//! Large metadata, made to fit by cutting its large parts.
//!
//! Sealing reduces metadata that does not fit to its small top-level scalars and drops the
//! rest. Cutting long texts first, and then large lists and objects, keeps their neighbours.
//! `_dezky.cut.<path>` notes each cut, with `~` appended to a path that is already taken.

use std::cmp::Reverse;

use dezky_core::NewMetadata;
use dezky_core::json::{Doc, Value};

use crate::annotations::CUT;

/// Metadata up to this many bytes is left as it is, because it fits with its annotations.
pub(crate) const LARGE: usize = 56 << 10;
/// The size in bytes to which larger metadata is cut; the notes need the rest.
const ROOM: usize = 40 << 10;
/// Lengths above which texts are cut, and to which; the second row applies only if the
/// first is not enough.
const TEXTS: [(usize, usize); 2] = [(1024, 256), (256, 96)];
/// Lists and objects up to this many bytes are never cut.
const SMALL: usize = 256;
/// The maximum number of cuts.
const MAX_CUTS: usize = 64;
/// The longest path of a note, in bytes.
const MAX_PATH: usize = 160;

/// Cuts the large parts of the source's metadata if it would not fit.
pub(crate) fn fit(metadata: &mut NewMetadata) {
    let Some(text) = metadata.source().filter(|text| text.len() > LARGE) else { return };
    let Some((text, cuts)) = cut(text) else { return };
    for Cut { mut path, original } in cuts {
        // Taken by the line itself, or by another part with the same path.
        while metadata.annotation(CUT).is_some_and(|cuts| cuts.get(&path).is_some()) {
            path.push('~');
        }
        metadata.note_cut(&path, &original);
    }
    metadata.set_source(text);
}

struct Cut {
    path: String,
    original: String,
}

/// A part to cut, and its replacement.
struct Choice<'d> {
    value: Value<'d>,
    instead: String,
}

impl Choice<'_> {
    fn saves(&self) -> usize {
        self.value.raw().len().saturating_sub(self.instead.len())
    }
}

/// Returns the text with its large parts cut, and their originals; `None` if it is not an
/// object or has nothing to cut.
fn cut(text: &str) -> Option<(String, Vec<Cut>)> {
    let doc = Doc::parse(text).ok().filter(|doc| doc.root().is_object())?;
    let mut choices = long_texts(&doc);
    large_containers(&doc, &mut choices);
    if choices.is_empty() {
        return None;
    }
    choices.sort_by_key(|choice| choice.value.start());
    let (mut out, mut at) = (String::with_capacity(ROOM), 0);
    let mut cuts = Vec::with_capacity(choices.len());
    for Choice { value, instead } in choices {
        out.push_str(&doc.text()[at..value.start()]);
        out.push_str(&instead);
        at = value.end();
        let original = value.string().map_or_else(|| value.raw().to_owned(), Into::into);
        cuts.push(Cut { path: path(&doc, value), original });
    }
    out.push_str(&doc.text()[at..]);
    Some((out, cuts))
}

fn size(doc: &Doc<'_>, choices: &[Choice<'_>]) -> usize {
    doc.text().len() - choices.iter().map(Choice::saves).sum::<usize>()
}

/// Chooses texts to cut, the longest first, until the whole fits.
fn long_texts<'d>(doc: &'d Doc<'d>) -> Vec<Choice<'d>> {
    let mut choices: Vec<Choice<'d>> = Vec::new();
    let mut texts: Vec<Value<'d>> = values(doc).filter(|value| value.string().is_some()).collect();
    texts.sort_by_key(|value| Reverse(value.raw().len()));
    let mut excess = doc.text().len().saturating_sub(ROOM);
    let mut texts = texts.into_iter().peekable();
    for (longer, kept) in TEXTS {
        while excess > 0
            && choices.len() < MAX_CUTS
            && let Some(value) = texts.next_if(|value| value.raw().len() > longer)
        {
            let text = value.string().unwrap_or_default();
            let head = &text[..text.floor_char_boundary(kept)];
            let choice = Choice { value, instead: serde_json::Value::from(head).to_string() };
            excess = excess.saturating_sub(choice.saves());
            choices.push(choice);
        }
    }
    choices
}

/// Chooses lists and objects to cut if texts are not enough: nested ones first, and of these
/// the smallest that suffices alone.
fn large_containers<'d>(doc: &'d Doc<'d>, choices: &mut Vec<Choice<'d>>) {
    let mut large: Vec<(usize, Value<'d>)> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    for value in doc.values() {
        while open.last().is_some_and(|after| *after <= value.index()) {
            open.pop();
        }
        if value.is_object() || value.is_list() {
            if value.index() > 0 && value.raw().len() > SMALL {
                large.push((open.len(), value));
            }
            open.push(value.after());
        }
    }
    for is_deep in [true, false] {
        while size(doc, choices) > ROOM && choices.len() < MAX_CUTS {
            let excess = size(doc, choices) - ROOM;
            let fits = |(depth, _): &&(usize, Value<'d>)| (*depth > 1) == is_deep;
            let length = |(_, value): &&(usize, Value<'d>)| value.raw().len();
            let enough = large.iter().filter(fits).filter(|part| length(part) > excess + 32);
            let Some((_, value)) =
                enough.min_by_key(length).or_else(|| large.iter().filter(fits).max_by_key(length))
            else {
                break;
            };
            let (value, inside) = (*value, value.index()..value.after());
            large.retain(|(_, part)| {
                let holds = (part.index()..part.after()).contains(&value.index());
                !inside.contains(&part.index()) && !holds
            });
            choices.retain(|choice| !inside.contains(&choice.value.index()));
            let instead = format!("\"[{} bytes]\"", value.raw().len());
            choices.push(Choice { value, instead });
        }
    }
}

/// All values except keys and the root.
fn values<'d>(doc: &'d Doc<'d>) -> impl Iterator<Item = Value<'d>> {
    let mut is_key = vec![false; doc.values().count()];
    for object in doc.values().filter(|value| value.is_object()) {
        object.members().for_each(|member| is_key[member.key().index()] = true);
    }
    doc.values().skip(1).filter(move |value| !is_key[value.index()])
}

/// The path to a value: names joined by dots.
fn path(doc: &Doc<'_>, value: Value<'_>) -> String {
    let mut path = String::new();
    let mut at = doc.root();
    while at.index() != value.index() && path.len() <= MAX_PATH {
        let holds = |inner: &Value<'_>| (inner.index()..inner.after()).contains(&value.index());
        let named = at.members().find(|member| holds(&member.value()));
        let numbered = at.elements().enumerate().find(|(_, element)| holds(element));
        let (name, inner) = match (named, numbered) {
            (Some(member), _) => (member.name().into_owned(), member.value()),
            (None, Some((number, element))) => (number.to_string(), element),
            (None, None) => break,
        };
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(&name);
        at = inner;
    }
    path.truncate(path.floor_char_boundary(MAX_PATH));
    path
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn fitted(value: &Value) -> Value {
        let mut metadata = NewMetadata::from_value(value);
        fit(&mut metadata);
        metadata.into_metadata().to_value()
    }

    #[test]
    fn large_parts_are_cut_and_their_neighbours_stay() {
        let name = "n".repeat(60_000);
        let said = json!({
            "user": {"pk": null, "username": name, "email": name},
            "context": {"username": name, "http_request": {"path": "/login", "args": {}}},
            "brand": {"name": "acme"},
            "client_ip": "203.0.113.7",
        });
        let kept = fitted(&said);
        assert_eq!(kept["context"]["http_request"], said["context"]["http_request"]);
        assert_eq!((&kept["brand"], &kept["client_ip"]), (&said["brand"], &said["client_ip"]));
        assert_eq!(kept["user"]["username"], "n".repeat(256));
        let cut = &kept["_dezky"]["cut"];
        for path in ["user.username", "user.email", "context.username"] {
            assert_eq!(cut[path]["bytes"], 60_000, "{path}");
        }
        assert!(kept["_dezky"].get("truncated").is_none());
    }

    #[test]
    fn metadata_that_fits_stays() {
        let said = json!({"a": "x".repeat(50_000), "b": [1, 2]});
        assert_eq!(fitted(&said), said);
    }

    #[test]
    fn only_as_much_is_cut_as_is_needed() {
        let said = json!({"a": {"long": "x".repeat(57_000), "short": "y".repeat(2_000)}});
        let kept = fitted(&said);
        assert_eq!(kept["a"]["short"], said["a"]["short"]);
        assert_eq!(kept["_dezky"]["cut"].as_object().unwrap().len(), 1);
    }

    #[test]
    fn a_long_list_goes_and_its_neighbours_stay() {
        let frames: Vec<_> = (0..5_000).map(|n| json!({"line": n, "name": "f"})).collect();
        let kept = fitted(&json!({
            "context": {"exception": [{"frames": frames, "type": "E"}], "message": "m"},
        }));
        assert_eq!(kept["context"]["message"], "m");
        assert_eq!(kept["context"]["exception"][0]["type"], "E");
        let cut = kept["_dezky"]["cut"].as_object().unwrap();
        assert_eq!(cut.keys().collect::<Vec<_>>(), ["context.exception.0.frames"]);
    }

    #[test]
    fn each_cut_has_a_note_whatever_its_path() {
        let long = |c: &str| c.repeat(50_000);
        let said = json!({"a.b": long("x"), "a": {"b": long("y")}, "line": long("z")});
        let mut metadata = NewMetadata::from_value(&said);
        metadata.note_cut("line", "the line itself");
        fit(&mut metadata);
        let kept = metadata.into_metadata().to_value();
        let cut = kept["_dezky"]["cut"].as_object().unwrap();
        assert_eq!(cut["line"]["bytes"], 15);
        assert_eq!(cut.keys().collect::<Vec<_>>(), ["a.b", "a.b~", "line", "line~"]);
    }

    #[test]
    fn numbers_and_odd_spellings_stay_as_they_were() {
        let long = "x".repeat(60_000);
        let text = format!(r#"{{"n":123456789012345678901234567890,"s":"\ud83d","l":"{long}"}}"#);
        let (text, cuts) = cut(&text).unwrap();
        assert!(text.starts_with(r#"{"n":123456789012345678901234567890,"s":"\ud83d","l":"xx"#));
        assert_eq!(cuts.len(), 1);
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            (0..40_000_usize).prop_map(|n| "ü".repeat(n / 2).into()),
            ".{0,300}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..9).prop_map(Value::from),
                prop::collection::btree_map(".{0,20}", inner, 0..6).prop_map(|members| members
                    .into_iter()
                    .collect::<serde_json::Map<_, _>>()
                    .into()),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_result_is_always_an_object_that_fits(parts in prop::collection::vec(any_value(), 1..5)) {
            let members = parts.into_iter().enumerate().map(|(at, part)| (at.to_string(), part));
            let said: Value = members.collect::<serde_json::Map<_, _>>().into();
            let text = said.to_string();
            if let Some((cut, _)) = (text.len() > LARGE).then(|| cut(&text)).flatten() {
                prop_assert!(cut.len() < text.len());
                prop_assert!(serde_json::from_str::<Value>(&cut).unwrap().is_object());
            }
            prop_assert!(fitted(&said).is_object());
        }
    }
}

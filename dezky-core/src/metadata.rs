//! Metadata: the remaining data of an event as its source sent it, within bounds.

use std::borrow::{Borrow, Cow};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::canonical::{self, Bounds, compare_keys, write_scalar, write_string};
use crate::json::{Doc, Member};

/// Bounds of the whole canonical text.
const WHOLE: Bounds = Bounds { depth: 64, bytes: 64 << 10 };
/// Bounds of a member's value.
const VALUE: Bounds = Bounds { depth: WHOLE.depth - 1, ..WHOLE };
/// Bounds of a value within [`ANNOTATIONS`].
const ANNOTATION: Bounds = Bounds { depth: WHOLE.depth - 2, bytes: usize::MAX };

/// The member with dezky's own annotations.
const ANNOTATIONS: &str = "_dezky";
const ANNOTATIONS_BYTES: usize = 32 << 10;
/// Bounds of the remains of a source's part that exceeds the bounds.
const SCALARS_BYTES: usize = 8 << 10;
const SCALAR: Bounds = Bounds { depth: 0, bytes: 256 };
const RAW_IP_BYTES: usize = 256;
/// Maximum number of dropped annotations that are named, and maximum length of such a name.
const DROPPED_NAMES: usize = 16;
const DROPPED_NAME_BYTES: usize = 64;

const CUT: &str = "cut";
const DROPPED: &str = "dropped";
const RAW_IP: &str = "rawIp";
const SOURCE: &str = "source";
const TRUNCATED: &str = "truncated";

/// An event's metadata: the canonical text of a JSON object, at most 64 deep and
/// 64 KiB long.
///
/// The text itself is hashed and verified. With `serde_json`, it serializes as an object;
/// deserializing brings any JSON object within the bounds to canonical form.
///
/// ```
/// use dezky_core::{Metadata, NewMetadata};
/// let metadata = NewMetadata::from_source(r#"{ "size": 1.0, "name": "x" }"#).into_metadata();
/// assert_eq!(metadata.as_str(), r#"{"name":"x","size":1}"#);
/// assert_eq!(metadata.to_value()["name"], "x");
/// assert_eq!(Metadata::from_canonical(metadata.as_str()), Some(metadata));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata(Box<str>);

impl Metadata {
    /// Accepts text that is canonical, an object and within the bounds; returns `None` otherwise.
    pub fn from_canonical(text: impl Into<Box<str>>) -> Option<Self> {
        let text = text.into();
        let metadata = Self::canonicalize(&text)?;
        (metadata.0 == text).then_some(metadata)
    }

    /// Takes text from a store unchecked, for back ends that read rows.
    ///
    /// An altered text must be readable, so that verification reports it instead of failing with an
    /// error.
    pub fn from_stored(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// Returns the metadata with `_dezky.<key>` set; `None` if the result exceeds the bounds or
    /// this is not an object. The texts of the other members stay as they are.
    pub fn annotated(&self, key: &str, value: &Value) -> Option<Self> {
        let mut members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&self.0).ok()?;
        let annotations = members.get(ANNOTATIONS).map_or("{}", |annotations| annotations.get());
        let mut annotations: BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(annotations).ok()?;
        annotations.insert(key.to_owned(), to_raw_value(value).ok()?);
        members.insert(ANNOTATIONS.to_owned(), to_raw_value(&annotations).ok()?);
        Self::canonicalize(&serde_json::to_string(&members).ok()?)
    }

    fn canonicalize(raw: &str) -> Option<Self> {
        let doc = object(raw)?;
        let mut text = String::with_capacity(raw.len().min(WHOLE.bytes));
        canonical::write(doc.root(), &mut text, WHOLE).ok()?;
        if let Some(annotations) = doc.root().get(ANNOTATIONS) {
            let bounds = Bounds { bytes: ANNOTATIONS_BYTES, ..VALUE };
            canonical::write(annotations, &mut String::new(), bounds).ok()?;
        }
        Some(Self(text.into()))
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text as a value; `null` if it was read from a store and is not valid JSON.
    pub fn to_value(&self) -> Value {
        serde_json::from_str(&self.0).unwrap_or(Value::Null)
    }
}

impl Default for Metadata {
    /// `{}`
    fn default() -> Self {
        Self("{}".into())
    }
}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serde_json::from_str::<&RawValue>(&self.0) {
            Ok(raw) => raw.serialize(serializer),
            // The row was altered: one bad row must not hide the timeline.
            Err(_) => serializer.serialize_str(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::canonicalize(raw.get()).ok_or_else(|| {
            D::Error::custom("metadata must be a JSON object, at most 64 deep and 64 KiB long")
        })
    }
}

/// The metadata of a new event: the source's data as raw text, and dezky's own annotations, which
/// go under `_dezky`.
///
/// [`into_metadata`](Self::into_metadata) combines them; it never fails.
///
/// ```
/// use dezky_core::NewMetadata;
/// let metadata = NewMetadata::from_source(r#"{"path": "/a", "_dezky": 1}"#)
///     .with_annotation("requestId", "r-1")
///     .into_metadata();
/// assert_eq!(
///     metadata.as_str(),
///     r#"{"_dezky":{"requestId":"r-1","source":1},"path":"/a"}"#,
/// );
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NewMetadata {
    source: Option<String>,
    annotations: Map<String, Value>,
}

impl NewMetadata {
    /// Starts with the source's data: the text of a JSON object, as received.
    pub fn from_source(raw: impl Into<String>) -> Self {
        Self { source: Some(raw.into()), annotations: Map::new() }
    }

    /// Like [`from_source`](Self::from_source), from a value, which should be an object.
    pub fn from_value(value: impl Borrow<Value>) -> Self {
        Self::from_source(value.borrow().to_string())
    }

    /// Sets the source's data.
    pub fn set_source(&mut self, raw: impl Into<String>) {
        self.source = Some(raw.into());
    }

    /// The source's data as received.
    pub fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// Sets `_dezky.<key>`.
    ///
    /// `before` and `after` are for the states around a change. The names `source`, `truncated` and
    /// `dropped` are set by [`into_metadata`](Self::into_metadata) only; annotations with these
    /// names are left out. `cut` and `rawIp` are set when sealing.
    pub fn annotate(&mut self, key: &str, value: impl Into<Value>) {
        self.annotations.insert(key.to_owned(), value.into());
    }

    /// Sets `_dezky.<key>`; see [`annotate`](Self::annotate).
    #[must_use]
    pub fn with_annotation(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.annotate(key, value);
        self
    }

    /// The value of `_dezky.<key>`, if it was set.
    pub fn annotation(&self, key: &str) -> Option<&Value> {
        self.annotations.get(key)
    }

    /// Notes that a text was truncated: `_dezky.cut.<field> = {bytes, sha256}` of the original
    /// text. `field` is a field of the event, or the path of a member of the source's data.
    pub fn note_cut(&mut self, field: &str, original: &str) {
        let cuts = self.annotations.entry(CUT).or_insert_with(|| Map::new().into());
        if !cuts.is_object() {
            *cuts = Map::new().into();
        }
        cuts[field] = serde_json::json!({
            "bytes": original.len(),
            "sha256": hex::encode(Sha256::digest(original)),
        });
    }

    /// Keeps the text of an unreadable address, truncated if it is long.
    pub(crate) fn note_raw_ip(&mut self, raw: &str) {
        if raw.len() > RAW_IP_BYTES {
            self.note_cut("actorIp", raw);
        }
        self.annotate(RAW_IP, &raw[..raw.floor_char_boundary(RAW_IP_BYTES)]);
    }

    /// Combines both parts into canonical text that is always within the bounds.
    ///
    /// - A `_dezky` member of the source becomes `_dezky.source`.
    /// - If annotations make `_dezky` exceed 32 KiB, `before` and `after` are dropped; if that is
    ///   not enough, further annotations are dropped one by one, the largest first, equally large
    ///   ones in key order, `cut` and `rawIp` last. An annotation nested too deeply is always
    ///   dropped. `_dezky.dropped` names the first 16 dropped annotations, except names of more
    ///   than 64 bytes.
    /// - If the result is still too large or too deep, or the source's data is not a JSON object,
    ///   the source's data is replaced by its top-level scalars whose canonical form has at most
    ///   256 bytes, in key order up to the first with which the object of them would exceed 8 KiB.
    ///   In addition, `_dezky.truncated = {bytes, sha256}` describes the text as received.
    pub fn into_metadata(self) -> Metadata {
        let mut annotations = Annotations::new(&self.annotations);
        let raw = self.source.as_deref();
        let doc = object(raw.unwrap_or("{}"));
        let members = doc.as_ref().map(|doc| canonical::members(doc.root()));
        let whole = members.as_ref().and_then(|members| whole(members, &mut annotations));
        let text = whole.or_else(|| reduced(&members.unwrap_or_default(), &mut annotations, raw?));
        // Never the default: the reduced form always fits.
        text.map_or_else(Metadata::default, Metadata)
    }
}

/// A text as a document, if it is a JSON object.
fn object(raw: &str) -> Option<Doc<'_>> {
    Doc::parse(raw).ok().filter(|doc| doc.root().is_object())
}

/// A member with its decoded name.
type Named<'d> = (Cow<'d, str>, Member<'d>);

/// The source's complete data with the annotations, if it fits.
fn whole(members: &[Named<'_>], annotations: &mut Annotations) -> Option<Box<str>> {
    annotations.fit(&[]);
    let theirs = match members.iter().find(|(name, _)| name == ANNOTATIONS) {
        Some((_, member)) => {
            let mut value = String::new();
            let bounds = Bounds { bytes: ANNOTATIONS_BYTES, ..ANNOTATION };
            canonical::write(member.value(), &mut value, bounds).ok()?;
            vec![Entry::new(SOURCE, &value)]
        }
        None => Vec::new(),
    };
    let annotations = annotations.text(&theirs);
    if annotations.as_ref().is_some_and(|text| text.len() > ANNOTATIONS_BYTES) {
        return None;
    }
    assemble(members.iter(), annotations)
}

/// The remains of a source's data that exceeds the bounds, with the annotations.
fn reduced(members: &[Named<'_>], annotations: &mut Annotations, raw: &str) -> Option<Box<str>> {
    let (bytes, sha256) = (raw.len(), hex::encode(Sha256::digest(raw)));
    let mut extra =
        vec![Entry::new(TRUNCATED, &format!(r#"{{"bytes":{bytes},"sha256":"{sha256}"}}"#))];
    let mut kept = Vec::new();
    let mut size = 1;
    let mut value = String::new();
    for named @ (name, member) in members {
        value.clear();
        if canonical::write(member.value(), &mut value, SCALAR).is_err() {
            continue;
        }
        size += Entry::new(name, &value).text.len() + 1;
        if size > SCALARS_BYTES {
            break;
        }
        if name == ANNOTATIONS {
            extra.push(Entry::new(SOURCE, &value));
        }
        kept.push(named);
    }
    annotations.fit(&extra);
    assemble(kept.into_iter(), annotations.text(&extra))
}

/// The object of `members` with `annotations` in place of their [`ANNOTATIONS`], if it is within
/// the bounds.
fn assemble<'m>(
    members: impl Iterator<Item = &'m Named<'m>> + Clone,
    mut annotations: Option<String>,
) -> Option<Box<str>> {
    fn write_annotations(out: &mut String, annotations: Option<String>) {
        if let Some(annotations) = annotations {
            separate(out);
            write_string(out, ANNOTATIONS);
            out.push(':');
            out.push_str(&annotations);
        }
    }
    fn separate(out: &mut String) {
        if out.len() > 1 {
            out.push(',');
        }
    }

    let capacity = members
        .clone()
        .map(|(_, member)| member.key().raw().len() + member.value().raw().len() + 2)
        .chain(annotations.as_ref().map(|annotations| annotations.len() + ANNOTATIONS.len() + 4))
        .sum::<usize>();
    let mut out = String::with_capacity(capacity.min(WHOLE.bytes) + 2);
    out.push('{');
    for (name, member) in members {
        if annotations.is_some() && compare_keys(ANNOTATIONS, name) != Ordering::Greater {
            write_annotations(&mut out, annotations.take());
        }
        if name == ANNOTATIONS {
            continue;
        }
        separate(&mut out);
        write_scalar(member.key(), &mut out);
        out.push(':');
        canonical::write(member.value(), &mut out, VALUE).ok()?;
        if out.len() > WHOLE.bytes {
            return None;
        }
    }
    write_annotations(&mut out, annotations);
    out.push('}');
    (out.len() <= WHOLE.bytes).then(|| out.into_boxed_str())
}

/// A member in canonical text.
struct Entry {
    key: String,
    /// Key and value.
    text: String,
}

impl Entry {
    fn new(key: &str, canonical_value: &str) -> Self {
        let mut text = String::with_capacity(key.len() + canonical_value.len() + 3);
        write_string(&mut text, key);
        text.push(':');
        text.push_str(canonical_value);
        Self { key: key.to_owned(), text }
    }

    /// The order in which annotations are dropped.
    fn rank(&self) -> u8 {
        match self.key.as_str() {
            "before" | "after" => 0,
            CUT | RAW_IP => 2,
            _ => 1,
        }
    }
}

/// Dezky's own annotations.
struct Annotations {
    /// In key order.
    entries: Vec<Entry>,
    /// The names of dropped annotations, in the order of dropping.
    dropped: Vec<String>,
}

impl Annotations {
    fn new(annotations: &Map<String, Value>) -> Self {
        let mut all = Self { entries: Vec::with_capacity(annotations.len()), dropped: Vec::new() };
        for (key, value) in annotations {
            let key = key.replace('\0', "\u{fffd}");
            if matches!(key.as_str(), SOURCE | TRUNCATED | DROPPED) {
                continue;
            }
            let raw = value.to_string();
            let mut text = String::with_capacity(raw.len());
            let written = Doc::parse(&raw)
                .is_ok_and(|doc| canonical::write(doc.root(), &mut text, ANNOTATION).is_ok());
            if written {
                all.entries.push(Entry::new(&key, &text));
            } else {
                all.dropped.push(key);
            }
        }
        // As in any object, the last of equal keys wins.
        all.entries.reverse();
        all.entries.sort_by(|a, b| compare_keys(&a.key, &b.key));
        all.entries.dedup_by(|a, b| a.key == b.key);
        all
    }

    /// The entry `_dezky.dropped`.
    fn note(&self) -> Option<Entry> {
        if self.dropped.is_empty() {
            return None;
        }
        let mut names = String::from("[");
        for name in
            self.dropped.iter().filter(|n| n.len() <= DROPPED_NAME_BYTES).take(DROPPED_NAMES)
        {
            if names.len() > 1 {
                names.push(',');
            }
            write_string(&mut names, name);
        }
        names.push(']');
        Some(Entry::new(DROPPED, &names))
    }

    /// Drops annotations until the rest fits together with `extra`.
    fn fit(&mut self, extra: &[Entry]) {
        let size = |entries: &[Entry]| entries.iter().map(|e| e.text.len() + 1).sum::<usize>();
        // The braces, and a comma after every entry except the last.
        let fixed = 1 + size(extra);
        let mut sum = size(&self.entries);
        let mut noted = size(self.note().as_slice());
        if fixed + sum + noted <= ANNOTATIONS_BYTES {
            return;
        }
        // The sort is stable, so equally large annotations stay in key order.
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        order.sort_by_key(|&i| {
            let entry = &self.entries[i];
            (entry.rank(), std::cmp::Reverse(if entry.rank() == 0 { 0 } else { entry.text.len() }))
        });
        let mut gone = BTreeSet::new();
        for i in order {
            let entry = &self.entries[i];
            // A `before` without its `after` would mislead, so both are dropped.
            if fixed + sum + noted <= ANNOTATIONS_BYTES && entry.rank() != 0 {
                break;
            }
            sum -= entry.text.len() + 1;
            gone.insert(i);
            self.dropped.push(entry.key.clone());
            if gone.len() <= DROPPED_NAMES {
                noted = size(self.note().as_slice());
            }
        }
        let mut i = 0;
        self.entries.retain(|_| {
            i += 1;
            !gone.contains(&(i - 1))
        });
    }

    /// The object of all annotations and `extra`; `None` if there are none.
    fn text(&self, extra: &[Entry]) -> Option<String> {
        let note = self.note();
        let mut entries: Vec<&Entry> = self.entries.iter().chain(extra).chain(&note).collect();
        if entries.is_empty() {
            return None;
        }
        entries.sort_by(|a, b| compare_keys(&a.key, &b.key));
        let mut text = String::from("{");
        for (i, entry) in entries.iter().enumerate() {
            if i > 0 {
                text.push(',');
            }
            text.push_str(&entry.text);
        }
        text.push('}');
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::canonical::canonicalize;
    use crate::canonical::tests::json as json_text;

    fn sha256(text: &str) -> String {
        hex::encode(Sha256::digest(text))
    }

    fn truncated(raw: &str) -> Value {
        json!({ "bytes": raw.len(), "sha256": sha256(raw) })
    }

    /// Nested arrays.
    fn nested(depth: usize) -> String {
        format!("{}{}", "[".repeat(depth), "]".repeat(depth))
    }

    fn assemble_value(new: &NewMetadata) -> Value {
        let metadata = new.clone().into_metadata();
        assert_eq!(Metadata::from_canonical(metadata.as_str()).as_ref(), Some(&metadata));
        metadata.to_value()
    }

    #[test]
    fn ordinary() {
        assert_eq!(NewMetadata::default().into_metadata().as_str(), "{}");
        for (raw, text) in [
            ("{}", r#"{"_dezky":{"k":1}}"#),
            (r#"{"a":1,"Z":2}"#, r#"{"Z":2,"_dezky":{"k":1},"a":1}"#),
            (r#"{"z":1}"#, r#"{"_dezky":{"k":1},"z":1}"#),
            (r#"{"Z":1}"#, r#"{"Z":1,"_dezky":{"k":1}}"#),
            (
                r#"{"_dezky":{"b":1,"a":2},"a":0}"#,
                r#"{"_dezky":{"k":1,"source":{"a":2,"b":1}},"a":0}"#,
            ),
            (r#"{"_dezk\u0079":3}"#, r#"{"_dezky":{"k":1,"source":3}}"#),
        ] {
            let new = NewMetadata::from_source(raw).with_annotation("k", 1);
            assert_eq!(new.annotation("k"), Some(&json!(1)));
            assert_eq!(new.into_metadata().as_str(), text);
        }
        let theirs = NewMetadata::from_source(r#"{"_dezky":{}}"#).into_metadata();
        assert_eq!(theirs.as_str(), r#"{"_dezky":{"source":{}}}"#);
    }

    #[test]
    fn annotations_alone() {
        let mut new = NewMetadata::from_value(json!({ "b": "x" }))
            .with_annotation("a\0", u64::MAX)
            .with_annotation("source", 1)
            .with_annotation("truncated", 1)
            .with_annotation("dropped", 1);
        new.note_cut("actorId", "abc");
        new.note_raw_ip("fe80::1%eth0");
        assert_eq!(
            assemble_value(&new),
            json!({ "b": "x", "_dezky": {
                "a\u{fffd}": "18446744073709551615",
                "cut": { "actorId": truncated("abc") },
                "rawIp": "fe80::1%eth0",
            }})
        );
        let long = "ü".repeat(200);
        new.note_raw_ip(&long);
        let own = &assemble_value(&new)["_dezky"];
        assert_eq!(own["rawIp"], "ü".repeat(128));
        assert_eq!(own["cut"], json!({ "actorId": truncated("abc"), "actorIp": truncated(&long) }));
    }

    #[test]
    fn no_object() {
        for raw in ["", "[]", "1", "null", "\"a\"", "{", "{}x", "\u{feff}{}", &nested(100_000)] {
            let new = NewMetadata::from_source(raw);
            assert_eq!(assemble_value(&new), json!({ "_dezky": { "truncated": truncated(raw) } }));
        }
    }

    #[test]
    fn depth() {
        let at = |depth: usize| format!("{{\"a\":{}}}", nested(depth - 1));
        assert_eq!(NewMetadata::from_source(at(64)).into_metadata().as_str(), at(64));
        for (depth, scalar) in [(65, "1"), (100_000, "\"\\ud800\"")] {
            let raw = format!("{{\"s\": {scalar}, \"a\": {}, \"o\": {{}}}}", nested(depth - 1));
            let value: Value = serde_json::from_str(&canonicalize(scalar).unwrap()).unwrap();
            assert_eq!(
                assemble_value(&NewMetadata::from_source(&raw)),
                json!({ "s": value, "_dezky": { "truncated": truncated(&raw) } })
            );
        }
        // Overridden members don't count.
        let raw = format!("{{\"a\":{},\"a\":1}}", nested(99));
        assert_eq!(NewMetadata::from_source(raw).into_metadata().as_str(), r#"{"a":1}"#);
        // Moved under `_dezky`, it is one level deeper.
        let own = |depth: usize| format!("{{\"_dezky\":{}}}", nested(depth));
        let fits = NewMetadata::from_source(own(62)).into_metadata();
        assert_eq!(fits.as_str(), format!("{{\"_dezky\":{{\"source\":{}}}}}", nested(62)));
        assert_eq!(
            assemble_value(&NewMetadata::from_source(own(63))),
            json!({ "_dezky": { "truncated": truncated(&own(63)) } })
        );
        // The same holds for annotations.
        for (depth, kept) in [(62, true), (63, false)] {
            let value: Value = serde_json::from_str(&nested(depth)).unwrap();
            let new = NewMetadata::default().with_annotation("deep", value.clone());
            let own = if kept { json!({ "deep": value }) } else { json!({ "dropped": ["deep"] }) };
            assert_eq!(assemble_value(&new), json!({ "_dezky": own }));
        }
    }

    #[test]
    fn size() {
        let of = |size: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(size - 8));
        assert_eq!(NewMetadata::from_source(of(65536)).into_metadata().as_str(), of(65536));
        let raw = of(65537);
        let gone = json!({ "_dezky": { "truncated": truncated(&raw) } });
        assert_eq!(assemble_value(&NewMetadata::from_source(&raw)), gone);
        // The canonical size counts.
        let spaced = of(65536).replace(':', &" ".repeat(70_000).replacen(' ', ":", 1));
        assert_eq!(NewMetadata::from_source(spaced).into_metadata().as_str(), of(65536));
        // Both parts together count.
        let new = NewMetadata::from_source(of(65536)).with_annotation("k", 1);
        assert_eq!(
            assemble_value(&new),
            json!({ "_dezky": { "k": 1, "truncated": truncated(&of(65536)) } })
        );
    }

    #[test]
    fn scalars_that_remain() {
        let long = format!("\"{}\"", "y".repeat(254));
        let longer = format!("\"{}\"", "y".repeat(255));
        let raw = format!(
            r#"{{"d":null,"c":{longer},"b":{long},"a":{{}},"_dezky":"theirs","z":"{}"}}"#,
            "x".repeat(66_000)
        );
        assert_eq!(
            assemble_value(&NewMetadata::from_source(&raw).with_annotation("k", true)),
            json!({
                "b": "y".repeat(254),
                "d": null,
                "_dezky": { "k": true, "source": "theirs", "truncated": truncated(&raw) },
            })
        );
        // Each member takes 262 bytes and a comma: 31 of them fit 8 KiB.
        let members: Vec<_> = (10..99).map(|i| format!("\"{i}\":{}", &long)).collect();
        let raw = format!("{{{},\"z\":{}}}", members.join(","), nested(70));
        let value = assemble_value(&NewMetadata::from_source(&raw));
        assert_eq!(value.as_object().unwrap().len(), 31 + 1);
        assert!(value.get("40").is_some() && value.get("41").is_none());
    }

    #[test]
    fn too_many_annotations() {
        let text = |size: usize| Value::from("x".repeat(size - 2));
        let new = NewMetadata::from_source(r#"{"a":1}"#)
            .with_annotation("before", text(100))
            .with_annotation("after", text(30_000))
            .with_annotation("k", text(3_000));
        assert_eq!(
            assemble_value(&new),
            json!({ "a": 1, "_dezky": { "k": text(3_000), "dropped": ["after", "before"] } })
        );
        let mut new = new.with_annotation("l", text(33_000)).with_annotation("m", text(2_999));
        new.note_raw_ip("x");
        assert_eq!(
            assemble_value(&new)["_dezky"],
            json!({
                "k": text(3_000), "m": text(2_999), "rawIp": "x",
                "dropped": ["after", "before", "l"],
            })
        );
        // Exactly 32 KiB is enough.
        let fits = NewMetadata::default().with_annotation("before", text(32_768 - 11));
        assert_eq!(assemble_value(&fits)["_dezky"]["before"], text(32_768 - 11));
        let more = NewMetadata::default().with_annotation("before", text(32_768 - 10));
        assert_eq!(assemble_value(&more), json!({ "_dezky": { "dropped": ["before"] } }));
        // The source's data is reduced, not the annotations.
        let raw = format!(r#"{{"_dezky":"{}","a":1}}"#, "x".repeat(3_000));
        let new = NewMetadata::from_source(&raw).with_annotation("before", text(30_000));
        assert_eq!(
            assemble_value(&new),
            json!({ "a": 1, "_dezky": { "before": text(30_000), "truncated": truncated(&raw) } })
        );
    }

    #[test]
    fn one_more_annotation_leaves_the_rest_as_it_is() {
        let metadata = |text: &str| Metadata::from_canonical(text).unwrap();
        let before = metadata(r#"{"_dezky":{"tenantBy":"unresolved"},"n":9007199254740993}"#);
        assert_eq!(
            before.annotated("tenantBy", &json!("domain")).unwrap().as_str(),
            r#"{"_dezky":{"tenantBy":"domain"},"n":9007199254740993}"#
        );
        assert_eq!(
            metadata("{}").annotated("k", &json!(true)).unwrap().as_str(),
            r#"{"_dezky":{"k":true}}"#
        );
        assert_eq!(Metadata::from_stored("{").annotated("k", &json!(1)), None);
        let full = metadata(&format!("{{\"a\":\"{}\"}}", "x".repeat(65_528)));
        assert_eq!(full.annotated("k", &json!(1)), None);
    }

    #[test]
    fn canonical_or_not() {
        for text in ["{}", r#"{"a":[1,"x"]}"#] {
            assert_eq!(Metadata::from_canonical(text).unwrap().as_str(), text);
        }
        let long = format!("{{\"_dezky\":\"{}\"}}", "x".repeat(ANNOTATIONS_BYTES));
        for text in ["", "[]", "{ }", "1", r#"{"b":1,"a":2}"#, r#"{"a":1.0}"#, &long] {
            assert_eq!(Metadata::from_canonical(text), None, "{text}");
        }
    }

    #[test]
    fn serde() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Outer {
            metadata: Metadata,
        }
        let text = r#"{"metadata":{"a":{"f":1e+21,"n":9007199254740993},"b":"é"}}"#;
        let outer: Outer = serde_json::from_str(
            "{\"metadata\": {\"b\": \"\\u00e9\", \"a\": {\"n\": 9007199254740993, \"f\": 1e21}}}",
        )
        .unwrap();
        assert_eq!(serde_json::to_string(&outer).unwrap(), text);
        let value = serde_json::to_value(&outer).unwrap();
        assert_eq!(value["metadata"], outer.metadata.to_value());
        assert_eq!(serde_json::from_value::<Outer>(value).unwrap(), outer);
        assert!(serde_json::from_str::<Outer>("{\"metadata\":[]}").is_err());
        // An altered row is listed as stored.
        assert_eq!(serde_json::to_string(&Metadata::from_stored("{")).unwrap(), "\"{\"");
        assert_eq!(Metadata::from_stored("{").to_value(), Value::Null);
    }

    /// A part of the metadata, occasionally a large one.
    fn part() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => json_text(),
            1 => (0usize..40_000).prop_map(|n| format!("\"{}\"", "\\n".repeat(n))),
            1 => (1usize..80).prop_map(nested),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn always_canonical_and_within_bounds(
            source in prop_oneof![
                1 => Just(None),
                1 => part().prop_map(Some),
                6 => prop::collection::vec((prop_oneof!["[a-z_]{1,9}", Just(ANNOTATIONS.to_owned())], part()), 0..5)
                    .prop_map(|members| {
                        let members: Vec<_> =
                            members.iter().map(|(k, v)| format!("\"{k}\" : {v}")).collect();
                        Some(format!("{{{}}}", members.join(",")))
                    }),
            ],
            annotations in prop::collection::vec(
                (prop_oneof!["[a-z\\x00]{0,70}", Just("before".to_owned()), Just("after".to_owned())], part()),
                0..5,
            ),
            raw_ip in prop::option::of(any::<String>()),
        ) {
            let mut new = NewMetadata { source: source.clone(), ..NewMetadata::default() };
            for (key, text) in &annotations {
                let value: Value = serde_json::from_str(&canonicalize(text).unwrap()).unwrap();
                new.annotate(key, value);
            }
            if let Some(raw) = &raw_ip {
                new.note_raw_ip(raw);
            }
            let metadata = new.into_metadata();
            prop_assert_eq!(canonicalize(metadata.as_str()).unwrap(), metadata.as_str());
            prop_assert!(Metadata::from_canonical(metadata.as_str()).is_some());
            let value = metadata.to_value();
            prop_assert!(value.is_object());
            if raw_ip.is_some() {
                prop_assert!(value[ANNOTATIONS][RAW_IP].is_string());
            }
            if let Some(own) = value.get(ANNOTATIONS) {
                prop_assert!(canonicalize(&own.to_string()).unwrap().len() <= ANNOTATIONS_BYTES);
            } else if let Some(source) = source {
                prop_assert_eq!(canonicalize(&source).unwrap(), metadata.as_str());
            }
        }
    }
}

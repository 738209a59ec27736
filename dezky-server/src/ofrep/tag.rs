//! Tags of bulk answers: they say whether an answer would be another one without
//! making it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use axum::http::{HeaderMap, header};
use dezky_flags::live::LiveSet;
use dezky_flags::openfeature::MAPPING_VERSION;
use dezky_flags::store::Snapshot;
use sha2::{Digest as _, Sha256};

use super::context::Axes;

/// What tells sets of flags apart, kept while the set is the same.
#[derive(Debug, Default)]
pub(crate) struct SetDigest(Mutex<Option<(Weak<LiveSet>, String)>>);

impl SetDigest {
    /// Which flags they are: their revision and a digest of what decides of them. The
    /// revision alone would take two stores for one, or a store for the one that it was
    /// before it was restored from a backup or somebody edited a row.
    pub(super) fn id(&self, flags: &Arc<LiveSet>) -> String {
        format!("{}-{}", flags.revision(), self.of(flags))
    }

    fn of(&self, flags: &Arc<LiveSet>) -> String {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, digest)) = &*kept
            && std::ptr::eq(of.as_ptr(), Arc::as_ptr(flags))
        {
            return digest.clone();
        }
        let digest = digest(flags.snapshot());
        *kept = Some((Arc::downgrade(flags), digest.clone()));
        digest
    }

    /// The tag of the answer of `flags` to `axes`.
    pub(super) fn tag(&self, flags: &Arc<LiveSet>, axes: &Axes) -> String {
        let axes = hex::encode(&axes.digest()[..16]);
        format!("\"{MAPPING_VERSION}-{}-{axes}\"", self.id(flags))
    }
}

/// Differs when an answer can. Neither histories nor times are in it: flags that come
/// from the file of a start without the store are the same ones.
fn digest(snapshot: &Snapshot) -> String {
    let mut digest = Sha256::new();
    let mut line = Vec::new();
    for flag in &snapshot.flags {
        line.clear();
        let decides = (&flag.key, flag.state, flag.pct, &flag.scope, &flag.options);
        // Into memory, of what has a form as JSON: it can't fail.
        let _ = serde_json::to_writer(&mut line, &decides);
        // In JSON every line feed is escaped.
        line.push(b'\n');
        digest.update(&line);
    }
    for flag in &snapshot.invalid {
        digest.update(&flag.key);
        digest.update(b"\n");
    }
    hex::encode(&digest.finalize()[..8])
}

/// Whether `If-None-Match` names the tag: in a list, weak, or by `*`.
pub(super) fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter();
    // None of our tags has a comma.
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(|known| {
        let known = known.trim();
        known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_tells_flags_apart_by_what_decides() {
        let of = |flags: &str, invalid: &str| {
            let text = format!(r#"{{"revision": 7, "flags": [{flags}], "invalid": [{invalid}]}}"#);
            digest(&Snapshot::from_json(&text).unwrap())
        };
        let flag = |change: &str| {
            let mut flag = serde_json::json!({
                "key": "k", "description": "", "state": "rollout", "pct": 10,
                "scope": { "plans": ["pro"] }, "history": [], "version": 3,
                "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "2026-01-01T00:00:00.000Z",
            });
            let change: serde_json::Map<_, _> = serde_json::from_str(change).unwrap();
            flag.as_object_mut().unwrap().extend(change);
            flag.to_string()
        };
        let same = of(&flag("{}"), "");
        assert_eq!(
            same,
            of(&flag(r#"{"version": 4, "updatedAt": "2026-02-01T00:00:00.000Z"}"#), "")
        );
        let invalid = r#"{"key": "k", "problem": "p"}"#;
        let all = [
            same,
            of("", ""),
            of("", invalid),
            of(&flag(r#"{"key": "l"}"#), ""),
            of(&flag(r#"{"state": "on"}"#), ""),
            of(&flag(r#"{"pct": 11}"#), ""),
            of(&flag(r#"{"scope": {"plans": ["basic"]}}"#), ""),
            of(&flag(r#"{"scope": {"environments": ["pro"]}}"#), ""),
            of(&flag(r#"{"options": {"seed": "s"}}"#), ""),
        ];
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "{all:?}");
    }

    #[test]
    fn a_known_tag_is_found_in_every_form() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::IF_NONE_MATCH, value.parse().unwrap());
            }
            is_known(&headers, "\"1-7-ab-cd\"")
        };
        for known in [
            &["\"1-7-ab-cd\""][..],
            &["W/\"1-7-ab-cd\""],
            &["*"],
            &["\"x\", W/\"y\" ,\"1-7-ab-cd\""],
            &["\"x\"", "\"1-7-ab-cd\""],
        ] {
            assert!(of(known), "{known:?}");
        }
        for other in [&[][..], &[""], &["\"1-7-ab-ce\""], &["1-7-ab-cd"], &["w/\"1-7-ab-cd\""]] {
            assert!(!of(other), "{other:?}");
        }
    }
}

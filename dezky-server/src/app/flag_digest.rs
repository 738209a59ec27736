//! A digest of the flags as they decide, cached until they change.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use dezky_flags::live::LiveSet;
use dezky_flags::store::Snapshot;
use sha2::{Digest as _, Sha256};

/// The digest of the current set of flags, computed once for each set.
#[derive(Debug, Default)]
pub struct FlagDigest(Mutex<Option<(Weak<LiveSet>, String)>>);

impl FlagDigest {
    /// An id of the flags: their revision and a digest of what they decide by. The revision
    /// alone is not enough: two stores may share it, and so may a store before and after a
    /// backup was restored or a row was edited.
    pub(crate) fn id(&self, flags: &Arc<LiveSet>) -> String {
        format!("{}-{}", flags.revision(), self.of(flags))
    }

    fn of(&self, flags: &Arc<LiveSet>) -> String {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, digest)) = &*cached
            && std::ptr::eq(of.as_ptr(), Arc::as_ptr(flags))
        {
            return digest.clone();
        }
        let digest = digest(flags.snapshot());
        *cached = Some((Arc::downgrade(flags), digest.clone()));
        digest
    }
}

/// Changes whenever a decision can. Histories and times are left out, so that flags that were
/// read from the file, at a start without the store, have the same digest.
fn digest(snapshot: &Snapshot) -> String {
    let mut digest = Sha256::new();
    let mut line = Vec::new();
    for flag in &snapshot.flags {
        line.clear();
        let decides = (&flag.key, flag.state, flag.pct, &flag.scope, &flag.options);
        // Writing JSON into memory can't fail.
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
}

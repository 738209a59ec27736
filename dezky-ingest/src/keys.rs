//! Content keys: identities for events without an id.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

/// Prefix of the content key of an event in a body.
const CONTENT_KEY: &str = "body1:";
/// Prefixes of keys over a line and its position.
const LINE_KEYS: [&str; 2] = ["line1:", "line2:"];

/// Whether an external id has the form of a key that dezky makes from content or position.
pub(crate) fn is_made_key(id: &str) -> bool {
    id.starts_with(CONTENT_KEY) || LINE_KEYS.iter().any(|key| id.starts_with(key))
}

/// Makes the content keys of one request.
///
/// `prefix + ":" + hex(SHA-256(scope ‖ 00 ‖ part ‖ 00 ‖ … ‖ ordinal))`. The ordinal counts, in
/// decimal from 0, the events of the same request that are equal in all parts: a retry sends the
/// same objects, so its keys repeat, whatever the order and the other events.
pub(crate) struct ContentKeys<'s> {
    prefix: &'static str,
    scope: &'s str,
    seen: HashMap<[u8; 32], u64>,
}

impl<'s> ContentKeys<'s> {
    /// Creates keys that begin with `prefix`, within `scope`.
    pub(crate) fn new(prefix: &'static str, scope: &'s str) -> Self {
        Self { prefix, scope, seen: HashMap::new() }
    }

    /// The key of the next event, whose content is `parts`.
    pub(crate) fn key(&mut self, parts: &[&str]) -> String {
        let mut hash = Sha256::new();
        for part in [self.scope].iter().chain(parts) {
            hash.update(part);
            hash.update([0]);
        }
        let ordinal = self.seen.entry(hash.clone().finalize().into()).or_default();
        hash.update(ordinal.to_string());
        *ordinal += 1;
        format!("{}:{}", self.prefix, hex::encode(hash.finalize()))
    }
}

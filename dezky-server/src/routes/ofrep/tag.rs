//! Tags of bulk answers: they say whether an answer would be another one without
//! making it.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use axum::http::{HeaderMap, header};
use dezky_flags::live::LiveSet;
use dezky_flags::openfeature::MAPPING_VERSION;
use sha2::{Digest as _, Sha256};

use super::context::Axes;

/// What tells sets of flags apart, kept while the set is the same.
#[derive(Debug, Default)]
pub(crate) struct SetDigest(Mutex<Option<(Weak<LiveSet>, String)>>);

impl SetDigest {
    /// The revision alone would take two stores for one, or a store for the one that it
    /// was before it was restored from a backup.
    fn of(&self, flags: &Arc<LiveSet>) -> String {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, digest)) = &*kept
            && std::ptr::eq(of.as_ptr(), Arc::as_ptr(flags))
        {
            return digest.clone();
        }
        let mut digest = Sha256::new();
        let mut line = String::new();
        let snapshot = flags.snapshot();
        for flag in &snapshot.flags {
            line.clear();
            // A key holds no such sign.
            let _ = writeln!(line, "{} {} {}", flag.key, flag.version, flag.updated_at);
            digest.update(&line);
        }
        for flag in &snapshot.invalid {
            line.clear();
            let _ = writeln!(line, "{:?} {:?}", flag.key, flag.problem);
            digest.update(&line);
        }
        let digest = hex::encode(&digest.finalize()[..8]);
        *kept = Some((Arc::downgrade(flags), digest.clone()));
        digest
    }

    /// The tag of the answer of `flags` to `axes`.
    pub(super) fn tag(&self, flags: &Arc<LiveSet>, axes: &Axes) -> String {
        format!(
            "\"{MAPPING_VERSION}-{}-{}-{}\"",
            flags.revision(),
            self.of(flags),
            hex::encode(&axes.digest()[..16])
        )
    }
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

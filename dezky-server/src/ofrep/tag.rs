//! Entity tags of bulk answers, which show without evaluating whether an answer has changed.

use std::sync::Arc;

use axum::http::{HeaderMap, header};
use dezky_flags::live::LiveSet;
use dezky_flags::openfeature::MAPPING_VERSION;

use super::context::Axes;
use crate::app::flag_digest::FlagDigest;

/// The tag of the answer of `flags` to `axes`.
pub(super) fn tag(digest: &FlagDigest, flags: &Arc<LiveSet>, axes: &Axes) -> String {
    let axes = hex::encode(&axes.digest()[..16]);
    format!("\"{MAPPING_VERSION}-{}-{axes}\"", digest.id(flags))
}

/// Whether `If-None-Match` matches the tag: in a list, as a weak tag, or by `*`.
pub(super) fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter();
    // The tags of this server contain no comma.
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

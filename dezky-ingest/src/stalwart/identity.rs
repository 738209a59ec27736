//! Identity of an event across retries.
//!
//! The `id` of 0.8 is a snowflake and identifies its event. From 0.9 on it does not: up to 0.16.10
//! it is the second and the number of the type, shared by all events of one type in one second;
//! from 0.16.11 on a counter stands between the two that advances at each *serialisation*, so that
//! every retry has new ids. Those are known by their form, and the event is identified by its
//! content instead.

use dezky_core::Timestamp;

use crate::keys::ContentKeys;

/// Whether an `id` identifies its event: not if it is the Unix seconds of `createdAt`, alone or
/// followed by digits only.
pub(super) fn identifies(id: &str, created_at: Option<Timestamp>) -> bool {
    let Some(at) = created_at else { return true };
    let seconds = at.as_millis().div_euclid(1_000).to_string();
    !id.strip_prefix(&seconds).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
}

/// Makes the content keys `sw1:…` of one request, from `createdAt` and type as received and the
/// canonical, redacted data. `scope` is the source's name and does not depend on the secret:
/// changing a secret must not change the keys.
pub(super) fn content_keys(scope: &str) -> ContentKeys<'_> {
    ContentKeys::new("sw1", scope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_of_the_ids() {
        let at = |text| Timestamp::parse(text);
        let ten = at("2026-08-17T10:00:00Z");
        for id in ["178696080012035", "17869608000", "1786960800"] {
            assert!(!identifies(id, ten), "{id}");
        }
        // A fraction and an offset don't matter.
        assert!(!identifies("178696080012035", at("2026-08-17T12:00:00.999+02:00")));
        for id in [
            "184467440737095516",
            "178696080112035",
            "0178696080012035",
            "178696080012035a",
            "1786960800-12",
            "evt-178696080012035",
            "178696080.5",
            "1786960800.5",
            "sw1:x",
        ] {
            assert!(identifies(id, ten), "{id}");
        }
        assert!(identifies("178696080012035", None));
        assert!(!identifies("-135", at("1969-12-31T23:59:59.5Z")));
    }

    #[test]
    fn vectors() {
        let data = r#"{"accountName":"alice@example.com","remoteIp":"203.0.113.7"}"#;
        let parts = ["2026-08-17T10:00:00Z", "auth.failed", data];
        let mut keys = content_keys("stalwart");
        let mut key = || keys.key(&parts);
        assert_eq!(key(), "sw1:b6a9ee95a05e72a607d065f1be2b2a61fcfbfd8bc0d032acc7721f6d5724b839");
        assert_eq!(key(), "sw1:f73ec7f2d68b1b17031f58d07744a7ecc423567baab5bb410775d04ae9a2ad8d");
        assert_ne!(content_keys("stalwart:eu2").key(&parts), content_keys("stalwart").key(&parts),);
    }
}

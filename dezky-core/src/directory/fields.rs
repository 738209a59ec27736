//! The bounds of documents' fields.

use std::fmt::Display;

use crate::{Error, ErrorKind, Result};

/// The maximum length of a slug, in bytes.
pub const MAX_SLUG_BYTES: usize = 63;
/// The maximum length of a document's id, in bytes.
pub const MAX_ID_BYTES: usize = 64;
/// The maximum length of a name, in characters.
pub const MAX_NAME_CHARS: usize = 200;
/// The maximum length of an e-mail address, in bytes.
pub const MAX_EMAIL_BYTES: usize = 254;
/// The maximum length of a domain, in bytes.
pub const MAX_DOMAIN_BYTES: usize = 253;
/// The maximum number of domains of a tenant.
pub const MAX_DOMAINS: usize = 100;
/// The maximum length of an address, a VAT id or a phone number, in characters.
pub const MAX_DETAIL_CHARS: usize = 500;
/// The maximum number of integrations that a tenant is provisioned in.
pub const MAX_INTEGRATIONS: usize = 16;
/// The maximum length of a provisioning error, in characters; longer ones are truncated.
pub const MAX_PROVISIONING_ERROR_CHARS: usize = 2_000;
/// The maximum length of an issuer or a subject, in bytes.
pub const MAX_SUBJECT_BYTES: usize = 512;
/// The maximum number of identities of a user.
pub const MAX_IDENTITIES: usize = 32;
/// The maximum number of tenants of a user.
pub const MAX_USER_TENANTS: usize = 500;

pub(super) fn invalid(field: impl Display, bound: impl Display) -> Error {
    Error::new(ErrorKind::FieldInvalid, format!("{field} must be {bound}"))
}

fn check(holds: bool, field: &str, bound: impl Display) -> Result<()> {
    if holds { Ok(()) } else { Err(invalid(field, bound)) }
}

fn is_lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// A DNS label of letters, digits and inner hyphens, in lower case.
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| is_lower(b) || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn has_control(text: &str) -> bool {
    text.contains(char::is_control)
}

/// Whether a text can be the slug of a tenant or partner.
pub fn is_slug(text: &str) -> bool {
    text.len() <= MAX_SLUG_BYTES && is_label(text)
}

/// Checks the slug of a tenant or partner; the error names `field`, the form and the fix.
///
/// # Errors
/// `field_invalid`.
pub fn slug(field: &str, text: &str) -> Result<()> {
    check(
        is_slug(text),
        field,
        "1 to 63 of a–z, 0–9 and -, beginning and ending with a letter or digit: choose such a name",
    )
}

pub(super) fn id(field: &str, text: &str) -> Result<()> {
    check(
        (1..=MAX_ID_BYTES).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')),
        field,
        "1 to 64 letters, digits, - and _: give the id of an existing document",
    )
}

pub(super) fn plan(text: &str) -> Result<()> {
    check(
        (1..=63).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && text.bytes().all(|b| is_lower(b) || matches!(b, b'_' | b'.' | b'-')),
        "plan",
        "1 to 63 of a–z, 0–9, _, . and -, beginning with a letter or digit: give a plan's key",
    )
}

pub(super) fn name(field: &str, text: &str) -> Result<()> {
    check(
        (1..=MAX_NAME_CHARS).contains(&text.chars().count())
            && !text.trim().is_empty()
            && !has_control(text),
        field,
        "1 to 200 characters, not only blanks and none of them a control character: shorten or clean it",
    )
}

/// A text of some lines, such as a postal address.
pub(super) fn detail(field: &str, text: &str) -> Result<()> {
    check(
        (1..=MAX_DETAIL_CHARS).contains(&text.chars().count())
            && !text.contains(|c: char| c.is_control() && c != '\n'),
        field,
        "1 to 500 characters without control characters but line feeds: shorten it, or leave it out",
    )
}

/// Checks an e-mail address; the error names `field`, the form and the fix.
///
/// # Errors
/// `field_invalid`.
pub(super) fn email(field: &str, text: &str) -> Result<()> {
    let has_parts =
        text.split_once('@').is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty());
    check(
        text.len() <= MAX_EMAIL_BYTES
            && has_parts
            && text.matches('@').count() == 1
            && !text.contains(|c: char| c.is_control() || c.is_whitespace()),
        field,
        "an e-mail address of at most 254 bytes with one @ and no blanks: correct it",
    )
}

pub(super) fn domain(field: &str, text: &str) -> Result<()> {
    check(
        text.is_ascii(),
        field,
        "ASCII: this label can't be written as xn--…: check its spelling",
    )?;
    check(
        (1..=MAX_DOMAIN_BYTES).contains(&text.len()) && text.split('.').all(is_label),
        field,
        "a domain in lower case, at most 253 bytes, its labels 1 to 63 of a–z, 0–9 and inner -: give it as example.org",
    )
}

pub(super) fn integration(field: &str, text: &str) -> Result<()> {
    check(
        (1..=63).contains(&text.len())
            && text.bytes().all(|b| is_lower(b) || matches!(b, b'_' | b'-')),
        field,
        "by integrations of 1 to 63 of a–z, 0–9, _ and -, such as authentik, stalwart and ocis",
    )
}

pub(super) fn system(field: &str, text: &str) -> Result<()> {
    check(
        (1..=64).contains(&text.len())
            && text.bytes().all(|b| is_lower(b) || matches!(b, b'_' | b'.' | b'-' | b':')),
        field,
        "1 to 64 of a–z, 0–9, _, ., - and :, such as authentik, stalwart or ocis",
    )
}

/// An issuer, a subject, an id in another system: any text without control
/// characters.
pub(super) fn foreign(field: &str, text: &str) -> Result<()> {
    check(
        (1..=MAX_SUBJECT_BYTES).contains(&text.len()) && !has_control(text),
        field,
        "1 to 512 bytes without control characters: give it as the other system says it",
    )
}

pub(super) fn count(field: &str, count: usize, most: usize) -> Result<()> {
    check(count <= most, field, format_args!("at most {most} entries: leave some out"))
}

/// Refuses duplicate entries.
pub(super) fn distinct<T: Ord>(field: &str, values: &[T]) -> Result<()> {
    let distinct: std::collections::BTreeSet<_> = values.iter().collect();
    check(distinct.len() == values.len(), field, "without repetition: name each once")
}

pub(super) fn margin_pct(value: f64) -> Result<()> {
    check((0.0..=100.0).contains(&value), "marginPct", "0 to 100: give it in percent")
}

/// Versions count from 1, and every engine can hold them.
pub(super) fn version(value: u64) -> Result<()> {
    check(
        value >= 1 && i64::try_from(value).is_ok(),
        "version",
        "1 to 2^63 - 1: count up the version that was read",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    type Check = fn(&str) -> Result<()>;

    #[test]
    fn bounds_are_exact_and_say_what_to_do() {
        let cases: [(Check, &[&str], &[&str], &str); 6] = [
            (
                |t| slug("slug", t),
                &["a", "0", "a-b", "a--b", &"a".repeat(63)],
                &["", "-a", "a-", "A", "a_b", "a.b", "ä", "a\0", "a%", "a'", &"a".repeat(64)],
                "slug must be 1 to 63 of a–z",
            ),
            (
                |t| domain("domains", t),
                &["example.org", "localhost", "xn--bcher-kva.example", "1.a-b.c"],
                &["", ".", "a.", ".a", "a..b", "-a.b", "a-.b", "a_b.c", "A.b", "a b", "%", "a.b\n"],
                "domains must be",
            ),
            (
                plan,
                &["basic", "0", "pro_2.1-x", &"p".repeat(63)],
                &["", "_a", ".a", "-a", "Pro", "a b", &"p".repeat(64)],
                "plan must be 1 to 63",
            ),
            (
                |t| name("name", t),
                &["Å", "O'Brien %", &"ä".repeat(200), "\u{fffd}"],
                &["", "  ", "a\0", "a\nb", &"ä".repeat(201)],
                "name must be 1 to 200",
            ),
            (
                |t| email("email", t),
                &["a@b", "o'brien+x%y@example.org"],
                &["", "a", "@", "a@", "@b", "a@b@c", "a b@c", "a@b\0", "a@\u{a0}b"],
                "email must be an e-mail address of at most 254 bytes",
            ),
            (
                |t| id("id", t),
                &["0193e0a4-7c00-7000-8000-000000000000", "507f1f77bcf86cd799439011"],
                &["", "a/b", "a b", "ä", "a\0", &"a".repeat(65)],
                "id must be 1 to 64",
            ),
        ];
        for (check, good, bad, message) in cases {
            for text in good {
                check(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
            }
            for text in bad {
                let error = check(text).expect_err(text);
                assert_eq!(error.code(), "field_invalid");
                assert!(error.to_string().starts_with(message), "{text:?}: {error}");
            }
        }
    }

    #[test]
    fn what_has_no_form_in_ascii_is_told_the_fix() {
        let error = domain("domains", "büch\u{200d}er.example").unwrap_err();
        assert!(error.to_string().contains("xn--"), "{error}");
    }

    #[test]
    fn long_texts_count_bytes_or_characters_as_said() {
        let long = |local: usize| format!("{}@b.example", "a".repeat(local));
        assert!(email("email", &long(244)).is_ok());
        assert!(email("email", &long(245)).is_err());
        let label = "a".repeat(61);
        let most = format!("{label}.{label}.{label}.{label}.aaaaa");
        assert_eq!(most.len(), MAX_DOMAIN_BYTES);
        assert!(domain("domains", &most).is_ok());
        assert!(domain("domains", &format!("{most}a")).is_err());
        assert!(foreign("subject", &"s".repeat(512)).is_ok());
        assert!(foreign("subject", &"s".repeat(513)).is_err());
        let megabyte = "x".repeat(1 << 20);
        assert!(name("name", &megabyte).is_err() && detail("address", &megabyte).is_err());
    }

    #[test]
    fn numbers_have_bounds() {
        for good in [0.0, 12.5, 100.0] {
            assert!(margin_pct(good).is_ok());
        }
        for bad in [-0.01, 100.01, f64::NAN, f64::INFINITY] {
            assert!(margin_pct(bad).unwrap_err().to_string().starts_with("marginPct must be 0"));
        }
        assert!(version(1).is_ok() && version(0).is_err() && version(u64::MAX).is_err());
    }
}

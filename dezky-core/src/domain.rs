//! The normal form of domains, in which the directory stores and compares them.

use idna::AsciiDenyList;

/// Maximum length of a domain in bytes (RFC 1035).
const MAX_BYTES: usize = 253;
/// Maximum length of a text that is examined, in bytes.
const MAX_TEXT_BYTES: usize = 1_024;

/// Returns the domain in lower-case ASCII: international labels as `xn--…` (UTS 46), full-width
/// characters and dots as plain ones, without the root's dot. Returns `None` for more than 253
/// bytes or characters other than letters, digits, `.`, `-` and `_`.
///
/// ```
/// use dezky_core::domain::normal_form;
/// for text in ["bücher.example", "BÜCHER.Example.", "xn--bcher-kva.example", "bücher。example"] {
///     assert_eq!(normal_form(text).as_deref(), Some("xn--bcher-kva.example"));
/// }
/// assert_eq!(normal_form("not a domain"), None);
/// ```
pub fn normal_form(text: &str) -> Option<String> {
    if text.len() > MAX_TEXT_BYTES {
        return None;
    }
    let mut domain = match idna::domain_to_ascii_cow(text.as_bytes(), AsciiDenyList::EMPTY) {
        Ok(domain) => domain.into_owned(),
        // A label that merely looks like an A-label is still a valid DNS name.
        Err(_) if text.is_ascii() => text.to_ascii_lowercase(),
        Err(_) => return None,
    };
    if domain.ends_with('.') {
        domain.pop();
    }
    let is_domain = (1..=MAX_BYTES).contains(&domain.len())
        && domain.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    is_domain.then_some(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_domain_is_one() {
        for (text, expected) in [
            ("acme.example", "acme.example"),
            ("ACME.Example", "acme.example"),
            ("acme.example.", "acme.example"),
            ("acme．example", "acme.example"),
            ("acme。example｡", "acme.example"),
            ("ａｃｍｅ.example", "acme.example"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("bu\u{308}cher.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            ("straße.example", "xn--strae-oqa.example"),
            ("_dmarc.acme.example", "_dmarc.acme.example"),
            ("xn--a.example", "xn--a.example"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(normal_form(text).as_deref(), Some(expected), "{text}");
            assert_eq!(normal_form(expected).as_deref(), Some(expected), "{text}, again");
        }
        for text in ["", ".", " ", "a b", "a@b", "a/b", "a\0", "%", &"a".repeat(254), "☃\u{200b} x"]
        {
            assert_eq!(normal_form(text), None, "{text:?}");
        }
    }
}

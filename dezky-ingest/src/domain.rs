//! Domains in what systems say, for the tenants that own them.

/// The domain of an address in lower case.
pub(crate) fn domain_of(address: &str) -> Option<String> {
    let address = address.trim().trim_start_matches('<').trim_end_matches('>');
    domain(address.rsplit_once('@')?.1)
}

/// A domain in lower case, if it looks like one.
pub(crate) fn domain(text: &str) -> Option<String> {
    let text = text.trim().trim_end_matches('.');
    let is_domain = !text.is_empty()
        && text.len() <= 255
        && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'));
    is_domain.then(|| text.to_lowercase())
}

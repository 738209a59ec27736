//! Domains as systems write them, which identify the tenants that own them.

use dezky_core::domain::normal_form;

/// The domain of an address, in its normal form.
pub(crate) fn domain_of(address: &str) -> Option<String> {
    let address = address.trim().trim_start_matches('<').trim_end_matches('>');
    domain(address.rsplit_once(['@', '＠'])?.1)
}

/// A domain in its normal form, if it looks like one.
pub(crate) fn domain(text: &str) -> Option<String> {
    normal_form(text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_of_its_domain_however_that_is_spelled() {
        for address in [
            "x@bücher.example",
            "X@BÜCHER.example.",
            "x@xn--bcher-kva.example",
            " <x@bücher．example> ",
            "x＠bücher.example",
        ] {
            assert_eq!(domain_of(address).as_deref(), Some("xn--bcher-kva.example"), "{address}");
        }
        for address in ["x", "x@", "x@a b", "@"] {
            assert_eq!(domain_of(address), None, "{address}");
        }
    }
}

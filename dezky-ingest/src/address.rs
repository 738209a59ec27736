//! IP addresses as systems write them.

use dezky_core::written_address;

/// The address without brackets and port; text that is not an address stays as it is, and
/// sealing keeps it as an annotation.
pub(crate) fn bare_address(text: String) -> String {
    written_address(&text).map_or(text, |address| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_and_ports_are_taken_off_and_other_text_stays() {
        for (text, bare) in [
            ("[2001:db8::7]", "2001:db8::7"),
            ("[2001:db8::7]:443", "2001:db8::7"),
            ("203.0.113.7:55555", "203.0.113.7"),
            ("203.0.113.7", "203.0.113.7"),
            ("fe80::1%eth0", "fe80::1%eth0"),
            ("proxy.example:443", "proxy.example:443"),
        ] {
            assert_eq!(bare_address(text.to_owned()), bare);
        }
    }
}

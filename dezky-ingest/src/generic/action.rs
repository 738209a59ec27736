//! Actions in the dotted lower-case form.

/// The longest action that the log accepts, in bytes.
pub(super) const MAX_BYTES: usize = 128;

/// Whether it is an action: lower-case letters, digits, `_` and `-`, in words joined by
/// dots.
pub(super) fn is_dotted(text: &str) -> bool {
    text.split('.').all(|word| {
        !word.is_empty()
            && word.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
    })
}

/// A system's action in dotted lower-case form. `.`, `/`, `:` and separators next to them become
/// dots, camel case becomes separate words, and everything else except ASCII letters and digits
/// becomes `_`. Empty if it has neither letters nor digits.
pub(super) fn dotted(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len().min(MAX_BYTES));
    let mut previous = ' ';
    let mut separator = None;
    let mut chars = raw.chars().peekable();
    while let Some(c) = chars.next() {
        if out.len() > MAX_BYTES {
            break;
        }
        if c.is_ascii_alphanumeric() {
            // `userCreated`, `dkim2Fail`, and the R of `MTARejected`.
            let is_hump = c.is_ascii_uppercase()
                && previous.is_ascii_alphanumeric()
                && (!previous.is_ascii_uppercase()
                    || chars.peek().is_some_and(char::is_ascii_lowercase));
            let before = separator.take().or(is_hump.then_some('_'));
            out.extend(before.filter(|_| !out.is_empty()));
            out.push(c.to_ascii_lowercase());
        } else if matches!(c, '.' | '/' | ':') {
            separator = Some('.');
        } else {
            separator = separator.or(Some('_'));
        }
        previous = c;
    }
    out
}

/// `prefix`, including its dot, and the verb, within the bound.
pub(super) fn prefixed(prefix: &str, verb: &str) -> String {
    // Verbs are ASCII.
    let max = MAX_BYTES - prefix.len();
    let verb = verb.get(..max).map_or(verb, |cut| cut.trim_end_matches(['_', '-', '.']));
    format!("{prefix}{verb}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        for (raw, expected) in [
            ("user.login", "user.login"),
            ("user_login", "user_login"),
            ("user-login", "user_login"),
            ("UserLogin", "user_login"),
            ("USER LOGIN", "user_login"),
            ("USER_LOGIN", "user_login"),
            ("Order::Paid", "order.paid"),
            ("GET /orders/{id}", "get.orders.id"),
            (" .a.. b. ", "a.b"),
            ("2FAEnabled", "2_fa_enabled"),
            ("é", ""),
            ("", ""),
            ("--", ""),
            ("caféOpen", "caf_open"),
        ] {
            assert_eq!(dotted(raw), expected, "{raw}");
            assert!(expected.is_empty() || is_dotted(expected));
        }
    }

    #[test]
    fn long_ones_are_cut() {
        let long = prefixed("shop.", &dotted(&"ab.".repeat(1_000)));
        assert!(long.len() <= MAX_BYTES && is_dotted(&long), "{long}");
    }
}

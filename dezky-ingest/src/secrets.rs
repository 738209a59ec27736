//! Names under which systems keep their secrets, whatever the system.

/// What stands where a secret stood.
pub(crate) const REDACTED: &str = "[redacted]";

/// Names of secrets, without separators and in lower case; a name ends so.
const SECRETS: [&str; 12] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "privatekey",
    "accesskey",
    "signingkey",
    "authorization",
    "cookie",
    "sessionid",
];

/// Names of secrets only among a request's arguments: what a sign-in hands over.
const ARGUMENTS: [&str; 5] = ["code", "assertion", "samlresponse", "samlrequest", "tokenhint"];

/// Whether a member of that name holds a secret; more names do among the arguments of
/// a request.
pub(crate) fn is_secret(key: &str, is_argument: bool) -> bool {
    let key = squash(key);
    let ends = |names: &[&str]| names.iter().any(|name| key.ends_with(name));
    ends(&SECRETS) || is_argument && ends(&ARGUMENTS)
}

/// A name in lower case, without separators.
pub(crate) fn squash(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// An address without the secrets in its query and its fragment, where some sign-ins
/// hand tokens over; `None` if there are none.
pub(crate) fn without_secrets(text: &str) -> Option<String> {
    let (head, arguments) = text.split_at(text.find(['?', '#'])? + 1);
    let mut found = false;
    let parts: Vec<_> = arguments
        .split('&')
        .map(|part| match secret_in(part) {
            Some(start) => {
                found = true;
                format!("{}{REDACTED}", &part[..start])
            }
            None => part.to_owned(),
        })
        .collect();
    found.then(|| format!("{head}{}", parts.join("&")))
}

/// Where a secret begins in an argument, behind which a fragment may stand.
fn secret_in(part: &str) -> Option<usize> {
    let mut start = 0;
    for piece in part.split_inclusive(['?', '#']) {
        if let Some((name, secret)) = piece.split_once('=')
            && !secret.is_empty()
            && is_secret(name, true)
        {
            return Some(start + name.len() + 1);
        }
        start += piece.len();
    }
    None
}

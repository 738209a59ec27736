//! Outcomes, in the words that systems use.

use dezky_core::Outcome;

use crate::secrets::squash;

/// Words without separators, in lower case.
const SUCCESS: [&str; 26] = [
    "success",
    "successful",
    "successfully",
    "succeeded",
    "ok",
    "okay",
    "pass",
    "passed",
    "done",
    "complete",
    "completed",
    "finished",
    "accept",
    "accepted",
    "allow",
    "allowed",
    "grant",
    "granted",
    "permitted",
    "approved",
    "authorized",
    "authenticated",
    "created",
    "updated",
    "deleted",
    "yes",
];
const FAILURE: [&str; 30] = [
    "failure",
    "fail",
    "failed",
    "unsuccessful",
    "error",
    "errored",
    "err",
    "exception",
    "fault",
    "fatal",
    "crashed",
    "invalid",
    "incorrect",
    "bad",
    "skip",
    "skipped",
    "cancel",
    "canceled",
    "cancelled",
    "abort",
    "aborted",
    "timeout",
    "timedout",
    "expired",
    "unavailable",
    "notfound",
    "missing",
    "nok",
    "notok",
    "no",
];
const DENIED: [&str; 20] = [
    "denied",
    "deny",
    "accessdenied",
    "permissiondenied",
    "forbidden",
    "unauthorized",
    "unauthorised",
    "unauthenticated",
    "notauthorized",
    "block",
    "blocked",
    "reject",
    "rejected",
    "refuse",
    "refused",
    "disallowed",
    "prohibited",
    "banned",
    "locked",
    "lockedout",
];

/// The outcome of a word, in any spelling, or of an HTTP status: 401, 403 and 407 are denied, other
/// errors failures. `true` and `false` are read by the member's `name`: whether it states success,
/// or failure or denial. `None` for anything else.
pub(super) fn known(raw: &str, name: Option<&str>) -> Option<Outcome> {
    if let Some(status) = http_status(raw) {
        return Some(match status {
            401 | 403 | 407 => Outcome::Denied,
            400.. => Outcome::Failure,
            _ => Outcome::Success,
        });
    }
    let word = squash(raw);
    let is_one_of = |words: &[&str]| words.contains(&word.as_str());
    match &*word {
        "true" | "false" => {
            let asked = name.map(squash).unwrap_or_default();
            let asks = |words: &[&str]| words.iter().any(|word| asked.ends_with(word));
            let otherwise = if asks(&DENIED) {
                Outcome::Denied
            } else if asks(&FAILURE) {
                Outcome::Failure
            } else {
                let is_success = word == "true";
                return Some(if is_success { Outcome::Success } else { Outcome::Failure });
            };
            Some(if word == "true" { otherwise } else { Outcome::Success })
        }
        _ if is_one_of(&SUCCESS) => Some(Outcome::Success),
        _ if is_one_of(&FAILURE) => Some(Outcome::Failure),
        _ if is_one_of(&DENIED) => Some(Outcome::Denied),
        _ => None,
    }
}

/// 100 to 599, alone, as in `404 Not Found`, or as in `HTTP/1.1 404 Not Found`.
pub(super) fn http_status(raw: &str) -> Option<u16> {
    let text = raw.trim();
    let text = match text.split_once(' ') {
        Some((version, rest)) if version.starts_with("HTTP/") => rest.trim_start(),
        _ => text,
    };
    let digits = text.split(' ').next()?;
    let status = (digits.len() == 3).then(|| digits.parse().ok())??;
    (100..600).contains(&status).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_succeed_is_not_a_success() {
        for (outcome, words) in [
            (
                Outcome::Failure,
                &[
                    "404",
                    "400",
                    "429",
                    "500",
                    "599",
                    "404 Not Found",
                    "HTTP/1.1 503 x",
                    "SKIPPED",
                    "Timed-Out",
                    "ERROR",
                    "canceled",
                    "Not Found",
                    "false",
                    "no",
                ][..],
            ),
            (Outcome::Denied, &["401", "403", "407", "Access Denied", "FORBIDDEN", "blocked"]),
            (Outcome::Success, &["200", "204", "302", "101", "OK", "Succeeded", "true", " ok "]),
        ] {
            for word in words {
                assert_eq!(known(word, None), Some(outcome), "{word}");
            }
        }
        for word in ["", "0", "1", "99", "600", "4040", "pending", "teapot", "+20", "-04"] {
            assert_eq!(known(word, None), None, "{word}");
        }
    }

    #[test]
    fn yes_and_no_answer_what_the_name_asks() {
        for (name, yes, no) in [
            ("success", Outcome::Success, Outcome::Failure),
            ("isAllowed", Outcome::Success, Outcome::Failure),
            ("has_error", Outcome::Failure, Outcome::Success),
            ("failed", Outcome::Failure, Outcome::Success),
            ("wasBlocked", Outcome::Denied, Outcome::Success),
        ] {
            assert_eq!(known("true", Some(name)), Some(yes), "{name}");
            assert_eq!(known("false", Some(name)), Some(no), "{name}");
        }
    }
}

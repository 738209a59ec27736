//! The verbs of types.
//!
//! Fourteen verbs belong to the type of the same name, in any spelling, and to the real ids of the
//! table: `auth_failed`, `auth_success`, `auth_banned`, `account_created`, `account_deleted`,
//! `password_changed`, `mail_received`, `mail_delivered`, `mail_failed`, `mail_rejected`,
//! `policy_rejection`, `dkim_failure`, `dmarc_failure`, `spam_detected`; so do `mail_submitted` and
//! `auth_mfa_required`. No release of Stalwart sends an event for `account_created`,
//! `account_deleted` or `password_changed`; other senders do.
//!
//! Any other type is its own verb, in lower snake case.

use std::borrow::Cow;

use dezky_core::json::Value;

/// The condition of a row of the table; if it does not hold, the type is its own verb.
#[derive(Clone, Copy)]
enum When {
    Always,
    /// `strict` is true: the message was refused, not just marked.
    Strict,
    /// `result` is a verdict; other `spam.classify` events carry a list of scores.
    Verdict,
    /// The `status` of a 0.8 `dsn` is this verb's.
    Status,
}

/// Normalised type → verb, if they differ; in byte order. From the catalogues of 0.8.2 to 0.16.18,
/// including older names of an event.
const TABLE: &[(&str, &str, When)] = {
    use When::{Always, Status, Strict, Verdict};
    &[
        ("auth_credential_expired", "auth_failed", Always),
        ("auth_failure", "auth_failed", Always),
        ("auth_missing_totp", "auth_mfa_required", Always),
        ("auth_token_expired", "auth_failed", Always),
        ("auth_too_many_attempts", "auth_failed", Always),
        ("delivery_delivered", "mail_delivered", Always),
        ("delivery_double_bounce", "mail_failed", Always),
        ("delivery_dsn_perm_fail", "mail_failed", Always),
        ("delivery_dsn_success", "mail_delivered", Always),
        ("delivery_failed", "mail_failed", Always),
        ("delivery_mail_from_rejected", "mail_failed", Always),
        ("delivery_message_rejected", "mail_failed", Always),
        ("delivery_rcpt_to_failed", "mail_failed", Always),
        ("delivery_rcpt_to_rejected", "mail_failed", Always),
        ("double_bounce", "mail_failed", Always),
        ("dsn", "", Status),
        ("message_accepted", "mail_received", Always),
        ("message_ingest_error", "mail_failed", Always),
        ("message_ingest_ham", "mail_delivered", Always),
        ("message_ingest_spam", "spam_detected", Always),
        ("message_rejected", "mail_rejected", Always),
        ("milter_action_reject", "policy_rejection", Always),
        ("mta_hook_action_reject", "policy_rejection", Always),
        ("queue_authenticated_message_queued", "mail_submitted", Always),
        ("queue_message_queued", "mail_received", Always),
        ("queue_queue_message", "mail_received", Always),
        ("queue_queue_message_authenticated", "mail_submitted", Always),
        ("security_abuse_ban", "auth_banned", Always),
        ("security_authentication_ban", "auth_banned", Always),
        ("security_brute_force_ban", "auth_banned", Always),
        ("security_ip_unauthorized", "auth_failed", Always),
        ("security_loiter_ban", "auth_banned", Always),
        ("security_scan_ban", "auth_banned", Always),
        ("sieve_action_reject", "mail_rejected", Always),
        ("smtp_arc_fail", "policy_rejection", Strict),
        ("smtp_dkim2_fail", "dkim_failure", Always),
        ("smtp_dkim_fail", "dkim_failure", Always),
        ("smtp_dmarc_fail", "dmarc_failure", Always),
        ("smtp_iprev_fail", "policy_rejection", Strict),
        ("smtp_loop_detected", "mail_rejected", Always),
        ("smtp_mail_from_not_allowed", "policy_rejection", Always),
        ("smtp_mail_from_unauthorized", "policy_rejection", Always),
        ("smtp_mailbox_does_not_exist", "mail_rejected", Always),
        ("smtp_message_parse_failed", "mail_rejected", Always),
        ("smtp_message_too_large", "mail_rejected", Always),
        ("smtp_relay_not_allowed", "mail_rejected", Always),
        ("smtp_spf_ehlo_fail", "policy_rejection", Strict),
        ("smtp_spf_from_fail", "policy_rejection", Strict),
        ("smtp_too_many_invalid_rcpt", "mail_rejected", Always),
        ("spam_classify", "spam_detected", Verdict),
    ]
};

/// The verb of a normalised type; the data decides if the type alone does not.
pub(super) fn verb<'t>(normalised: &'t str, data: Option<Value<'_>>) -> Cow<'t, str> {
    let field = |name| data.and_then(|data| data.get(name));
    let row = TABLE.binary_search_by_key(&normalised, |row| row.0).ok().map(|at| TABLE[at]);
    let verb = row.and_then(|(_, verb, when)| match when {
        When::Always => Some(verb),
        When::Strict => field("strict").is_some_and(Value::is_true).then_some(verb),
        When::Verdict => field("result").and_then(verdict).map(|_| verb),
        When::Status => field("status").and_then(dsn_verb),
    });
    Cow::Borrowed(verb.unwrap_or(normalised))
}

/// The verdict of a `spam.classify` result, if it is one.
pub(super) fn verdict(result: Value<'_>) -> Option<&'static str> {
    let result = result.string()?;
    ["reject", "discard"].into_iter().find(|verdict| result.eq_ignore_ascii_case(verdict))
}

/// A 0.8 `dsn` covers several recipients: it failed if delivery to one of them failed permanently,
/// and was delivered if delivery to one succeeded; delays are neither.
fn dsn_verb(status: Value<'_>) -> Option<&'static str> {
    let mut delivered = None;
    for recipient in status.elements() {
        let kind = recipient.get("type").and_then(Value::string).map(|kind| normalise(&kind));
        match kind.as_deref() {
            Some("permanent_failure") => return Some("mail_failed"),
            Some("success") => delivered = Some("mail_delivered"),
            _ => {}
        }
    }
    delivered
}

/// The cause of a ban, by the normalised type.
pub(super) fn ban_cause(normalised: &str) -> Option<&'static str> {
    Some(match normalised {
        "security_abuse_ban" => "abuse",
        "security_scan_ban" => "scan",
        "security_loiter_ban" => "loiter",
        "security_authentication_ban" | "security_brute_force_ban" | "auth_banned" => {
            "authentication"
        }
        _ => return None,
    })
}

/// A type in lower snake case, from dotted, kebab, snake or camel case: words of ASCII letters and
/// digits joined by `_`. Empty if it has no such word.
pub(super) fn normalise(kind: &str) -> String {
    let mut out = String::with_capacity(kind.len());
    let mut previous = ' ';
    let mut chars = kind.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_ascii_alphanumeric() {
            // `accountCreated`, `dkim2Fail`, and the R of `MTARejected`.
            let hump = c.is_ascii_uppercase()
                && (!previous.is_ascii_uppercase()
                    || chars.peek().is_some_and(char::is_ascii_lowercase));
            if !out.is_empty() && (hump || !previous.is_ascii_alphanumeric()) {
                out.push('_');
            }
            out.push(c.to_ascii_lowercase());
        }
        previous = c;
    }
    out
}

/// The action of a verb, within the contract's 128 bytes; the metadata holds the type as received.
pub(super) fn action(verb: &str) -> String {
    const PREFIX: &str = "stalwart.";
    const MAX: usize = 128 - PREFIX.len();
    // Verbs are ASCII.
    let verb = verb.get(..MAX).map_or(verb, |cut| cut.trim_end_matches('_'));
    format!("{PREFIX}{verb}")
}

#[cfg(test)]
mod tests {
    use dezky_core::json::Doc;

    use super::*;

    fn verb_of(kind: &str, data: &str) -> String {
        let doc = Doc::parse(data).unwrap();
        verb(&normalise(kind), Some(doc.root())).into_owned()
    }

    #[test]
    fn table_is_sorted_and_says_something() {
        assert!(TABLE.is_sorted_by(|a, b| a.0 < b.0));
        assert!(TABLE.iter().all(|(id, verb, _)| id != verb && normalise(id) == *id));
    }

    /// Every row of the catalogue, including those without a separate verb.
    #[test]
    fn catalogue() {
        let tsv = include_str!("../../tests/data/stalwart/stalwart-events.tsv");
        let mut verbs = 0;
        for line in tsv.lines().skip(1) {
            let columns: Vec<_> = line.split('\t').collect();
            let (id, expected, note) = (columns[0], columns[3], columns[4]);
            let snake = id.replace(['.', '-'], "_");
            if expected.is_empty() {
                assert_eq!(verb_of(id, "{}"), snake);
                continue;
            }
            verbs += 1;
            let (met, unmet) = if note == "only if strict=true" {
                (r#"{"strict":true}"#, Some(r#"{"strict":false}"#))
            } else if id == "spam.classify" {
                (r#"{"result":"reject"}"#, Some(r#"{"result":["3.1","A"]}"#))
            } else if id == "dsn" {
                continue;
            } else {
                assert!(!note.starts_with("only if") && !note.starts_with("verb by"), "{id}");
                ("{}", None)
            };
            let camel: String =
                id.split(['.', '-']).map(|word| word[..1].to_uppercase() + &word[1..]).collect();
            for spelling in [id, &id.replace('.', "-"), &snake, &snake.replace('_', "."), &camel] {
                assert_eq!(verb_of(spelling, met), expected, "{spelling}");
                if let Some(unmet) = unmet {
                    assert_eq!(verb_of(spelling, unmet), snake);
                    assert_eq!(verb_of(spelling, "{}"), snake);
                }
            }
        }
        assert_eq!(verbs, 60);
    }

    #[test]
    fn verbs_by_their_own_names() {
        for name in [
            "auth_failed",
            "auth_success",
            "auth_banned",
            "account_created",
            "account_deleted",
            "password_changed",
            "mail_received",
            "mail_delivered",
            "mail_failed",
            "mail_rejected",
            "policy_rejection",
            "dkim_failure",
            "dmarc_failure",
            "spam_detected",
        ] {
            let camel: String =
                name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
            let lower_camel = camel[..1].to_lowercase() + &camel[1..];
            for spelling in [
                name,
                &name.replace('_', "."),
                &name.replace('_', "-"),
                &camel,
                &lower_camel,
                &name.to_uppercase(),
            ] {
                assert_eq!(verb_of(spelling, "{}"), name, "{spelling}");
            }
        }
    }

    #[test]
    fn conditions() {
        for (kind, data, expected) in [
            ("spam.classify", r#"{"result":"discard"}"#, "spam_detected"),
            ("spam.classify", r#"{"result":"accept"}"#, "spam_classify"),
            ("smtp.arc-fail", r#"{"strict":"true"}"#, "smtp_arc_fail"),
            ("dsn", r#"{"status":[{"type":"success"}]}"#, "mail_delivered"),
            (
                "dsn",
                r#"{"status":[{"type":"success"},{"type":"permanentFailure"}]}"#,
                "mail_failed",
            ),
            ("dsn", r#"{"status":[{"type":"temporaryFailure"}]}"#, "dsn"),
            (
                "dsn",
                r#"{"status":[{"type":"temporaryFailure"},{"type":"success"}]}"#,
                "mail_delivered",
            ),
            ("dsn", r#"{"status":"x"}"#, "dsn"),
        ] {
            assert_eq!(verb_of(kind, data), expected, "{kind} {data}");
        }
        assert_eq!(verb("spam_classify", None), "spam_classify");
    }

    #[test]
    fn normal_spelling() {
        for (kind, expected) in [
            ("jmap.method-call", "jmap_method_call"),
            ("MTAHook.ActionReject", "mta_hook_action_reject"),
            ("SmtpDkim2Fail", "smtp_dkim2_fail"),
            ("  odd -- Type! ", "odd_type"),
            ("übergabe", "bergabe"),
            ("тип", ""),
            ("", ""),
        ] {
            assert_eq!(normalise(kind), expected, "{kind}");
        }
    }

    #[test]
    fn actions_are_bounded() {
        assert_eq!(action("auth_failed"), "stalwart.auth_failed");
        assert_eq!(action(&"a".repeat(119)).len(), 128);
        assert_eq!(action(&"a".repeat(120)).len(), 128);
        assert_eq!(action(&format!("{}_b", "a".repeat(118))).len(), 127);
    }
}

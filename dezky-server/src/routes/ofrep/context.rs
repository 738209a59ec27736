//! For whom flags are asked: what the context says, and what the directory knows.

use dezky_flags::openfeature::{
    ENVIRONMENT, MAX_TARGETING_KEY_BYTES, PARTNER_SLUG, PLAN, TARGETING_KEY, TENANT_SLUG,
};
use dezky_flags::{FlagContext, MAX_SCOPE_VALUE_BYTES};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::refusal::Refusal;

/// The most members of a context, those that are ignored among them.
const MAX_MEMBERS: usize = 256;

/// What a context says about one thing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Said {
    #[default]
    LeftOut,
    /// There is none: `null`.
    Nothing,
    Is(String),
}

impl Said {
    fn or(self, known: Option<&str>) -> Option<String> {
        match self {
            Self::LeftOut => known.map(str::to_owned),
            Self::Nothing => None,
            Self::Is(text) => Some(text),
        }
    }
}

/// What a context says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) targeting_key: String,
    pub(super) tenant_slug: Said,
    pub(super) plan: Said,
    pub(super) partner_slug: Said,
    pub(super) environment: Option<String>,
}

impl Given {
    /// Reads the body of an evaluation.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| Refusal::parse_error(format!("the body is no JSON: {error}")))?;
        let Value::Object(body) = body else {
            let details =
                "the body must be a JSON object such as {\"context\":{\"targetingKey\":\"…\"}}";
            return Err(Refusal::parse_error(details));
        };
        let context = match body.get("context") {
            None => return Err(Refusal::targeting_key_missing()),
            Some(Value::Object(context)) => context,
            Some(_) => return Err(Refusal::invalid_context("context must be a JSON object")),
        };
        if context.len() > MAX_MEMBERS {
            return Err(Refusal::invalid_context(format!(
                "context must have at most {MAX_MEMBERS} members: leave some out"
            )));
        }
        let targeting_key = text(context, TARGETING_KEY, MAX_TARGETING_KEY_BYTES)?.or(None);
        let axis = |name: &str| text(context, name, MAX_SCOPE_VALUE_BYTES);
        Ok(Self {
            targeting_key: targeting_key
                .filter(|key| !key.is_empty())
                .ok_or_else(Refusal::targeting_key_missing)?,
            tenant_slug: axis(TENANT_SLUG)?,
            plan: axis(PLAN)?,
            partner_slug: axis(PARTNER_SLUG)?,
            environment: axis(ENVIRONMENT)?.or(None),
        })
    }
}

/// A member, which is text or null where it is there.
fn text(context: &Map<String, Value>, name: &str, max_bytes: usize) -> Result<Said, Refusal> {
    match context.get(name) {
        None => Ok(Said::LeftOut),
        Some(Value::Null) => Ok(Said::Nothing),
        Some(Value::String(text)) if text.len() > max_bytes => Err(Refusal::invalid_context(
            format!("context.{name} must have at most {max_bytes} bytes: shorten it"),
        )),
        Some(Value::String(text)) if text.contains(char::is_control) => {
            Err(Refusal::invalid_context(format!(
                "context.{name} must be without control characters: take them out"
            )))
        }
        Some(Value::String(text)) => Ok(Said::Is(text.clone())),
        Some(_) => Err(Refusal::invalid_context(format!(
            "context.{name} must be text: send a string, null or leave it out"
        ))),
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asker<'a> {
    /// May ask for anybody, also for tenants that the directory does not know.
    Operator,
    /// Asks for the tenants with these ids.
    #[cfg_attr(not(test), expect(dead_code, reason = "members have no tokens of their own yet"))]
    Member(&'a [&'a str]),
}

impl Asker<'_> {
    /// Whether the directory is asked whatever the flags are: an operator may leave out
    /// what it knows, of anyone else it is believed alone.
    pub(super) fn needs_directory(self, given: &Given) -> bool {
        match self {
            Self::Operator => {
                [&given.tenant_slug, &given.plan, &given.partner_slug].contains(&&Said::LeftOut)
            }
            Self::Member(_) => true,
        }
    }
}

/// What flags are decided by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Axes {
    pub(super) tenant_id: String,
    pub(super) tenant_slug: Option<String>,
    pub(super) plan: Option<String>,
    pub(super) partner_slug: Option<String>,
    pub(super) environment: Option<String>,
    pub(super) tenant_active: Option<bool>,
}

/// Puts together what the context says and what the directory knows of the tenant.
///
/// For an operator the context wins, and what it leaves out comes from the directory.
/// For anyone else the directory wins and the tenant must be one of theirs: nobody
/// gives themselves another plan. Whether the tenant is active only the directory says.
pub(super) fn merge(
    given: Given,
    asker: Asker<'_>,
    known: Option<FlagContext<'_>>,
) -> Result<Axes, Refusal> {
    let known = known.unwrap_or_default();
    let own = |axis: Option<&str>| axis.map(str::to_owned);
    let tenant_active = known.tenant_active;
    if let Asker::Member(tenant_ids) = asker {
        let is_theirs = tenant_ids.contains(&given.targeting_key.as_str());
        if !is_theirs || known.tenant_id != given.targeting_key {
            return Err(Refusal::Forbidden);
        }
        return Ok(Axes {
            tenant_id: given.targeting_key,
            tenant_slug: own(known.tenant_slug),
            plan: own(known.plan),
            partner_slug: own(known.partner_slug),
            environment: given.environment,
            tenant_active,
        });
    }
    Ok(Axes {
        tenant_id: given.targeting_key,
        tenant_slug: given.tenant_slug.or(known.tenant_slug),
        plan: given.plan.or(known.plan),
        partner_slug: given.partner_slug.or(known.partner_slug),
        environment: given.environment,
        tenant_active,
    })
}

impl Axes {
    /// As flags are decided by them.
    pub(super) fn context(&self) -> FlagContext<'_> {
        FlagContext {
            tenant_id: &self.tenant_id,
            tenant_slug: self.tenant_slug.as_deref(),
            plan: self.plan.as_deref(),
            partner_slug: self.partner_slug.as_deref(),
            environment: self.environment.as_deref(),
            tenant_active: self.tenant_active,
        }
    }

    /// Differs when any of them does.
    pub(super) fn digest(&self) -> [u8; 32] {
        let axes = [&self.tenant_slug, &self.plan, &self.partner_slug, &self.environment];
        let mut digest = Sha256::new();
        for text in std::iter::once(Some(&self.tenant_id)).chain(axes.map(Option::as_ref)) {
            // With their lengths, so that no text runs over into the next.
            match text {
                None => digest.update([0]),
                Some(text) => {
                    digest.update([1]);
                    digest.update((text.len() as u64).to_be_bytes());
                    digest.update(text);
                }
            }
        }
        digest.update([self.tenant_active.map_or(0, |active| 1 + u8::from(active))]);
        digest.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(context: &str) -> Given {
        Given::parse(format!("{{\"context\":{context}}}").as_bytes()).unwrap()
    }

    fn acme(active: bool) -> FlagContext<'static> {
        FlagContext {
            tenant_id: "t-1",
            tenant_slug: Some("acme"),
            plan: Some("pro"),
            partner_slug: Some("nordic"),
            environment: None,
            tenant_active: Some(active),
        }
    }

    #[test]
    fn a_context_is_read_within_its_bounds() {
        let read = given(
            r#"{"targetingKey":"t-1","plan":"pro","partnerSlug":null,"environment":"staging",
                "user":{"deep":[1]},"tenantActive":true}"#,
        );
        assert_eq!(
            read,
            Given {
                targeting_key: "t-1".into(),
                tenant_slug: Said::LeftOut,
                plan: Said::Is("pro".into()),
                partner_slug: Said::Nothing,
                environment: Some("staging".into()),
            }
        );
        let long = "x".repeat(129);
        for (body, code, part) in [
            ("", "PARSE_ERROR", "no JSON"),
            ("{", "PARSE_ERROR", "no JSON"),
            ("[]", "PARSE_ERROR", "object"),
            ("{}", "TARGETING_KEY_MISSING", "targetingKey"),
            (r#"{"context":{}}"#, "TARGETING_KEY_MISSING", "targetingKey"),
            (r#"{"context":{"targetingKey":""}}"#, "TARGETING_KEY_MISSING", "targetingKey"),
            (r#"{"context":{"targetingKey":null}}"#, "TARGETING_KEY_MISSING", "targetingKey"),
            (r#"{"context":[]}"#, "INVALID_CONTEXT", "context"),
            (r#"{"context":{"targetingKey":7}}"#, "INVALID_CONTEXT", "context.targetingKey"),
            (
                r#"{"context":{"targetingKey":"t","plan":7}}"#,
                "INVALID_CONTEXT",
                "context.plan must be text",
            ),
            (
                r#"{"context":{"targetingKey":"t","environment":"a\u0000"}}"#,
                "INVALID_CONTEXT",
                "context.environment must be without control",
            ),
            (
                &format!(r#"{{"context":{{"targetingKey":"t","tenantSlug":"{long}"}}}}"#),
                "INVALID_CONTEXT",
                "context.tenantSlug must have at most 128 bytes",
            ),
        ] {
            let refusal = Given::parse(body.as_bytes()).unwrap_err();
            let (is, details) = refusal.code_and_details();
            assert_eq!(is, code, "{body}");
            assert!(details.contains(part), "{body}: {details}");
        }
        let many: Map<_, _> = (0..257).map(|n| (n.to_string(), Value::Null)).collect();
        let body = serde_json::json!({ "context": many }).to_string();
        let refusal = Given::parse(body.as_bytes()).unwrap_err();
        assert!(refusal.code_and_details().1.contains("at most 256 members"));
    }

    #[test]
    fn for_an_operator_the_context_wins() {
        let context = given(r#"{"targetingKey":"t-1","plan":"basic","partnerSlug":null}"#);
        let axes = merge(context.clone(), Asker::Operator, Some(acme(true))).unwrap();
        assert_eq!(axes.tenant_slug.as_deref(), Some("acme"));
        assert_eq!((axes.plan.as_deref(), axes.partner_slug.as_deref()), (Some("basic"), None));
        assert_eq!(axes.tenant_active, Some(true));

        let unknown = merge(context, Asker::Operator, None).unwrap();
        assert_eq!((unknown.tenant_slug, unknown.tenant_active), (None, None));
        assert_eq!(unknown.plan.as_deref(), Some("basic"));
    }

    #[test]
    fn for_anyone_else_the_directory_wins() {
        let context = given(
            r#"{"targetingKey":"t-1","tenantSlug":"other","plan":"enterprise",
                "partnerSlug":null,"environment":"staging"}"#,
        );
        let theirs = Asker::Member(&["t-0", "t-1"]);
        let axes = merge(context.clone(), theirs, Some(acme(false))).unwrap();
        assert_eq!(
            axes,
            Axes {
                tenant_id: "t-1".into(),
                tenant_slug: Some("acme".into()),
                plan: Some("pro".into()),
                partner_slug: Some("nordic".into()),
                environment: Some("staging".into()),
                tenant_active: Some(false),
            }
        );
        let refused = |asker, known| merge(context.clone(), asker, known).unwrap_err();
        assert!(matches!(refused(Asker::Member(&["t-2"]), Some(acme(true))), Refusal::Forbidden));
        assert!(matches!(refused(Asker::Member(&[]), Some(acme(true))), Refusal::Forbidden));
        assert!(matches!(refused(theirs, None), Refusal::Forbidden));
    }

    #[test]
    fn who_says_everything_needs_no_directory_unless_it_has_to_be_believed() {
        let whole =
            given(r#"{"targetingKey":"t-1","tenantSlug":"a","plan":null,"partnerSlug":null}"#);
        let partly = given(r#"{"targetingKey":"t-1","tenantSlug":"a","plan":null}"#);
        assert!(!Asker::Operator.needs_directory(&whole));
        assert!(Asker::Operator.needs_directory(&partly));
        assert!(Asker::Member(&["t-1"]).needs_directory(&whole));
    }

    #[test]
    fn a_digest_tells_contexts_apart() {
        let axes = |id: &str, slug: Option<&str>, plan: Option<&str>, tenant_active| Axes {
            tenant_id: id.into(),
            tenant_slug: slug.map(str::to_owned),
            plan: plan.map(str::to_owned),
            tenant_active,
            ..Axes::default()
        };
        let all = [
            axes("t", None, None, None),
            axes("t", Some(""), None, None),
            axes("t", None, Some(""), None),
            axes("t", Some("a"), Some("b"), None),
            axes("t", Some("ab"), Some(""), None),
            axes("ta", Some("b"), None, None),
            axes("t", None, None, Some(false)),
            axes("t", None, None, Some(true)),
        ];
        let digests: std::collections::HashSet<_> = all.iter().map(Axes::digest).collect();
        assert_eq!(digests.len(), all.len());
        assert_eq!(all[0].digest(), all[0].clone().digest());
    }
}

//! The context of an evaluation: what the request states and what the directory adds.

use std::borrow::Cow;
use std::fmt;

use dezky_flags::live::LiveSet;
use dezky_flags::openfeature::{
    ENVIRONMENT, MAX_TARGETING_KEY_BYTES, PARTNER_SLUG, PLAN, TARGETING_KEY, TENANT_SLUG,
};
use dezky_flags::{
    Axis, Decision, FlagContext, FlagEvaluator as _, MAX_SCOPE_VALUE_BYTES, PartialContext,
};
use serde::Deserialize;
use serde::de::{self, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::refusal::Refusal;
use crate::http::body::LONE_SURROGATE;

/// The statement of a request about one member of the context.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Said {
    #[default]
    LeftOut,
    /// `null`: the tenant has none.
    Nothing,
    Is(String),
    /// The member is present but invalid.
    Unusable,
}

impl Said {
    fn or(&self, known: Option<&str>) -> Option<String> {
        match self {
            Self::LeftOut => known.map(str::to_owned),
            Self::Nothing | Self::Unusable => None,
            Self::Is(text) => Some(text.clone()),
        }
    }
}

/// The context that a request states.
#[derive(Debug, Clone, Default)]
pub(super) struct Given {
    /// The tenant's id; empty if it is missing or invalid.
    pub(super) targeting_key: String,
    pub(super) tenant_slug: Said,
    pub(super) plan: Said,
    pub(super) partner_slug: Said,
    pub(super) environment: Said,
    /// The first missing or invalid member. Flags that do not depend on such members are still
    /// decided.
    pub(super) problem: Option<Refusal>,
}

impl Given {
    /// Reads the body of an evaluation.
    ///
    /// Reads only the members that decide: others may hold any JSON, lone surrogates, numbers of
    /// any size and nesting of any depth included.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let not_json = |why: &dyn fmt::Display| {
            Refusal::parse_error(format!("the body is not a JSON object: {why}"))
        };
        // Serde would accept an array as the fields in their order.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(not_json(&"send {\"context\":{\"targetingKey\":\"…\"}}"));
        }
        let [context] = members(body, ["context"]).map_err(|error| not_json(&error))?;
        let names = [TARGETING_KEY, TENANT_SLUG, PLAN, PARTNER_SLUG, ENVIRONMENT];
        let [targeting_key, tenant_slug, plan, partner_slug, environment] =
            match context.map(RawValue::get) {
                None | Some("null") => [None; 5],
                Some(context) => members(context.as_bytes(), names)
                    .map_err(|_| Refusal::invalid_context("context must be a JSON object"))?,
            };
        let mut problem = None;
        let mut member = |name: &str, value: Option<&RawValue>, max_bytes: usize| {
            text(name, value, max_bytes).unwrap_or_else(|refusal| {
                problem.get_or_insert(refusal);
                Said::Unusable
            })
        };
        let key = member(TARGETING_KEY, targeting_key, MAX_TARGETING_KEY_BYTES);
        let mut axis = |name, value| member(name, value, MAX_SCOPE_VALUE_BYTES);
        let tenant_slug = axis(TENANT_SLUG, tenant_slug);
        let plan = axis(PLAN, plan);
        let partner_slug = axis(PARTNER_SLUG, partner_slug);
        let environment = axis(ENVIRONMENT, environment);
        let targeting_key = key.or(None).unwrap_or_default();
        if targeting_key.is_empty() && problem.is_none() {
            problem = Some(Refusal::targeting_key_missing());
        }
        Ok(Self { targeting_key, tenant_slug, plan, partner_slug, environment, problem })
    }

    /// The axes that are invalid, and without the directory those that are left out.
    fn unknown_axes(&self, is_directory_asked: bool) -> Vec<Axis> {
        let axes = [
            (Axis::TenantSlug, &self.tenant_slug, true),
            (Axis::Plan, &self.plan, true),
            (Axis::PartnerSlug, &self.partner_slug, true),
            (Axis::Environment, &self.environment, false),
        ];
        let is_unknown = |said: &Said, is_in_directory| match said {
            Said::Unusable => true,
            Said::LeftOut => is_in_directory && !is_directory_asked,
            Said::Nothing | Said::Is(_) => false,
        };
        axes.into_iter()
            .filter(|(_, said, is_in_directory)| is_unknown(said, *is_in_directory))
            .map(|(axis, ..)| axis)
            .collect()
    }
}

/// The members of an object with these names, unparsed; the last of equal names counts. All
/// other members are only checked to be JSON.
fn members<'a, const N: usize>(
    object: &'a [u8],
    names: [&'static str; N],
) -> serde_json::Result<[Option<&'a RawValue>; N]> {
    struct Reader<const N: usize>([&'static str; N]);
    impl<'de, const N: usize> Visitor<'de> for Reader<N> {
        type Value = [Option<&'de RawValue>; N];

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = [None; N];
            while let Some(Name(name)) = map.next_key()? {
                match self.0.iter().position(|known| known.as_bytes() == &*name) {
                    Some(at) => members[at] = Some(map.next_value()?),
                    None => drop(map.next_value::<IgnoredAny>()?),
                }
            }
            Ok(members)
        }
    }
    let mut reader = serde_json::Deserializer::from_slice(object);
    let members = reader.deserialize_map(Reader(names))?;
    reader.end()?;
    Ok(members)
}

/// A member's name as bytes: as text, a lone surrogate in it would be an error.
struct Name<'a>(Cow<'a, [u8]>);

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_bytes<E: de::Error>(self, name: &'de [u8]) -> Result<Name<'de>, E> {
                Ok(Name(name.into()))
            }

            fn visit_bytes<E: de::Error>(self, name: &[u8]) -> Result<Name<'de>, E> {
                Ok(Name(name.to_vec().into()))
            }
        }
        deserializer.deserialize_bytes(Reader)
    }
}

/// A member, which must be text or null if it is present.
fn text(name: &str, value: Option<&RawValue>, max_bytes: usize) -> Result<Said, Refusal> {
    let refused =
        |problem: String| Err(Refusal::invalid_context(format!("context.{name} {problem}")));
    let Some(value) = value.map(RawValue::get) else { return Ok(Said::LeftOut) };
    if value == "null" {
        return Ok(Said::Nothing);
    }
    if !value.starts_with('"') {
        return refused("must be text: send a string, null or leave it out".into());
    }
    match serde_json::from_str::<String>(value) {
        Ok(text) if text.len() > max_bytes => {
            refused(format!("must have at most {max_bytes} bytes: shorten it"))
        }
        Ok(text) if text.contains(char::is_control) => {
            refused("must not contain control characters: remove them".into())
        }
        Ok(text) => Ok(Said::Is(text)),
        Err(_) => refused(LONE_SURROGATE.into()),
    }
}

/// The caller.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asker<'a> {
    /// May evaluate for any tenant, known to the directory or not.
    Operator,
    /// May evaluate for the tenants with these ids.
    #[cfg_attr(not(test), expect(dead_code, reason = "members have no tokens yet"))]
    Member(&'a [&'a str]),
}

impl Asker<'_> {
    /// Whether the directory is needed whatever the flags are: an operator may leave out what it
    /// knows, and for everybody else only the directory is trusted.
    pub(super) fn needs_directory(self, given: &Given) -> bool {
        match self {
            Self::Operator => {
                [&given.tenant_slug, &given.plan, &given.partner_slug].contains(&&Said::LeftOut)
            }
            Self::Member(_) => true,
        }
    }
}

/// The values by which flags are decided.
#[derive(Debug, Clone, Default)]
pub(super) struct Axes {
    pub(super) tenant_id: String,
    pub(super) tenant_slug: Option<String>,
    pub(super) plan: Option<String>,
    pub(super) partner_slug: Option<String>,
    pub(super) environment: Option<String>,
    pub(super) tenant_active: Option<bool>,
    /// Without the directory, whose answers are unknown then.
    is_directory_missing: bool,
    unknown: Vec<Axis>,
    /// The first missing or invalid member.
    problem: Option<Refusal>,
}

/// Merges the stated context with the directory's knowledge of the tenant.
///
/// For an operator the context wins, and the directory adds what it leaves out. For everybody
/// else the directory wins and the tenant must be one of theirs, so that no caller can claim
/// another plan. Whether the tenant is active comes from the directory only.
pub(super) fn merge(
    given: &Given,
    asker: Asker<'_>,
    known: Option<FlagContext<'_>>,
) -> Result<Axes, Refusal> {
    let known = known.unwrap_or_default();
    let own = |axis: Option<&str>| axis.map(str::to_owned);
    if let Asker::Member(tenant_ids) = asker {
        let is_theirs = tenant_ids.contains(&given.targeting_key.as_str());
        if !is_theirs || known.tenant_id != given.targeting_key {
            return Err(Refusal::Forbidden);
        }
        return Ok(Axes {
            tenant_slug: own(known.tenant_slug),
            plan: own(known.plan),
            partner_slug: own(known.partner_slug),
            ..Axes::of(given, known, true)
        });
    }
    Ok(Axes::of(given, known, true))
}

impl Axes {
    /// The stated values alone, without the directory.
    pub(super) fn without_directory(given: &Given) -> Self {
        Self::of(given, FlagContext::default(), false)
    }

    fn of(given: &Given, known: FlagContext<'_>, is_directory_asked: bool) -> Self {
        Self {
            tenant_id: given.targeting_key.clone(),
            tenant_slug: given.tenant_slug.or(known.tenant_slug),
            plan: given.plan.or(known.plan),
            partner_slug: given.partner_slug.or(known.partner_slug),
            environment: given.environment.or(None),
            tenant_active: known.tenant_active,
            is_directory_missing: !is_directory_asked,
            unknown: given.unknown_axes(is_directory_asked),
            problem: given.problem.clone(),
        }
    }

    /// Whether every flag can be decided.
    pub(super) fn is_whole(&self) -> bool {
        self.problem.is_none() && !self.is_directory_missing
    }

    /// The decision on a flag, or the refusal: of the request if that is at fault, `otherwise` if
    /// not.
    pub(super) fn decide(
        &self,
        flags: &LiveSet,
        key: &str,
        otherwise: &Refusal,
    ) -> Result<Decision, Refusal> {
        if self.is_whole() {
            return Ok(flags.evaluate(key, &self.context()));
        }
        let context = PartialContext {
            known: self.context(),
            is_tenant_unknown: self.tenant_id.is_empty(),
            is_activity_unknown: self.is_directory_missing,
            unknown_axes: self.unknown.clone(),
        };
        let refusal = || self.problem.as_ref().unwrap_or(otherwise).clone();
        flags.evaluate_partial(key, &context).ok_or_else(refusal)
    }

    /// The context of the decisions.
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

    /// A digest of all values.
    pub(super) fn digest(&self) -> [u8; 32] {
        let axes = [&self.tenant_slug, &self.plan, &self.partner_slug, &self.environment];
        let mut digest = Sha256::new();
        for text in std::iter::once(Some(&self.tenant_id)).chain(axes.map(Option::as_ref)) {
            // With lengths, so that adjacent texts can't be confused.
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
        assert_eq!(read.targeting_key, "t-1");
        assert_eq!((&read.tenant_slug, &read.plan), (&Said::LeftOut, &Said::Is("pro".into())));
        assert_eq!(
            (&read.partner_slug, &read.environment),
            (&Said::Nothing, &Said::Is("staging".into()))
        );
        assert!(read.problem.is_none());
        for (body, code, part) in [
            ("", "PARSE_ERROR", "not a JSON object"),
            ("{", "PARSE_ERROR", "not a JSON object"),
            ("[]", "PARSE_ERROR", "not a JSON object"),
            (r#"{"context":{}}x"#, "PARSE_ERROR", "not a JSON object"),
            (r#"{"context":[]}"#, "INVALID_CONTEXT", "context"),
            (r#"{"context":"t"}"#, "INVALID_CONTEXT", "context"),
        ] {
            let refusal = Given::parse(body.as_bytes()).unwrap_err();
            let (is, details) = refusal.code_and_details();
            assert_eq!(is, code, "{body}");
            assert!(details.contains(part), "{body}: {details}");
        }
    }

    #[test]
    fn members_that_do_not_decide_may_hold_anything() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        let many = (0..2_000).map(|n| format!(r#""m{n}":0,"#)).collect::<Vec<_>>().concat();
        for other in [
            r#""x":"\ud83d""#,
            r#""\ud83d":1"#,
            r#""x":1e400"#,
            r#""x":-1e400,"y":99999999999999999999999999"#,
            &format!(r#""x":{deep}"#),
            &format!(r#"{many}"x":1"#),
            r#""\u0074argetingKey":"ignored","x":1"#,
        ] {
            let read = given(&format!(r#"{{{other},"targetingKey":"t-1","plan":"pro"}}"#));
            assert!(read.problem.is_none(), "{other}");
            assert_eq!((&*read.targeting_key, &read.plan), ("t-1", &Said::Is("pro".into())));
        }
    }

    #[test]
    fn members_next_to_the_context_may_hold_anything() {
        let context = r#""context":{"targetingKey":"t-1"}"#;
        for body in [
            format!(r#"{{"\ud83d":1,{context}}}"#),
            format!(r#"{{{context},"x":"\ud83d","y":1e400}}"#),
            format!(r#"{{"context":7,{context}}}"#),
        ] {
            let read = Given::parse(body.as_bytes()).unwrap();
            assert!(read.problem.is_none(), "{body}");
            assert_eq!(read.targeting_key, "t-1");
        }
    }

    #[test]
    fn a_member_that_cannot_be_used_is_named_and_the_others_are_read() {
        let long = "x".repeat(129);
        for (context, code, part) in [
            ("{}", "TARGETING_KEY_MISSING", "targetingKey"),
            (r#"{"targetingKey":""}"#, "TARGETING_KEY_MISSING", "targetingKey"),
            (r#"{"targetingKey":null}"#, "TARGETING_KEY_MISSING", "targetingKey"),
            (r#"{"targetingKey":7}"#, "INVALID_CONTEXT", "context.targetingKey must be text"),
            (
                r#"{"targetingKey":"\ud83d"}"#,
                "INVALID_CONTEXT",
                "context.targetingKey must be Unicode",
            ),
            (r#"{"targetingKey":"t","plan":7}"#, "INVALID_CONTEXT", "context.plan must be text"),
            (
                r#"{"targetingKey":"t","environment":"a\u0000"}"#,
                "INVALID_CONTEXT",
                "context.environment must not contain control",
            ),
            (
                &format!(r#"{{"targetingKey":"t","tenantSlug":"{long}"}}"#),
                "INVALID_CONTEXT",
                "context.tenantSlug must have at most 128 bytes",
            ),
        ] {
            let read = given(context);
            let problem = read.problem.expect(context);
            let (is, details) = problem.code_and_details();
            assert_eq!(is, code, "{context}");
            assert!(details.contains(part), "{context}: {details}");
        }
        let read = given(r#"{"targetingKey":"t","plan":7,"partnerSlug":"nordic"}"#);
        assert_eq!((read.plan, read.partner_slug), (Said::Unusable, Said::Is("nordic".into())));
        let empty = Given::parse(b"{}").unwrap();
        assert_eq!(empty.problem.unwrap().code_and_details().0, "TARGETING_KEY_MISSING");
    }

    #[test]
    fn for_an_operator_the_context_wins() {
        let context = given(r#"{"targetingKey":"t-1","plan":"basic","partnerSlug":null}"#);
        let axes = merge(&context, Asker::Operator, Some(acme(true))).unwrap();
        assert_eq!(axes.tenant_slug.as_deref(), Some("acme"));
        assert_eq!((axes.plan.as_deref(), axes.partner_slug.as_deref()), (Some("basic"), None));
        assert_eq!(axes.tenant_active, Some(true));

        let unknown = merge(&context, Asker::Operator, None).unwrap();
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
        let axes = merge(&context, theirs, Some(acme(false))).unwrap();
        assert_eq!(axes.context(), FlagContext { environment: Some("staging"), ..acme(false) });
        let refused = |asker, known| merge(&context, asker, known).unwrap_err();
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

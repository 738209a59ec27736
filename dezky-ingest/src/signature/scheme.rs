//! Signature schemes: the header, the signed text, and the optional time.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dezky_core::{Error, ErrorKind, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::{BASE64_LEN, HEADER, HEX_LEN, Headers, MAX_SIGNATURES, Secret, Secrets};

/// The tolerated difference between a sender's clock and ours, in seconds, unless declared.
const DEFAULT_TOLERANCE_SECONDS: u64 = 300;
/// The largest tolerance that may be declared, in seconds.
const MAX_TOLERANCE_SECONDS: u64 = 86_400;
/// The longest text of a declaration, in bytes.
const MAX_TEXT_BYTES: usize = 128;
/// The longest id or timestamp of a request that is signed, in bytes.
const MAX_SIGNED_BYTES: usize = 512;

/// A signature scheme as declared in a configuration.
///
/// [`scheme`](Self::scheme) gives every field a value; each of the others replaces one.
///
/// ```
/// use dezky_core::Timestamp;
/// use dezky_ingest::signature::{Headers, Scheme, SchemeConfig, Secrets};
/// let config: SchemeConfig = serde_json::from_str(r#"{"scheme": "github"}"#).unwrap();
/// let scheme = Scheme::compile(&config).unwrap();
/// let secrets = Secrets::from_texts(["It's a Secret to Everybody"])?;
/// let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
/// let headers = Headers::new([("X-Hub-Signature-256", signature)]);
/// scheme.verify(&secrets, &headers, b"Hello, World!", Timestamp::MIN)?;
/// # Ok::<(), dezky_core::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchemeConfig {
    /// A known way of signing.
    pub scheme: Preset,
    /// The header that carries the signatures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The text before each signature; empty for none. Text with another prefix is not a signature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// How a signature is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// The text that is signed: `{body}` at its end, before it `{timestamp}` and `{id}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed: Option<String>,
    /// The header with the id of the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_header: Option<String>,
    /// The header with the time of sending, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp_header: Option<String>,
    /// The text before that time, if it is among the signatures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp_prefix: Option<String>,
    /// The tolerated difference between that time and now in seconds, 1 to 86,400; 300 unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerance_seconds: Option<u64>,
    /// How the secret is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretForm>,
}

/// A known way of signing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// `X-Signature`: base64 or hex of the body's digest, with or without `sha256=`.
    #[default]
    Dezky,
    /// `X-Hub-Signature-256: sha256=<hex>`.
    Github,
    /// `Stripe-Signature: t=<seconds>,v1=<hex>` over `<seconds>.<body>`.
    Stripe,
    /// `webhook-signature: v1,<base64>` over `<webhook-id>.<webhook-timestamp>.<body>`.
    StandardWebhooks,
}

/// How a signature is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Base64 or hex; the length tells them apart.
    Any,
    /// Standard base64 with padding, 44 characters.
    Base64,
    /// 64 hex digits.
    Hex,
}

/// How a secret is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretForm {
    /// The bytes of the text.
    Text,
    /// `whsec_` and the base64 of the bytes.
    Whsec,
}

/// A problem of a declared scheme: the field, and the fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemeProblem {
    /// The field.
    pub field: &'static str,
    /// The problem and the fix.
    pub problem: String,
}

impl fmt::Display for SchemeProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

impl std::error::Error for SchemeProblem {}

/// A signature scheme, compiled from its [declaration](SchemeConfig).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheme {
    header: String,
    prefix: String,
    /// Whether a signature without the prefix counts too.
    is_prefix_optional: bool,
    encoding: Encoding,
    signed: Vec<Part>,
    id_header: Option<String>,
    clock: Option<Clock>,
    secret: SecretForm,
}

/// A part of the text that is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Id,
    Timestamp,
    Body,
}

/// Where the time of sending is, and how far from now it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Clock {
    at: TimestampAt,
    tolerance_seconds: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum TimestampAt {
    Header(String),
    /// Among the signatures, after this prefix.
    Prefix(String),
}

impl Default for Scheme {
    /// `X-Signature`, see [`Preset::Dezky`].
    fn default() -> Self {
        Self {
            header: HEADER.into(),
            prefix: "sha256=".into(),
            is_prefix_optional: true,
            encoding: Encoding::Any,
            signed: vec![Part::Body],
            id_header: None,
            clock: None,
            secret: SecretForm::Text,
        }
    }
}

impl Scheme {
    /// Compiles a declaration.
    ///
    /// # Errors
    /// The first problem, with its field and fix.
    pub fn compile(config: &SchemeConfig) -> Result<Self, SchemeProblem> {
        let mut scheme = Self::of(config.scheme);
        if let Some(header) = header("header", config.header.as_deref())? {
            scheme.header = header;
        }
        if let Some(prefix) = &config.prefix {
            (scheme.prefix, scheme.is_prefix_optional) = (text("prefix", prefix)?, false);
        }
        scheme.encoding = config.encoding.unwrap_or(scheme.encoding);
        scheme.secret = config.secret.unwrap_or(scheme.secret);
        if let Some(name) = header("id_header", config.id_header.as_deref())? {
            scheme.id_header = Some(name);
        }
        let at = timestamp_at(config)?.or(scheme.clock.map(|clock| clock.at));
        let tolerance_seconds = config.tolerance_seconds.unwrap_or(DEFAULT_TOLERANCE_SECONDS);
        if !(1..=MAX_TOLERANCE_SECONDS).contains(&tolerance_seconds) {
            let problem = format!("must be 1 to {MAX_TOLERANCE_SECONDS}");
            return Err(wrong("tolerance_seconds", problem));
        }
        if at.is_none() && config.tolerance_seconds.is_some() {
            let problem = "needs a time to compare: set timestamp_header or timestamp_prefix";
            return Err(wrong("tolerance_seconds", problem));
        }
        scheme.clock = at.map(|at| Clock { at, tolerance_seconds });
        if let Some(signed) = &config.signed {
            scheme.signed = template(signed)?;
        }
        scheme.check()?;
        Ok(scheme)
    }

    /// A known way of signing.
    fn of(preset: Preset) -> Self {
        let base = Self { is_prefix_optional: false, ..Self::default() };
        let clock = |at| Some(Clock { at, tolerance_seconds: DEFAULT_TOLERANCE_SECONDS });
        let dot = || Part::Text(".".into());
        match preset {
            Preset::Dezky => Self::default(),
            Preset::Github => {
                Self { header: "x-hub-signature-256".into(), encoding: Encoding::Hex, ..base }
            }
            Preset::Stripe => Self {
                header: "stripe-signature".into(),
                prefix: "v1=".into(),
                encoding: Encoding::Hex,
                signed: vec![Part::Timestamp, dot(), Part::Body],
                clock: clock(TimestampAt::Prefix("t=".into())),
                ..base
            },
            Preset::StandardWebhooks => Self {
                header: "webhook-signature".into(),
                prefix: "v1,".into(),
                encoding: Encoding::Base64,
                signed: vec![Part::Id, dot(), Part::Timestamp, dot(), Part::Body],
                id_header: Some("webhook-id".into()),
                clock: clock(TimestampAt::Header("webhook-timestamp".into())),
                secret: SecretForm::Whsec,
                ..base
            },
        }
    }

    /// Refuses a time or id that is declared but not signed, which anyone could replace, and one
    /// that is signed but not declared.
    fn check(&self) -> Result<(), SchemeProblem> {
        let has = |part| self.signed.contains(&part);
        let problem = match (has(Part::Timestamp), self.clock.is_some()) {
            (true, false) => "has {timestamp}: set timestamp_header or timestamp_prefix",
            (false, true) => {
                "lacks {timestamp}: a time that is not signed protects against nothing"
            }
            _ => match (has(Part::Id), self.id_header.is_some()) {
                (true, false) => "has {id}: set id_header",
                (false, true) => "lacks {id}: leave out id_header, or sign it",
                _ => return Ok(()),
            },
        };
        Err(wrong("signed", problem))
    }

    /// Creates a secret from the text that this scheme's senders use.
    ///
    /// # Errors
    /// Those of [`Secret::new`] and [`Secret::standard`].
    pub fn secret(&self, text: &str) -> Result<Secret> {
        match self.secret {
            SecretForm::Text => Secret::new(text),
            SecretForm::Whsec => Secret::standard(text),
        }
    }

    /// Verifies a request's headers against its raw body, before anything is parsed. At least one
    /// signature must match one of the secrets, and the time of sending, if there is one, must be
    /// within the tolerance of `now`. So a request can be replayed only within that window; there,
    /// and without a time, the identity of the events protects against a replay.
    ///
    /// # Errors
    /// [`ErrorKind::SignatureInvalid`] names the header and the problem. All comparisons with
    /// secrets take the same time; the time of sending is checked after them.
    pub fn verify(
        &self,
        secrets: &Secrets,
        headers: &Headers,
        body: &[u8],
        now: Timestamp,
    ) -> Result<()> {
        let value = headers
            .get(&self.header)
            .ok_or_else(|| invalid(format!("the {} header is missing", self.header)))?;
        let signatures = self.signatures(value)?;
        let id = self.signed_header(headers, self.id_header.as_deref())?;
        let sent = self.sent(headers, value)?;
        let parts: Vec<&[u8]> = self
            .signed
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.as_bytes(),
                Part::Id => id.as_bytes(),
                Part::Timestamp => sent.as_bytes(),
                Part::Body => body,
            })
            .collect();
        if !secrets.sign_any(&parts, &signatures) {
            return Err(invalid(format!("{} is not the signature of this body", self.header)));
        }
        self.check_time(sent, now)
    }

    /// The elements of the header, separated by white space, and by commas unless the prefix
    /// contains one.
    fn elements<'v>(&self, value: &'v str) -> impl Iterator<Item = &'v str> {
        let has_comma = self.prefix.contains(',');
        let is_between = move |c: char| c.is_ascii_whitespace() || (c == ',' && !has_comma);
        value.split(is_between).map(|element| element.trim_matches(',')).filter(|e| !e.is_empty())
    }

    fn signatures(&self, value: &str) -> Result<Vec<[u8; 32]>> {
        let signature = |element: &str| {
            let bare = element.strip_prefix(&*self.prefix);
            decode(bare.or(self.is_prefix_optional.then_some(element))?, self.encoding)
        };
        let signatures: Vec<_> =
            self.elements(value).filter_map(signature).take(MAX_SIGNATURES + 1).collect();
        if signatures.len() > MAX_SIGNATURES {
            let problem = format!("{} has more than {MAX_SIGNATURES} signatures", self.header);
            return Err(invalid(problem));
        }
        if signatures.is_empty() {
            let form = match self.encoding {
                Encoding::Any => "base64 (44 characters) or hex (64 digits)",
                Encoding::Base64 => "base64 (44 characters)",
                Encoding::Hex => "hex (64 digits)",
            };
            let before = match (&*self.prefix, self.is_prefix_optional) {
                ("", _) | (_, true) => String::new(),
                (prefix, false) => format!("{prefix} and "),
            };
            let problem = format!("{} must be {before}the {form} of 32 bytes", self.header);
            return Err(invalid(problem));
        }
        Ok(signatures)
    }

    /// The value of a signed header; empty if none is declared.
    fn signed_header<'h>(&self, headers: &'h Headers, name: Option<&str>) -> Result<&'h str> {
        let Some(name) = name else { return Ok("") };
        headers.get(name).filter(|value| (1..=MAX_SIGNED_BYTES).contains(&value.len())).ok_or_else(
            || {
                let header = &self.header;
                invalid(format!("the {name} header, which {header} covers, is missing or too long"))
            },
        )
    }

    /// The time of sending as signed; empty if there is none.
    fn sent<'h>(&self, headers: &'h Headers, value: &'h str) -> Result<&'h str> {
        match self.clock.as_ref().map(|clock| &clock.at) {
            None => Ok(""),
            Some(TimestampAt::Header(name)) => self.signed_header(headers, Some(name)),
            Some(TimestampAt::Prefix(prefix)) => {
                let mut stamps =
                    self.elements(value).filter_map(|element| element.strip_prefix(&**prefix));
                match (stamps.next(), stamps.next()) {
                    (Some(stamp), None) if stamp.len() <= MAX_SIGNED_BYTES => Ok(stamp),
                    _ => {
                        Err(invalid(format!("{} must have one {prefix} with a time", self.header)))
                    }
                }
            }
        }
    }

    fn check_time(&self, sent: &str, now: Timestamp) -> Result<()> {
        let Some(Clock { tolerance_seconds, .. }) = &self.clock else { return Ok(()) };
        // No sign, no fraction, and few enough digits for any arithmetic.
        let is_number = (1..=12).contains(&sent.len()) && sent.bytes().all(|b| b.is_ascii_digit());
        let seconds = sent.parse::<i64>().ok().filter(|_| is_number);
        let seconds = seconds
            .ok_or_else(|| invalid("the time of sending must be whole seconds since 1970"))?;
        let apart = now.as_millis().abs_diff(seconds * 1_000);
        if apart > tolerance_seconds * 1_000 {
            return Err(invalid(format!(
                "the time of sending is more than {tolerance_seconds} s away from our clock"
            )));
        }
        Ok(())
    }
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::SignatureInvalid, what.into())
}

/// Decodes a digest. The length decides, because 64 hex digits are also valid base64 (of 48 bytes).
fn decode(text: &str, encoding: Encoding) -> Option<[u8; 32]> {
    match (text.len(), encoding) {
        (HEX_LEN, Encoding::Hex | Encoding::Any) => {
            let mut digest = [0; 32];
            hex::decode_to_slice(text, &mut digest).ok()?;
            Some(digest)
        }
        (BASE64_LEN, Encoding::Base64 | Encoding::Any) => {
            STANDARD.decode(text).ok()?.try_into().ok()
        }
        _ => None,
    }
}

fn wrong(field: &'static str, problem: impl Into<String>) -> SchemeProblem {
    SchemeProblem { field, problem: problem.into() }
}

/// Checks a text that is to be part of a header.
fn text(field: &'static str, given: &str) -> Result<String, SchemeProblem> {
    let is_visible = given.bytes().all(|b| (b'!'..=b'~').contains(&b));
    if given.len() > MAX_TEXT_BYTES || !is_visible {
        let problem = format!("must be at most {MAX_TEXT_BYTES} ASCII characters without spaces");
        return Err(wrong(field, problem));
    }
    Ok(given.to_owned())
}

/// Checks the name of a header and returns it in lower case.
fn header(field: &'static str, name: Option<&str>) -> Result<Option<String>, SchemeProblem> {
    let Some(name) = name else { return Ok(None) };
    let is_of_name = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || name.len() > MAX_TEXT_BYTES || !name.bytes().all(is_of_name) {
        return Err(wrong(field, "must be the name of a header, such as X-Signature"));
    }
    Ok(Some(name.to_ascii_lowercase()))
}

fn timestamp_at(config: &SchemeConfig) -> Result<Option<TimestampAt>, SchemeProblem> {
    let name = header("timestamp_header", config.timestamp_header.as_deref())?;
    match (name, config.timestamp_prefix.as_deref()) {
        (Some(_), Some(_)) => {
            Err(wrong("timestamp_prefix", "timestamp_header is set: leave out one"))
        }
        (Some(name), None) => Ok(Some(TimestampAt::Header(name))),
        (None, Some("")) => Err(wrong("timestamp_prefix", "is empty: set it, such as \"t=\"")),
        (None, Some(prefix)) => Ok(Some(TimestampAt::Prefix(text("timestamp_prefix", prefix)?))),
        (None, None) => Ok(None),
    }
}

/// The parts of a text with `{timestamp}`, `{id}` and, at its end, `{body}`.
fn template(text: &str) -> Result<Vec<Part>, SchemeProblem> {
    let problem = "must end with {body}, and may have one {timestamp} and one {id} before it, such as \"{timestamp}.{body}\"";
    let refused = || wrong("signed", problem);
    let fits = text.len() <= MAX_TEXT_BYTES;
    let mut rest = text.strip_suffix("{body}").filter(|_| fits).ok_or_else(refused)?;
    let mut parts = Vec::new();
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or_else(refused)?;
        let part = match name {
            "timestamp" => Part::Timestamp,
            "id" => Part::Id,
            _ => return Err(refused()),
        };
        if before.contains('}') || parts.contains(&part) {
            return Err(refused());
        }
        parts.push(Part::Text(before.to_owned()));
        parts.push(part);
        rest = after;
    }
    if rest.contains('}') {
        return Err(refused());
    }
    parts.push(Part::Text(rest.to_owned()));
    parts.push(Part::Body);
    parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
    // Bytes could move from one to the other under the same signature.
    let is_text = |part: &Part| matches!(part, Part::Text(_));
    if parts.windows(2).any(|pair| !pair.iter().any(is_text)) {
        let problem = "has two adjacent placeholders: put text between them, as in \"{id}.{timestamp}.{body}\"";
        return Err(wrong("signed", problem));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const BODY: &[u8] = br#"{"test": 2432232314}"#;

    fn scheme(declared: Value) -> Scheme {
        Scheme::compile(&serde_json::from_value(declared).unwrap()).unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000).unwrap()
    }

    fn refused(result: Result<()>, words: &str) {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SignatureInvalid);
        assert!(error.to_string().contains(words), "{error}");
    }

    #[test]
    fn githubs_own_vector() {
        let scheme = scheme(json!({"scheme": "github"}));
        let secrets = Secrets::from_texts(["It's a Secret to Everybody"]).unwrap();
        let hex = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let check = |name: &str, value: &str| {
            let headers = Headers::new([(name, value)]);
            scheme.verify(&secrets, &headers, b"Hello, World!", Timestamp::MIN)
        };
        check("X-Hub-Signature-256", &format!("sha256={hex}")).unwrap();
        refused(check("X-Hub-Signature-256", hex), "sha256= and the hex");
        refused(check("X-Signature", &format!("sha256={hex}")), "x-hub-signature-256");
    }

    #[test]
    fn standard_webhooks_own_vector() {
        let scheme = scheme(json!({"scheme": "standard-webhooks"}));
        let key = scheme.secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let secrets = Secrets::new([key]).unwrap();
        let right = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let check = |signature: &str, id: &str, sent: &str, now: i64| {
            let headers = Headers::new([
                ("webhook-id", id),
                ("webhook-timestamp", sent),
                ("webhook-signature", signature),
            ]);
            scheme.verify(&secrets, &headers, BODY, at(now))
        };
        let (id, sent) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330");
        check(right, id, sent, 1_614_265_330).unwrap();
        check(&format!("v1a,AAAA v1,AAAA {right}"), id, sent, 1_614_265_330 + 300).unwrap();
        // Joined as two header lines are.
        check(&format!("v1,AAAA, {right}"), id, sent, 1_614_265_330 - 300).unwrap();
        refused(check(right, id, sent, 1_614_265_330 + 301), "300 s away");
        refused(check(right, id, sent, 1_614_265_330 - 301), "300 s away");
        refused(check(right, "msg_other", sent, 1_614_265_330), "not the signature");
        refused(check(right, id, "1614265331", 1_614_265_331), "not the signature");
        refused(check(right, "", sent, 1_614_265_330), "webhook-id");
        let bare = Headers::new([("webhook-signature", right)]);
        refused(scheme.verify(&secrets, &bare, BODY, at(1_614_265_330)), "webhook-id");
        for bad in ["", "whsec_", "whsec_c2hvcnQ=", "whsec_no base64", &"A".repeat(92)] {
            assert_eq!(scheme.secret(bad).unwrap_err().kind(), ErrorKind::ConfigInvalid, "{bad}");
        }
    }

    #[test]
    fn stripe_and_those_like_it() {
        let text = "whsec_is_the_text_itself";
        let stripe = scheme(json!({"scheme": "stripe"}));
        let secrets = Secrets::new([stripe.secret(text).unwrap()]).unwrap();
        let hex = secrets.sign_hex(&[b"1700000000.", BODY].concat());
        let check = |scheme: &Scheme, value: String, now: i64| {
            let headers = Headers::new([("Stripe-Signature", value)]);
            scheme.verify(&secrets, &headers, BODY, at(now))
        };
        let other = "0".repeat(64);
        check(&stripe, format!("t=1700000000,v1={hex},v0={other}"), 1_700_000_100).unwrap();
        check(&stripe, format!("t=1700000000, v1={other}, v1={hex}"), 1_700_000_300).unwrap();
        refused(check(&stripe, format!("t=1700000000,v1={hex}"), 1_700_000_301), "away");
        refused(check(&stripe, format!("t=1700000001,v1={hex}"), 1_700_000_001), "not the");
        refused(check(&stripe, format!("v1={hex}"), 1_700_000_000), "one t=");
        let twice = format!("t=1700000000,t=1800000000,v1={hex}");
        refused(check(&stripe, twice, 1_700_000_000), "one t=");
        refused(check(&stripe, format!("t=1700000000,v0={hex}"), 1_700_000_000), "v1= and");
        let wide = scheme(json!({"scheme": "stripe", "tolerance_seconds": 600}));
        check(&wide, format!("t=1700000000,v1={hex}"), 1_700_000_600).unwrap();

        // Slack's form, by fields alone.
        let slack = scheme(json!({
            "header": "X-Slack-Signature", "prefix": "v0=", "encoding": "hex",
            "timestamp_header": "X-Slack-Request-Timestamp", "signed": "v0:{timestamp}:{body}",
        }));
        let signature = secrets.sign_hex(&[b"v0:1700000000:", BODY].concat());
        let headers = Headers::new([
            ("x-slack-signature", format!("v0={signature}")),
            ("x-slack-request-timestamp", "1700000000".into()),
        ]);
        slack.verify(&secrets, &headers, BODY, at(1_700_000_000)).unwrap();
        for odd in ["", "-1700000000", "1700000000.5", "1.7e9", "17000000000000", "now"] {
            let signed = secrets.sign_hex(&[b"v0:", odd.as_bytes(), b":", BODY].concat());
            let headers = Headers::new([
                ("x-slack-signature", format!("v0={signed}")),
                ("x-slack-request-timestamp", odd.into()),
            ]);
            assert!(slack.verify(&secrets, &headers, BODY, at(1_700_000_000)).is_err(), "{odd}");
        }
    }

    #[test]
    fn problems_name_field_and_fix() {
        for (declared, field, words) in [
            (json!({"header": ""}), "header", "X-Signature"),
            (json!({"header": "X Signature"}), "header", "X-Signature"),
            (json!({"prefix": "a b"}), "prefix", "without spaces"),
            (json!({"signed": "{timestamp}.{body}"}), "signed", "timestamp_header"),
            (json!({"timestamp_header": "X-Time"}), "signed", "protects against nothing"),
            (json!({"signed": "{id}.{body}"}), "signed", "id_header"),
            (json!({"id_header": "X-Id"}), "signed", "lacks {id}"),
            (json!({"signed": "{body}."}), "signed", "must end with {body}"),
            (json!({"signed": "{id}{timestamp}.{body}"}), "signed", "adjacent placeholders"),
            (json!({"signed": "v0:{id}.{timestamp}{body}"}), "signed", "adjacent placeholders"),
            (json!({"signed": "{id}{body}"}), "signed", "adjacent placeholders"),
            (json!({"signed": "{other}{body}"}), "signed", "must end"),
            (json!({"signed": "{body}{body}"}), "signed", "must end"),
            (json!({"signed": "}{body}"}), "signed", "must end"),
            (json!({"tolerance_seconds": 5}), "tolerance_seconds", "timestamp_header"),
            (json!({"scheme": "stripe", "tolerance_seconds": 0}), "tolerance_seconds", "86400"),
            (json!({"timestamp_prefix": ""}), "timestamp_prefix", "t="),
            (
                json!({"timestamp_prefix": "t=", "timestamp_header": "T"}),
                "timestamp_prefix",
                "leave out one",
            ),
        ] {
            let config = serde_json::from_value(declared.clone()).unwrap();
            let problem = Scheme::compile(&config).unwrap_err();
            assert_eq!(problem.field, field, "{declared}: {problem}");
            assert!(problem.problem.contains(words), "{declared}: {problem}");
        }
        assert_eq!(Scheme::compile(&SchemeConfig::default()).unwrap(), Scheme::default());
    }
}

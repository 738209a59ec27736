//! The signature of a webhook: HMAC-SHA-256 over the raw body.
//!
//! `X-Signature` carries it as standard base64 with padding (44 characters, as Stalwart sends from
//! 0.8.2 on) or as 64 hex digits (other senders), with or without the prefix `sha256=`. It has
//! neither a timestamp nor a key id, so a body can be replayed; the identity of its events protects
//! against that.
//!
//! Senders with other signatures (GitHub, Stripe and similar, Standard Webhooks) are declared by a
//! [`SchemeConfig`] and verified by its [`Scheme`].

mod scheme;

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dezky_core::{Error, ErrorKind, Result, Timestamp};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

pub use self::scheme::{Encoding, Preset, Scheme, SchemeConfig, SchemeProblem, SecretForm};

/// The request header that carries the signature.
pub const HEADER: &str = "x-signature";

/// The length of a signature in base64, and in hex.
const BASE64_LEN: usize = 44;
const HEX_LEN: usize = 64;
/// The maximum number of signatures of a request: each is compared with the digest of every secret.
const MAX_SIGNATURES: usize = 32;
/// Prefix of a body identity that is made from the body's signature.
const IDENTITY_DOMAIN: &[u8] = b"dezky-unreadable/1\0";
/// The prefix of a Standard Webhooks secret, before the base64 of its bytes.
const STANDARD_SECRET_PREFIX: &str = "whsec_";
/// The lengths that Standard Webhooks allows a key, in bytes.
const STANDARD_KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The headers of a request. Lines of one name are joined by `, `, as HTTP defines; names are
/// looked up in lower case. `Debug` shows no values.
#[derive(Clone, Default)]
pub struct Headers(BTreeMap<String, String>);

impl Headers {
    /// The header lines of a request, in their order.
    pub fn new<N: AsRef<str>, V: AsRef<str>>(lines: impl IntoIterator<Item = (N, V)>) -> Self {
        let mut headers = BTreeMap::<String, String>::new();
        for (name, value) in lines {
            let joined = headers.entry(name.as_ref().to_ascii_lowercase()).or_default();
            if !joined.is_empty() {
                joined.push_str(", ");
            }
            joined.push_str(value.as_ref());
        }
        Self(headers)
    }

    /// The value of the header of that name, which is in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A shared secret: the UTF-8 bytes of its text, neither trimmed nor decoded,
/// which is how Stalwart uses its own.
///
/// Stored only as a keyed digest; `Debug` shows nothing and there is no `Display`.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

impl Secret {
    /// Creates a secret from a text. An empty or blank one is refused
    /// ([`ErrorKind::ConfigInvalid`]), because anyone could sign with it.
    pub fn new(text: impl AsRef<str>) -> Result<Self> {
        Self::from_bytes(text.as_ref())
    }

    /// Creates a secret from the bytes of a key that may not be text. An empty or blank one is
    /// refused, as by [`new`](Self::new).
    pub fn from_bytes(key: impl AsRef<[u8]>) -> Result<Self> {
        let key = key.as_ref();
        if key.trim_ascii().is_empty() {
            return Err(Error::new(
                ErrorKind::ConfigInvalid,
                "a webhook secret is empty or blank: set it to the key configured at the sender",
            ));
        }
        Self::of_key(key)
    }

    /// Creates a secret from the form of Standard Webhooks: `whsec_` and the base64 of the key,
    /// which is decoded for signing. The prefix may be missing.
    ///
    /// # Errors
    /// [`ErrorKind::ConfigInvalid`] if it is not the base64 of 24 to 64 bytes.
    pub fn standard(text: impl AsRef<str>) -> Result<Self> {
        let text = text.as_ref();
        let encoded = text.strip_prefix(STANDARD_SECRET_PREFIX).unwrap_or(text);
        let key = STANDARD.decode(encoded).ok();
        let key = key.filter(|key| STANDARD_KEY_BYTES.contains(&key.len())).ok_or_else(|| {
            let (min, max) = (STANDARD_KEY_BYTES.start(), STANDARD_KEY_BYTES.end());
            Error::new(
                ErrorKind::ConfigInvalid,
                format!(
                    "a Standard Webhooks secret is {STANDARD_SECRET_PREFIX} and the base64 of {min} to {max} bytes"
                ),
            )
        })?;
        Self::of_key(&key)
    }

    fn of_key(key: &[u8]) -> Result<Self> {
        Hmac::new_from_slice(key)
            .map(Self)
            .map_err(|e| Error::new(ErrorKind::ConfigInvalid, "unusable secret").with_source(e))
    }

    /// The digest of the concatenated `parts`.
    fn digest(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = self.0.clone();
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// The signature of `body` as Stalwart sends it.
    pub fn sign_base64(&self, body: &[u8]) -> String {
        STANDARD.encode(self.digest(&[body]))
    }

    /// The signature of `body` in lower-case hex.
    pub fn sign_hex(&self, body: &[u8]) -> String {
        hex::encode(self.digest(&[body]))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The secrets of one endpoint: one or more, any of which may have signed.
///
/// Rotating a secret needs several: a running Stalwart signs with the old key after a reload, until
/// it restarts.
#[derive(Clone, Debug)]
pub struct Secrets(Vec<Secret>);

impl Secrets {
    /// The secrets of an endpoint; the first is the one to sign with.
    ///
    /// [`ErrorKind::ConfigInvalid`] if there is none: an endpoint without a
    /// secret must not start.
    pub fn new(secrets: impl IntoIterator<Item = Secret>) -> Result<Self> {
        let secrets: Vec<_> = secrets.into_iter().collect();
        if secrets.is_empty() {
            return Err(Error::new(
                ErrorKind::ConfigInvalid,
                "a webhook endpoint needs at least one secret",
            ));
        }
        Ok(Self(secrets))
    }

    /// Creates the secrets from texts, none of which may be empty.
    pub fn from_texts<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Self> {
        Self::new(texts.into_iter().map(Secret::new).collect::<Result<Vec<_>>>()?)
    }

    /// Checks the value of the `X-Signature` header against the raw body, before
    /// anything is parsed. Several header lines are joined by `, `: any of their
    /// signatures may be the right one, so that a sender can sign with an old and a
    /// new secret at once.
    ///
    /// [`ErrorKind::SignatureInvalid`] if the header is missing, holds no signature
    /// (44 characters of padded standard base64 or 64 hex digits, with or without
    /// `sha256=` before them) or more than 32, or no secret gives one of them. Every
    /// secret is compared with every signature and each comparison takes the same
    /// time, so that the time tells neither which secret nor how much matched.
    pub fn verify(&self, header: Option<&str>, body: &[u8]) -> Result<()> {
        let headers = Headers::new(header.map(|value| (HEADER, value)));
        Scheme::default().verify(self, &headers, body, Timestamp::MIN)
    }

    /// Whether a secret signs `parts` with one of the `given` digests, in constant time.
    fn sign_any(&self, parts: &[&[u8]], given: &[[u8; 32]]) -> bool {
        let mut is_any = Choice::from(0);
        for secret in &self.0 {
            let digest = secret.digest(parts);
            for signature in given {
                is_any |= digest.ct_eq(signature);
            }
        }
        is_any.into()
    }

    /// Identifies a body that must not be kept: a digest that can be compared with a guess only by
    /// those who know the first secret, and that is not the body's signature.
    pub(crate) fn identity(&self, body: &[u8]) -> String {
        let digest = Sha256::new().chain_update(IDENTITY_DOMAIN);
        hex::encode(digest.chain_update(self.first().digest(&[body])).finalize())
    }

    /// [`Secret::sign_base64`] with the first secret.
    pub fn sign_base64(&self, body: &[u8]) -> String {
        self.first().sign_base64(body)
    }

    /// [`Secret::sign_hex`] with the first secret.
    pub fn sign_hex(&self, body: &[u8]) -> String {
        self.first().sign_hex(body)
    }

    fn first(&self) -> &Secret {
        // `new` refuses an empty list.
        &self.0[0]
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE};
    use serde_json::Value;

    use super::*;

    const MINIMAL: &str = r#"{"events":[{"id":"178696080012035","createdAt":"2026-08-17T10:00:00Z","type":"auth.failed","data":{"accountName":"alice@example.com","remoteIp":"203.0.113.7"}}]}"#;
    const MINIMAL_BASE64: &str = "nicyi652QyD8xF3pM3y0CjWYiISfVOzSODIh60eHbLc=";
    const MINIMAL_HEX: &str = "9e27328bae764320fcc45de9337cb40a359888849f54ecd2383221eb47876cb7";

    fn secrets(texts: &[&str]) -> Secrets {
        Secrets::from_texts(texts).unwrap()
    }

    #[track_caller]
    fn refused(secrets: &Secrets, header: Option<&str>, body: &[u8]) {
        let error = secrets.verify(header, body).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SignatureInvalid);
    }

    #[test]
    fn minimal_vector() {
        assert_eq!(MINIMAL.len(), 161);
        let s = secrets(&["s3cr3t"]);
        assert_eq!(s.sign_base64(MINIMAL.as_bytes()), MINIMAL_BASE64);
        assert_eq!(s.sign_hex(MINIMAL.as_bytes()), MINIMAL_HEX);
        s.verify(Some(MINIMAL_BASE64), MINIMAL.as_bytes()).unwrap();
        s.verify(Some(MINIMAL_HEX), MINIMAL.as_bytes()).unwrap();
        s.verify(Some(&MINIMAL_HEX.to_uppercase()), MINIMAL.as_bytes()).unwrap();
    }

    #[test]
    fn rfc_4231_case_2() {
        assert_eq!(
            Secret::new("Jefe").unwrap().sign_hex(b"what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn manifest() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/stalwart/");
        let manifest = std::fs::read_to_string(format!("{dir}manifest.json")).unwrap();
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        let s = secrets(&[manifest["key"].as_str().unwrap()]);
        let examples = manifest["examples"].as_array().unwrap();
        assert_eq!(examples.len(), 7);
        for example in examples {
            let body =
                std::fs::read(format!("{dir}{}", example["file"].as_str().unwrap())).unwrap();
            assert_eq!(body.len() as u64, example["bytes"]);
            assert_eq!(s.sign_base64(&body), example["base64"]);
            assert_eq!(s.sign_hex(&body), example["hex"]);
            s.verify(example["base64"].as_str(), &body).unwrap();
            s.verify(example["hex"].as_str(), &body).unwrap();
        }
    }

    #[test]
    fn any_of_several_secrets() {
        let body = MINIMAL.as_bytes();
        secrets(&["new", "s3cr3t"]).verify(Some(MINIMAL_BASE64), body).unwrap();
        secrets(&["s3cr3t", "new"]).verify(Some(MINIMAL_HEX), body).unwrap();
        refused(&secrets(&["new", "old"]), Some(MINIMAL_BASE64), body);
    }

    #[test]
    fn any_of_several_signatures() {
        let (s, body) = (secrets(&["s3cr3t"]), MINIMAL.as_bytes());
        let other = secrets(&["other"]).sign_base64(body);
        for header in [
            format!("{other}, {MINIMAL_BASE64}"),
            format!("{MINIMAL_HEX},{other}"),
            format!("{other} {MINIMAL_HEX}"),
            format!("sha256={MINIMAL_HEX}"),
            format!("sha256={other}, sha256={MINIMAL_BASE64}"),
            format!("junk, ,, {MINIMAL_BASE64}"),
        ] {
            s.verify(Some(&header), body).unwrap();
        }
        refused(&s, Some(&format!("{other},{other}")), body);
        // Two header lines are one list.
        let lines = [("X-Signature", other.as_str()), ("x-signature", MINIMAL_BASE64)];
        let headers = Headers::new(lines);
        s.verify(headers.get(HEADER), body).unwrap();
        assert_eq!(format!("{headers:?}"), "{\"x-signature\"}");
    }

    #[test]
    fn refusals() {
        let s = secrets(&["s3cr3t"]);
        let body = MINIMAL.as_bytes();
        let digest = s.first().digest(&[body]);
        refused(&s, None, body);
        for header in [
            String::new(),
            "deadbeef".into(),
            "=".repeat(44),
            "é".repeat(22),
            "é".repeat(32),
            STANDARD_NO_PAD.encode(digest),
            STANDARD.encode(&digest[..31]),
            STANDARD.encode([&digest[..], &[0]].concat()),
            format!("sha1={MINIMAL_HEX}"),
            "sha256=".into(),
            format!("{MINIMAL_BASE64}{MINIMAL_BASE64}"),
            format!("{MINIMAL_BASE64};{MINIMAL_BASE64}"),
            vec![MINIMAL_BASE64; MAX_SIGNATURES + 1].join(","),
            MINIMAL_HEX[..62].into(),
            MINIMAL_HEX.replace('9', "g"),
            // The same digest, but bits of the padding set: not the one spelling.
            MINIMAL_BASE64.replace("bLc=", "bLd="),
        ] {
            refused(&s, Some(&header), body);
        }
        // base64url of a digest that has one of the two other characters.
        let (other, url) = (0u32..)
            .find_map(|n| {
                let other = n.to_be_bytes();
                let url = URL_SAFE.encode(s.first().digest(&[&other]));
                url.contains(['-', '_']).then_some((other, url))
            })
            .unwrap();
        assert_eq!(url.len(), BASE64_LEN);
        refused(&s, Some(&url), &other);

        let reserialised = serde_json::from_str::<Value>(MINIMAL).unwrap().to_string();
        assert_ne!(reserialised, MINIMAL);
        refused(&s, Some(&s.sign_base64(reserialised.as_bytes())), body);
        refused(&s, Some(&secrets(&["s3cr3t\n"]).sign_base64(body)), body);
        let mut changed = body.to_vec();
        changed[20] ^= 1;
        refused(&s, Some(MINIMAL_BASE64), &changed);
    }

    #[test]
    fn secrets_that_are_no_secrets() {
        for error in [
            Secrets::from_texts::<&str>([]).unwrap_err(),
            Secrets::new([]).unwrap_err(),
            Secrets::from_texts(["s3cr3t", ""]).unwrap_err(),
            Secret::new("").unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        }
    }

    #[test]
    fn debug_shows_nothing() {
        let text = format!("{:?}", secrets(&["s3cr3t", "other"]));
        assert_eq!(text, "Secrets([Secret(…), Secret(…)])");
    }
}

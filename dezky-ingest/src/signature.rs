//! The signature of a webhook: HMAC-SHA-256 over the raw body.
//!
//! `X-Signature` carries it as standard base64 with padding (44 characters,
//! what Stalwart sends in every release from 0.8.2 on) or as 64 hex digits
//! (other senders). There is neither a timestamp nor a key id in it, so a body
//! can be replayed: what protects against that is the identity of its events.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dezky_core::{Error, ErrorKind, Result};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq as _};

/// The request header that carries the signature.
pub const HEADER: &str = "x-signature";

/// The length of the header's value in base64, and in hex.
const BASE64_LEN: usize = 44;
const HEX_LEN: usize = 64;

/// A shared secret: the UTF-8 bytes of its text, neither trimmed nor decoded,
/// which is how Stalwart uses its own.
///
/// Kept only as a keyed digest; `Debug` shows nothing and there is no `Display`.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

impl Secret {
    /// The secret of a text. An empty or blank one is refused
    /// ([`ErrorKind::ConfigInvalid`]), because anybody could sign with it.
    pub fn new(text: impl AsRef<str>) -> Result<Self> {
        let bytes = text.as_ref().as_bytes();
        if bytes.trim_ascii().is_empty() {
            return Err(Error::new(
                ErrorKind::ConfigInvalid,
                "a webhook secret is empty or blank: set it to the key configured at the sender",
            ));
        }
        Hmac::new_from_slice(bytes)
            .map(Self)
            .map_err(|e| Error::new(ErrorKind::ConfigInvalid, "unusable secret").with_source(e))
    }

    /// The digest of `body`.
    fn digest(&self, body: &[u8]) -> [u8; 32] {
        let mut mac = self.0.clone();
        mac.update(body);
        mac.finalize().into_bytes().into()
    }

    /// The signature of `body` as Stalwart sends it.
    pub fn sign_base64(&self, body: &[u8]) -> String {
        STANDARD.encode(self.digest(body))
    }

    /// The signature of `body` in lower-case hex.
    pub fn sign_hex(&self, body: &[u8]) -> String {
        hex::encode(self.digest(body))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The secrets of one endpoint: one or more, any of which may have signed.
///
/// Several are needed to change one: a running Stalwart goes on signing with
/// the old key after a reload, until it restarts.
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

    /// The same from texts, none of which may be empty.
    pub fn from_texts<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Self> {
        Self::new(texts.into_iter().map(Secret::new).collect::<Result<Vec<_>>>()?)
    }

    /// Checks the value of the `X-Signature` header against the raw body,
    /// before anything is parsed.
    ///
    /// [`ErrorKind::SignatureInvalid`] if the header is missing, is neither 44
    /// characters of padded standard base64 nor 64 hex digits, or no secret gives
    /// that digest. Every secret is tried and every comparison takes the same
    /// time, so that the time tells neither which secret nor how much matched.
    pub fn verify(&self, header: Option<&str>, body: &[u8]) -> Result<()> {
        let invalid = |what| Error::new(ErrorKind::SignatureInvalid, what);
        let header = header.ok_or_else(|| invalid("the X-Signature header is missing"))?;
        let given = decode(header).ok_or_else(|| {
            invalid("X-Signature must be the base64 (44 characters) or hex (64 digits) of 32 bytes")
        })?;
        let matches = self
            .0
            .iter()
            .fold(Choice::from(0), |any, secret| any | secret.digest(body).ct_eq(&given));
        if bool::from(matches) {
            Ok(())
        } else {
            Err(invalid("X-Signature is not the signature of this body"))
        }
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

/// The digest in a header. The length decides: 64 hex digits are valid base64
/// too, of 48 bytes.
fn decode(header: &str) -> Option<[u8; 32]> {
    match header.len() {
        HEX_LEN => {
            let mut digest = [0; 32];
            hex::decode_to_slice(header, &mut digest).ok()?;
            Some(digest)
        }
        BASE64_LEN => STANDARD.decode(header).ok()?.try_into().ok(),
        _ => None,
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
    fn refusals() {
        let s = secrets(&["s3cr3t"]);
        let body = MINIMAL.as_bytes();
        let digest = s.first().digest(body);
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
            format!("sha256={MINIMAL_HEX}"),
            format!(" {MINIMAL_BASE64}"),
            format!("{MINIMAL_BASE64}\n"),
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
                let url = URL_SAFE.encode(s.first().digest(&other));
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

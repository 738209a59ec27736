//! Keys that sign tokens.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaKeyPair,
};
use ring::{hmac, rsa};
use serde_json::{Value, json};

/// The RSA key of RFC 7515, appendix A.2, which everybody knows: ring makes no RSA keys.
mod rfc7515 {
    pub(super) const N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
    pub(super) const E: &str = "AQAB";
    pub(super) const D: &str = "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ";
    pub(super) const P: &str = "4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc";
    pub(super) const Q: &str = "uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-TnBA-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc";
    pub(super) const DP: &str = "BwKfV3Akq5_MFZDFZCnW-wzl-CCo83WoZvnLQwCTeDv8uzluRSnm71I3QCLdhrqE2e9YkxvuxdBfpT_PI7Yz-FOKnu1R6HsJeDCjn12Sk3vmAktV2zb34MCdy7cpdTh_YVr7tss2u6vneTwrA86rZtu5Mbr1C1XsmvkxHQAdYo0";
    pub(super) const DQ: &str = "h_96-mK1R_7glhsum81dZxjTnYynPbZpHziZjeeHcXYsXaaMwkOlODsWa7I9xXDoRwbKgB719rrmI2oKr6N3Do9U0ajaHF-NKJnwgjMd2w9cjz3_-kyNlxAr2v4IKhGNpmM5iIgOS1VZnOZ68m6_pbLBSp3nssTdlqvd0tIiTHU";
    pub(super) const QI: &str = "IYd7DHOhrWvxkwPQsRM2tOgrjbcrfvtQJipd-DlcxyVuuM9sQLdgjVk2oy26F0EmpScGLq2MowX7fhd_QJQ3ydy5cY7YIBi87w93IKLEdfnbJtoOPLUW0ITrJReOgo1cq9SbsxYawBgfp_gh6A5603k2-ZQwVK0JKSHuLFkuQ3U";
}

/// A key that signs tokens, with the algorithm that it signs by.
///
/// ```
/// use dezky_server::testkit::SigningKey;
/// let key = SigningKey::es256("k1");
/// let set = serde_json::json!({ "keys": [key.jwk()] }).to_string();
/// let set = dezky_server::auth::jwt::KeySet::parse(set.as_bytes()).unwrap();
/// assert_eq!(set.usable(), 1);
/// ```
pub struct SigningKey {
    id: Option<String>,
    algorithm: &'static str,
    pair: Pair,
}

enum Pair {
    Rsa(RsaKeyPair, &'static dyn signature::RsaEncoding),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Hmac(hmac::Key),
    None,
}

const CURVE: &str = "ring made this key";

impl SigningKey {
    /// A new ES256 key.
    pub fn es256(id: &str) -> Self {
        Self::ecdsa(id, "ES256", &signature::ECDSA_P256_SHA256_FIXED_SIGNING)
    }

    /// A new ES384 key.
    pub fn es384(id: &str) -> Self {
        Self::ecdsa(id, "ES384", &signature::ECDSA_P384_SHA384_FIXED_SIGNING)
    }

    fn ecdsa(id: &str, name: &'static str, algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("randomness");
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).expect(CURVE);
        Self { id: Some(id.to_owned()), algorithm: name, pair: Pair::Ecdsa(pair) }
    }

    /// A new Ed25519 key.
    pub fn ed25519(id: &str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("randomness");
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).expect(CURVE);
        Self { id: Some(id.to_owned()), algorithm: "EdDSA", pair: Pair::Ed25519(pair) }
    }

    /// RS256 with the 2048-bit key of RFC 7515, appendix A.2, always the same.
    pub fn rs256(id: &str) -> Self {
        Self::rsa(id, "RS256", &signature::RSA_PKCS1_SHA256)
    }

    /// PS256 with the same key.
    pub fn ps256(id: &str) -> Self {
        Self::rsa(id, "PS256", &signature::RSA_PSS_SHA256)
    }

    #[expect(clippy::many_single_char_names, reason = "the names of RFC 7518")]
    fn rsa(id: &str, name: &'static str, encoding: &'static dyn signature::RsaEncoding) -> Self {
        let [n, e, d, p, q, dp, dq, qi] = [
            rfc7515::N,
            rfc7515::E,
            rfc7515::D,
            rfc7515::P,
            rfc7515::Q,
            rfc7515::DP,
            rfc7515::DQ,
            rfc7515::QI,
        ]
        .map(|text| URL_SAFE_NO_PAD.decode(text).expect("the RFC's text"));
        let public_key = rsa::PublicKeyComponents { n, e };
        let pair = rsa::KeyPairComponents { public_key, d, p, q, dP: dp, dQ: dq, qInv: qi };
        let pair = RsaKeyPair::from_components(&pair).expect("the RFC's key");
        Self { id: Some(id.to_owned()), algorithm: name, pair: Pair::Rsa(pair, encoding) }
    }

    /// HS256 with a secret, as Authentik signs without a signing key.
    pub fn hs256(secret: &[u8]) -> Self {
        let pair = Pair::Hmac(hmac::Key::new(hmac::HMAC_SHA256, secret));
        Self { id: None, algorithm: "HS256", pair }
    }

    /// No signature: `alg` is `none`.
    pub fn none() -> Self {
        Self { id: None, algorithm: "none", pair: Pair::None }
    }

    /// This key with another id, or none.
    #[must_use]
    pub fn with_id(self, id: Option<&str>) -> Self {
        Self { id: id.map(str::to_owned), ..self }
    }

    /// The `kid`.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The `alg` of the header.
    pub fn algorithm(&self) -> &'static str {
        self.algorithm
    }

    /// The public key as a JWK; `null` for secrets.
    pub fn jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match &self.pair {
            Pair::Rsa(..) => json!({ "kty": "RSA", "n": rfc7515::N, "e": rfc7515::E }),
            Pair::Ecdsa(pair) => {
                // An uncompressed point: 4, x, y.
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                let curve = if x.len() == 32 { "P-256" } else { "P-384" };
                json!({ "kty": "EC", "crv": curve, "x": text(x), "y": text(y) })
            }
            Pair::Ed25519(pair) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": text(pair.public_key().as_ref()) })
            }
            Pair::Hmac(_) | Pair::None => return Value::Null,
        };
        jwk["use"] = "sig".into();
        jwk["alg"] = self.algorithm.into();
        if let Some(id) = &self.id {
            jwk["kid"] = id.as_str().into();
        }
        jwk
    }

    /// Signs header and payload as they are: the compact form of both with the signature.
    pub fn sign(&self, header: &str, payload: &str) -> String {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let signed = format!("{}.{}", text(header.as_bytes()), text(payload.as_bytes()));
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                let done = pair.sign(*encoding, &random, signed.as_bytes(), &mut signature);
                done.expect("randomness");
                signature
            }
            Pair::Ecdsa(pair) => {
                pair.sign(&random, signed.as_bytes()).expect("randomness").as_ref().to_vec()
            }
            Pair::Ed25519(pair) => pair.sign(signed.as_bytes()).as_ref().to_vec(),
            Pair::Hmac(key) => hmac::sign(key, signed.as_bytes()).as_ref().to_vec(),
            Pair::None => Vec::new(),
        };
        format!("{signed}.{}", text(&signature))
    }
}

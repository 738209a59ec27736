//! Key sets (RFC 7517), read tolerantly: a key that can't be used never spoils the others.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::Value;

use super::{Algorithm, Reason};

/// The maximum number of keys of a set; further ones are ignored.
pub const MAX_KEYS: usize = 100;
/// The maximum number of keys that are tried for one token.
pub(super) const MAX_TRIED: usize = 4;
/// The minimum and the maximum size of an RSA key, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;

/// The public keys of an issuer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeySet(Vec<Key>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    id: Option<String>,
    /// The only algorithm that the key is for, if it names one.
    algorithm: Option<String>,
    /// The key, or the reason for which it verifies no token.
    material: Result<Material, &'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl KeySet {
    /// Reads a JWK set. A set without `keys`, as Authentik serves for a provider without a
    /// signing key, is empty. Keys of unknown types, for encryption, or with members of the wrong
    /// type are kept out of use. A key without `kid` serves tokens without one.
    ///
    /// # Errors
    /// If it is not a JSON object, or its `keys` is not a list.
    ///
    /// ```
    /// use dezky_server::auth::jwt::KeySet;
    /// assert!(KeySet::parse(b"{}").unwrap().is_empty());
    /// assert!(KeySet::parse(b"<html>").is_err());
    /// ```
    pub fn parse(json: &[u8]) -> Result<Self, &'static str> {
        let Ok(Value::Object(set)) = serde_json::from_slice(json) else {
            return Err("is not a JSON object");
        };
        match set.get("keys") {
            None => Ok(Self::default()),
            Some(Value::Array(keys)) => Ok(Self(keys.iter().take(MAX_KEYS).map(Key::of).collect())),
            Some(_) => Err("has keys that are not a list"),
        }
    }

    /// Whether no key of the set can verify a token.
    pub fn is_empty(&self) -> bool {
        self.usable() == 0
    }

    /// The number of keys that can verify a token.
    pub fn usable(&self) -> usize {
        self.0.iter().filter(|key| key.material.is_ok()).count()
    }

    /// The number of keys that can verify a token by one of these algorithms.
    pub fn usable_by(&self, algorithms: &[Algorithm]) -> usize {
        let is_usable = |key: &&Key| algorithms.iter().any(|algorithm| key.fit(*algorithm).is_ok());
        self.0.iter().filter(is_usable).count()
    }

    /// Checks a signature with the key `id`, or, without an id, with the keys that fit.
    pub(super) fn check(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Reason> {
        let mut refused = if self.is_empty() { Reason::NoKeys } else { Reason::KeyUnknown };
        let mut tried = 0;
        let named = self.0.iter().filter(|key| id.is_none() || key.id.as_deref() == id);
        for key in named {
            match key.fit(algorithm) {
                Ok(material) if tried < MAX_TRIED => {
                    tried += 1;
                    if material.is_signature(algorithm, message, signature) {
                        return Ok(());
                    }
                    refused = Reason::Signature;
                }
                Err(why) if id.is_some() && tried == 0 => refused = Reason::KeyUnfit(why),
                _ => {}
            }
        }
        Err(refused)
    }
}

impl Key {
    fn of(key: &Value) -> Self {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        Self {
            id: text("kid").map(str::to_owned),
            algorithm: text("alg").map(str::to_owned),
            material: Self::material(key, text),
        }
    }

    fn material<'k>(
        key: &Value,
        text: impl Fn(&str) -> Option<&'k str>,
    ) -> Result<Material, &'static str> {
        match key.get("use") {
            None => {}
            Some(usage) if usage == "sig" => {}
            Some(_) => return Err("its use is not sig"),
        }
        if key.get("alg").is_some_and(|algorithm| !algorithm.is_string()) {
            return Err("its alg is not a text");
        }
        match key.get("key_ops") {
            None => {}
            Some(Value::Array(all)) if all.iter().any(|operation| operation == "verify") => {}
            Some(_) => return Err("its key_ops do not include verify"),
        }
        let bytes = |name: &str| {
            let decoded = text(name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
            decoded.ok_or("a member of it is missing or is not base64url")
        };
        let point = |size: usize| {
            let (x, y) = (bytes("x")?, bytes("y")?);
            if x.len() != size || y.len() != size {
                return Err("its coordinates have a wrong length");
            }
            Ok([&[4][..], &x, &y].concat())
        };
        match (text("kty"), text("crv")) {
            (Some("RSA"), _) => {
                let without_zeros = |mut bytes: Vec<u8>| {
                    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                    bytes.split_off(zeros)
                };
                let (modulus, exponent) = (without_zeros(bytes("n")?), without_zeros(bytes("e")?));
                let unused = modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
                if !RSA_BITS.contains(&(modulus.len() * 8 - unused)) {
                    return Err("an RSA key must have 2048 to 8192 bits");
                }
                // Of 3 or more, odd, and of at most 33 bits, which are ring's bounds.
                let is_odd = exponent.last().is_some_and(|byte| byte % 2 == 1);
                if !is_odd || exponent.len() > 5 || exponent == [1] {
                    return Err("an RSA exponent must be odd, 3 or more, and have at most 5 bytes");
                }
                Ok(Material::Rsa { modulus, exponent })
            }
            (Some("EC"), Some("P-256")) => point(32).map(Material::P256),
            (Some("EC"), Some("P-384")) => point(48).map(Material::P384),
            (Some("OKP"), Some("Ed25519")) => match bytes("x")? {
                x if x.len() == 32 => Ok(Material::Ed25519(x)),
                _ => Err("its x has a wrong length"),
            },
            _ => Err("its kty or crv is not supported"),
        }
    }

    /// The key, if it is one for this algorithm.
    fn fit(&self, algorithm: Algorithm) -> Result<&Material, &'static str> {
        let material = self.material.as_ref().map_err(|why| *why)?;
        if self.algorithm.as_ref().is_some_and(|only| only != algorithm.as_str()) {
            return Err("it is for another algorithm");
        }
        let fits = match algorithm {
            Algorithm::Rs256
            | Algorithm::Rs384
            | Algorithm::Rs512
            | Algorithm::Ps256
            | Algorithm::Ps384
            | Algorithm::Ps512 => matches!(material, Material::Rsa { .. }),
            Algorithm::Es256 => matches!(material, Material::P256(_)),
            Algorithm::Es384 => matches!(material, Material::P384(_)),
            Algorithm::EdDsa => matches!(material, Material::Ed25519(_)),
        };
        if fits { Ok(material) } else { Err("its type or curve is for another algorithm") }
    }
}

impl Material {
    fn is_signature(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let rsa: &signature::RsaParameters = match algorithm {
            Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            Algorithm::Es256 | Algorithm::Es384 | Algorithm::EdDsa => {
                return self.is_curve_signature(message, signature);
            }
        };
        let Self::Rsa { modulus: n, exponent: e } = self else { return false };
        RsaPublicKeyComponents { n, e }.verify(rsa, message, signature).is_ok()
    }

    fn is_curve_signature(&self, message: &[u8], signature: &[u8]) -> bool {
        let (algorithm, key): (&dyn signature::VerificationAlgorithm, _) = match self {
            Self::P256(point) => (&signature::ECDSA_P256_SHA256_FIXED, point),
            Self::P384(point) => (&signature::ECDSA_P384_SHA384_FIXED, point),
            Self::Ed25519(x) => (&signature::ED25519, x),
            Self::Rsa { .. } => return false,
        };
        UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
    }
}

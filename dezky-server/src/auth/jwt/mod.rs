//! Verifies access tokens of OIDC providers: JWTs with asymmetric signatures.
//!
//! A pure function of a token's bytes, a [`Profile`], a [`KeySet`] and a time. The steps are
//! [`Decoded::new`] (the parts), [`Decoded::token`] (header and `iss`, by which the caller chooses
//! the profile and the keys), [`Token::verify`] (everything else).
//!
//! ```
//! use dezky_core::Timestamp;
//! use dezky_server::auth::jwt::{Decoded, KeySet, Preset, Profile, Reason};
//!
//! let profile = Profile::new(Preset::Keycloak, "https://id.example.com/realms/acme", "api");
//! let verify = |token: &[u8]| {
//!     let decoded = Decoded::new(token)?;
//!     let token = decoded.token()?;
//!     if token.issuer() != profile.issuer {
//!         return Err(Reason::Issuer);
//!     }
//!     let now = Timestamp::from_millis_clamped(1_796_057_300_000);
//!     token.verify(&profile, &KeySet::default(), now).map(|claims| claims.subject.to_owned())
//! };
//! assert_eq!(verify(b"an-opaque-token"), Err(Reason::Opaque));
//! // {"alg":"none"}.{"iss":"x"}.
//! assert_eq!(verify(b"eyJhbGciOiJub25lIn0.eyJpc3MiOiJ4In0."), Err(Reason::Unsigned));
//! ```

mod algorithm;
mod json;
mod keys;
mod profile;
mod reason;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dezky_core::Timestamp;

pub use self::algorithm::Algorithm;
use self::json::Object;
pub use self::keys::{KeySet, MAX_KEYS};
pub use self::profile::{Preset, Profile};
pub use self::reason::Reason;

/// The maximum size of a token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;
/// The tolerated difference between the clocks of issuer and server.
pub const LEEWAY: Duration = Duration::from_mins(1);
/// The maximum length of a subject, in characters.
pub const MAX_SUBJECT_CHARS: usize = 255;

/// The decoded parts of a token.
pub struct Decoded<'t> {
    /// Header and payload as received, which the signature covers.
    signed: &'t [u8],
    header: Vec<u8>,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl<'t> Decoded<'t> {
    /// Splits and decodes a token.
    ///
    /// # Errors
    /// [`Reason::TooLong`], [`Reason::Opaque`], [`Reason::Encrypted`], [`Reason::Malformed`].
    pub fn new(token: &'t [u8]) -> Result<Self, Reason> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Reason::TooLong);
        }
        let mut parts = token.split(|byte| *byte == b'.');
        let all = [(); 6].map(|()| parts.next());
        let [Some(header), Some(payload), Some(signature), fourth, fifth, sixth] = all else {
            return Err(Reason::Opaque);
        };
        match (fourth, fifth, sixth) {
            (None, ..) => {}
            (_, Some(_), None) => return Err(Reason::Encrypted),
            _ => return Err(Reason::Opaque),
        }
        let decode = |part, what| URL_SAFE_NO_PAD.decode(part).map_err(|_| Reason::Malformed(what));
        Ok(Self {
            signed: &token[..=header.len() + payload.len()],
            header: decode(header, "header")?,
            payload: decode(payload, "payload")?,
            signature: decode(signature, "signature")?,
        })
    }

    /// Reads the header and the payload.
    ///
    /// # Errors
    /// [`Reason::Malformed`], [`Reason::DuplicateMember`], [`Reason::Unsigned`],
    /// [`Reason::Symmetric`], [`Reason::Algorithm`], [`Reason::Critical`]; [`Reason::ClaimMissing`]
    /// and [`Reason::ClaimInvalid`] for `iss`.
    pub fn token(&self) -> Result<Token<'_>, Reason> {
        let header = Object::read(&self.header, "header")?;
        let malformed = |_| Reason::Malformed("header");
        let algorithm = header.text("alg").map_err(malformed)?;
        let algorithm = Algorithm::of_header(algorithm.ok_or(Reason::Malformed("header"))?)?;
        if header.get("crit").is_some() {
            return Err(Reason::Critical);
        }
        // Keys and addresses of keys in the header (jwk, jku, x5c, x5u) are ignored.
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let key_id = owned(header.text("kid").map_err(malformed)?);
        let typ = owned(header.text("typ").map_err(malformed)?);
        let claims = Object::read(&self.payload, "payload")?;
        claims.text("iss")?.ok_or(Reason::ClaimMissing("iss"))?;
        Ok(Token { decoded: self, algorithm, key_id, typ, claims })
    }
}

/// A token whose signature has not been checked: only its issuer may be read, to choose the
/// profile and the keys.
pub struct Token<'d> {
    decoded: &'d Decoded<'d>,
    algorithm: Algorithm,
    key_id: Option<String>,
    typ: Option<String>,
    claims: Object<'d>,
}

/// Without any part of the token.
impl fmt::Debug for Decoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoded").finish_non_exhaustive()
    }
}

/// Without key id and claims.
impl fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl Token<'_> {
    /// The claimed issuer.
    pub fn issuer(&self) -> &str {
        self.claims.text("iss").ok().flatten().unwrap_or_default()
    }

    /// Checks everything, in this order: the issuer, the algorithm, the key and the signature,
    /// the times, the audience, the client, the kind, the subject, the binding (`cnf`).
    ///
    /// # Errors
    /// The first [`Reason`] to refuse the token.
    pub fn verify(
        &self,
        profile: &Profile,
        keys: &KeySet,
        now: Timestamp,
    ) -> Result<Claims<'_>, Reason> {
        if self.issuer() != profile.issuer {
            return Err(Reason::Issuer);
        }
        if !profile.algorithms.contains(&self.algorithm) {
            return Err(Reason::Algorithm);
        }
        let Decoded { signed, signature, .. } = self.decoded;
        keys.check(self.key_id.as_deref(), self.algorithm, signed, signature)?;

        let claims = &self.claims;
        let expires_at = claims.time("exp")?.ok_or(Reason::ClaimMissing("exp"))?;
        if expires_at.saturating_add(LEEWAY) <= now {
            return Err(Reason::Expired);
        }
        let latest = now.saturating_add(LEEWAY);
        let issued_at = claims.time("iat")?;
        for begin in [claims.time("nbf")?, issued_at].into_iter().flatten() {
            if begin > latest {
                return Err(Reason::NotYetValid);
            }
        }
        let audiences = claims.get("aud").ok_or(Reason::ClaimMissing("aud"))?;
        let audiences = audiences.as_texts().ok_or(Reason::ClaimInvalid("aud"))?;
        let has_one = |known: &[String]| audiences.iter().any(|aud| known.iter().any(|k| k == aud));
        if !has_one(&profile.audiences) {
            return Err(Reason::Audience);
        }
        profile.check_client(claims)?;
        profile.check_kind(self.typ.as_deref(), claims)?;
        let subject = subject(claims, "sub", "sub")?;
        let subject = match &*profile.subject_claim {
            "sub" => subject,
            name => self::subject(claims, name, "subject claim")?,
        };
        if claims.get("cnf").is_some() {
            return Err(Reason::Bound);
        }
        // The rest informs and decides nothing, so that a strange value refuses no token.
        let text = |name| claims.text(name).ok().flatten().filter(|text| !text.is_empty());
        Ok(Claims {
            issuer: self.issuer(),
            subject,
            is_for_operators: has_one(&profile.operator_audiences),
            audiences,
            client: text("azp").or_else(|| text("client_id")).or_else(|| text("appid")),
            expires_at,
            issued_at,
            authenticated_at: claims.time("auth_time").ok().flatten(),
            email: text("email"),
            name: text("name"),
        })
    }
}

fn subject<'c>(claims: &'c Object<'_>, name: &str, shown: &'static str) -> Result<&'c str, Reason> {
    let subject = claims.get(name).ok_or(Reason::ClaimMissing(shown))?;
    match subject.as_text() {
        Some(text) if !text.is_empty() && text.chars().nth(MAX_SUBJECT_CHARS).is_none() => Ok(text),
        _ => Err(Reason::ClaimInvalid(shown)),
    }
}

/// The claims of a verified token.
///
/// Identity is ([`issuer`](Self::issuer), [`subject`](Self::subject)). E-mail address and name are
/// information: they identify nobody.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claims<'t> {
    /// `iss`.
    pub issuer: &'t str,
    /// `sub`, or the profile's subject claim.
    pub subject: &'t str,
    /// `aud`.
    pub audiences: Vec<&'t str>,
    /// Whether one of the audiences is for operators.
    pub is_for_operators: bool,
    /// `azp`, `client_id` or `appid`.
    pub client: Option<&'t str>,
    /// `exp`.
    pub expires_at: Timestamp,
    /// `iat`.
    pub issued_at: Option<Timestamp>,
    /// `auth_time`.
    pub authenticated_at: Option<Timestamp>,
    /// `email`, whether verified or not.
    pub email: Option<&'t str>,
    /// `name`.
    pub name: Option<&'t str>,
}

/// Without the subject and what is personal.
impl fmt::Debug for Claims<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims")
            .field("issuer", &self.issuer)
            .field("audiences", &self.audiences)
            .field("is_for_operators", &self.is_for_operators)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

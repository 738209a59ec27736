//! Profiles: the form of an issuer's tokens, and the rules by which they are accepted.

use std::fmt;
use std::str::FromStr;

use super::json::{Object, Value};
use super::{Algorithm, Reason};

/// A kind of identity provider: defaults of a [`Profile`], and the rule that tells access tokens
/// from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Preset {
    /// Authentik.
    Authentik,
    /// Keycloak.
    Keycloak,
    /// Zitadel.
    Zitadel,
    /// Dex.
    Dex,
    /// Microsoft Entra ID.
    Entra,
    /// Any other.
    Generic,
}

impl Preset {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Authentik, Self::Keycloak, Self::Zitadel, Self::Dex, Self::Entra, Self::Generic];

    /// The names of all, for messages.
    pub fn names() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }

    /// The name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Authentik => "authentik",
            Self::Keycloak => "keycloak",
            Self::Zitadel => "zitadel",
            Self::Dex => "dex",
            Self::Entra => "entra",
            Self::Generic => "generic",
        }
    }

    /// The algorithms that are accepted unless others are configured.
    pub const fn algorithms(self) -> &'static [Algorithm] {
        match self {
            Self::Authentik => {
                &[Algorithm::Rs256, Algorithm::Es256, Algorithm::Es384, Algorithm::EdDsa]
            }
            Self::Entra => &[Algorithm::Rs256],
            _ => &[Algorithm::Rs256, Algorithm::Es256],
        }
    }

    /// The claim that identifies a user at the issuer unless another one is configured. Entra's
    /// `sub` differs for each application.
    pub const fn subject_claim(self) -> &'static str {
        match self {
            Self::Entra => "oid",
            _ => "sub",
        }
    }

    /// Refuses tokens that are not access tokens.
    fn check_kind(self, claims: &Object<'_>) -> Result<(), Reason> {
        const ID_TOKEN: Reason = Reason::Kind("it is an ID token");
        let has = |claim| claims.get(claim).is_some();
        if has("events") {
            return Err(Reason::Kind("it is a logout token or another security event"));
        }
        let kind = claims.get("typ").map(|typ| typ.as_text().unwrap_or_default());
        match kind {
            None | Some("Bearer" | "JWT" | "at+jwt") => {}
            Some("ID") => return Err(ID_TOKEN),
            Some("Refresh" | "Offline") => return Err(Reason::Kind("it is a refresh token")),
            Some(_) => return Err(Reason::Kind("its typ is that of another kind")),
        }
        let is_access_token = match self {
            // Tokens of the code flow have a nonce, and some ID tokens no at_hash.
            Self::Authentik => has("azp") && has("uid"),
            Self::Keycloak => kind == Some("Bearer"),
            // ID tokens have roles too, but no client.
            Self::Entra => (has("scp") || has("roles")) && (has("azp") || has("appid")),
            // Dex issues both kinds in one form: only the audience tells them apart.
            Self::Dex => return Ok(()),
            // ID tokens may lack at_hash: here too the audience is the boundary.
            Self::Zitadel | Self::Generic => true,
        };
        if is_access_token && !has("at_hash") && !has("c_hash") { Ok(()) } else { Err(ID_TOKEN) }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|preset| preset.as_str() == name);
        found.ok_or_else(|| format!("must be one of {}", Self::names()))
    }
}

/// An issuer, and the rules by which its tokens are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Profile {
    /// The exact `iss`.
    pub issuer: String,
    /// The kind of identity provider.
    pub preset: Preset,
    /// The audiences of which a token must have at least one.
    pub audiences: Vec<String>,
    /// The audiences that make a token an operator's.
    pub operator_audiences: Vec<String>,
    /// The clients whose tokens are accepted; all if it is empty.
    pub clients: Vec<String>,
    /// The accepted algorithms.
    pub algorithms: Vec<Algorithm>,
    /// The claim that identifies a user at the issuer.
    pub subject_claim: String,
    /// Whether the header's `typ` must be `at+jwt` (RFC 9068).
    pub requires_at_jwt: bool,
}

impl Profile {
    /// An issuer of that kind with one audience, and the preset's defaults.
    pub fn new(preset: Preset, issuer: impl Into<String>, audience: impl Into<String>) -> Self {
        Self {
            issuer: issuer.into(),
            preset,
            audiences: vec![audience.into()],
            operator_audiences: Vec::new(),
            clients: Vec::new(),
            algorithms: preset.algorithms().to_vec(),
            subject_claim: preset.subject_claim().to_owned(),
            requires_at_jwt: false,
        }
    }

    pub(super) fn check_client(&self, claims: &Object<'_>) -> Result<(), Reason> {
        if self.clients.is_empty() {
            return Ok(());
        }
        let is_known = |claim| match claims.get(claim) {
            None => true,
            Some(Value::Text(client)) => self.clients.iter().any(|known| *known == *client),
            Some(_) => false,
        };
        let all = ["azp", "client_id", "appid"].into_iter().all(is_known);
        if all { Ok(()) } else { Err(Reason::Client) }
    }

    pub(super) fn check_kind(
        &self,
        header_typ: Option<&str>,
        claims: &Object<'_>,
    ) -> Result<(), Reason> {
        let is = |name: &str| header_typ.is_some_and(|typ| typ.eq_ignore_ascii_case(name));
        let is_at_jwt = is("at+jwt") || is("application/at+jwt");
        if is("logout+jwt") {
            return Err(Reason::Kind("it is a logout token"));
        }
        if header_typ.is_some() && !is_at_jwt && !is("JWT") {
            return Err(Reason::Kind("the typ of its header is that of another kind"));
        }
        if self.requires_at_jwt && !is_at_jwt {
            return Err(Reason::Kind("the typ of its header must be at+jwt"));
        }
        self.preset.check_kind(claims)
    }
}

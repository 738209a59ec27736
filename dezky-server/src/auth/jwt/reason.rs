//! The reasons for which a token is refused.

use std::fmt;

/// The reason for which a token is refused.
///
/// [`code`](Self::code) is stable; the text is for people, names the fix where there is one, and
/// never quotes the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// More than [`MAX_TOKEN_BYTES`](super::MAX_TOKEN_BYTES).
    TooLong,
    /// Not three parts joined by dots.
    Opaque,
    /// Five parts: a JWE.
    Encrypted,
    /// This part is not base64url, not a JSON object, or lacks a member.
    Malformed(&'static str),
    /// An object has two members of one name.
    DuplicateMember,
    /// `alg` is `none`.
    Unsigned,
    /// `alg` is `HS256` or another HMAC.
    Symmetric,
    /// `alg` is unknown, unsupported, or not among the algorithms of the issuer.
    Algorithm,
    /// The header has `crit`.
    Critical,
    /// No issuer with exactly this `iss` is configured.
    Issuer,
    /// The issuer has keys, but none with this `kid`.
    KeyUnknown,
    /// The issuer publishes no keys.
    NoKeys,
    /// The issuer's key must not be used for this token, for this reason.
    KeyUnfit(&'static str),
    /// The signature is wrong.
    Signature,
    /// This claim is required.
    ClaimMissing(&'static str),
    /// This claim has a wrong type or is out of its bounds.
    ClaimInvalid(&'static str),
    /// `exp` has passed.
    Expired,
    /// `nbf` or `iat` is in the future.
    NotYetValid,
    /// `aud` holds none of the configured audiences.
    Audience,
    /// `azp`, `client_id` or `appid` is not among the configured clients.
    Client,
    /// A valid token, but not an access token.
    Kind(&'static str),
    /// The token is bound to a key (`cnf`), which a bearer cannot prove to hold.
    Bound,
}

impl Reason {
    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::TooLong => "token_too_long",
            Self::Opaque => "token_opaque",
            Self::Encrypted => "token_encrypted",
            Self::Malformed(_) => "token_malformed",
            Self::DuplicateMember => "token_duplicate_member",
            Self::Unsigned => "token_unsigned",
            Self::Symmetric => "token_symmetric",
            Self::Algorithm => "token_algorithm",
            Self::Critical => "token_critical",
            Self::Issuer => "token_issuer",
            Self::KeyUnknown | Self::NoKeys => "token_key_unknown",
            Self::KeyUnfit(_) => "token_key_unfit",
            Self::Signature => "token_signature",
            Self::ClaimMissing(_) => "token_claim_missing",
            Self::ClaimInvalid(_) => "token_claim_invalid",
            Self::Expired => "token_expired",
            Self::NotYetValid => "token_not_yet_valid",
            Self::Audience => "token_audience",
            Self::Client => "token_client",
            Self::Kind(_) => "token_kind",
            Self::Bound => "token_bound",
        }
    }

    /// Whether newer keys of the issuer could change the result.
    pub const fn may_need_new_keys(self) -> bool {
        // Tokens without a kid, and keys that replace others of the same kid, show as the last two.
        matches!(self, Self::KeyUnknown | Self::NoKeys | Self::KeyUnfit(_) | Self::Signature)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::TooLong => {
                "the token has more than 16 KiB: request fewer scopes, or leave the groups out of it"
            }
            Self::Opaque => {
                "the token is neither a JWT nor the operator token: set the access token's type to JWT at the identity provider (Zitadel: the application's token type)"
            }
            Self::Encrypted => {
                "the token is encrypted (JWE), and its key is not here: remove the encryption key at the identity provider (Authentik: the provider's Encryption Key)"
            }
            Self::Malformed(part) => {
                return write!(f, "the token's {part} can't be read: send it as it was issued");
            }
            Self::DuplicateMember => {
                "the token has two members of one name, which readers understand differently"
            }
            Self::Unsigned => "the token is not signed (alg none)",
            Self::Symmetric => {
                "the token is signed with the client secret (HMAC), which is not here: choose a signing key at the identity provider (Authentik: the provider's Signing Key)"
            }
            Self::Algorithm => {
                "the token's algorithm is not among those of its issuer: configure it in algorithms; ES512 is not supported"
            }
            Self::Critical => {
                "the token's header has critical extensions (crit), and none is supported"
            }
            Self::Issuer => {
                "the token's issuer is not configured: iss must equal a configured issuer exactly, including a slash at its end"
            }
            Self::KeyUnknown => "the token's key is not among the keys that its issuer publishes",
            Self::NoKeys => {
                "the token's issuer publishes no keys: choose a signing key at the identity provider (Authentik: the provider's Signing Key)"
            }
            Self::KeyUnfit(why) => {
                return write!(f, "the issuer's key can't verify this token: {why}");
            }
            Self::Signature => "the token's signature is wrong",
            Self::ClaimMissing(claim) => {
                return write!(f, "the token has no {claim}, which is required");
            }
            Self::ClaimInvalid(claim) => {
                return write!(f, "the token's {claim} has a wrong type or length");
            }
            Self::Expired => "the token has expired: request a new one",
            Self::NotYetValid => {
                "the token is not valid yet: compare the clocks of this machine and of the identity provider"
            }
            Self::Audience => {
                "the token is for another audience: aud must hold a configured audience"
            }
            Self::Client => "the token was issued to a client that is not configured",
            Self::Kind(kind) => return write!(f, "the token is not an access token: {kind}"),
            Self::Bound => {
                "the token is bound to a key (cnf), and no proof of it can be checked: request a bearer token"
            }
        };
        f.write_str(text)
    }
}

impl std::error::Error for Reason {}

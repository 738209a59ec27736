//! For tests: a double of an OIDC provider, keys that sign tokens, tokens with any defect, and
//! properties that hold for any bytes.

pub mod properties;
mod provider;
mod signing;
mod token;

pub use self::provider::{Endpoint, Fault, IdentityProvider, LogoutDefect};
pub use self::signing::SigningKey;
pub use self::token::TokenBuilder;

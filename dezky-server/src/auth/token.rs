//! The operators' static token.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The operators' bearer token. Only its digest is kept.
#[derive(Clone)]
pub struct OperatorToken([u8; 32]);

impl OperatorToken {
    /// The token with this text.
    ///
    /// # Errors
    /// If it is empty or can't be sent in a header.
    pub fn new(token: &str) -> Result<Self, &'static str> {
        if token.is_empty() {
            return Err("the token is empty: set one, or unset it");
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the token must be of visible ASCII characters without spaces");
        }
        Ok(Self(Sha256::digest(token).into()))
    }

    /// Whether `token` is this one. Takes constant time, because it compares digests of
    /// equal length.
    pub fn is(&self, token: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(token).into();
        digest.ct_eq(&self.0).into()
    }
}

impl fmt::Debug for OperatorToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperatorToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_compared_whole() {
        let token = OperatorToken::new("s3cret-token").unwrap();
        assert!(token.is(b"s3cret-token"));
        for wrong in [&b""[..], b"s3cret", b"s3cret-token ", b"S3CRET-TOKEN"] {
            assert!(!token.is(wrong));
        }
        assert!(!format!("{token:?}").contains("s3cret"));
        assert!(OperatorToken::new("").is_err() && OperatorToken::new("a b").is_err());
    }
}

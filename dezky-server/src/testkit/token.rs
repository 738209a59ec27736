//! Tokens with any claims and any defect.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::SigningKey;

/// A token to be signed.
///
/// ```
/// use std::sync::Arc;
/// use dezky_server::testkit::{SigningKey, TokenBuilder};
/// let token = TokenBuilder::new(Arc::new(SigningKey::es256("k1")))
///     .claim("iss", "https://id.example.com")
///     .claim("exp", 1.7e9)
///     .without("exp")
///     .sign();
/// assert_eq!(token.split('.').count(), 3);
/// ```
#[derive(Clone)]
pub struct TokenBuilder {
    key: Arc<SigningKey>,
    header: Map<String, Value>,
    claims: Map<String, Value>,
}

impl TokenBuilder {
    /// A token without claims, whose header has `alg`, `kid` and `typ: JWT`.
    pub fn new(key: Arc<SigningKey>) -> Self {
        let mut token = Self { key, header: Map::new(), claims: Map::new() };
        token.set_header_of_key();
        token.header("typ", "JWT")
    }

    fn set_header_of_key(&mut self) {
        self.header.insert("alg".into(), self.key.algorithm().into());
        match self.key.id() {
            Some(id) => self.header.insert("kid".into(), id.into()),
            None => self.header.remove("kid"),
        };
    }

    /// Signs with another key, whose `alg` and `kid` the header gets.
    #[must_use]
    pub fn signed_by(mut self, key: Arc<SigningKey>) -> Self {
        self.key = key;
        self.set_header_of_key();
        self
    }

    /// Sets a claim.
    #[must_use]
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims.insert(name.to_owned(), value.into());
        self
    }

    /// Removes a claim.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.claims.remove(name);
        self
    }

    /// Sets a member of the header; null removes it.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<Value>) -> Self {
        match value.into() {
            Value::Null => self.header.remove(name),
            value => self.header.insert(name.to_owned(), value),
        };
        self
    }

    /// The claims so far.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// The signed token.
    pub fn sign(&self) -> String {
        self.key.sign(&json!(self.header).to_string(), &json!(self.claims).to_string())
    }
}

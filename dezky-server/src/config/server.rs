//! The keys at the root: the address, the operators' token, and general bounds.

use std::net::SocketAddr;

use super::keys::{Key, Kind, SECONDS, key};
use super::settings::{Settings, refused};
use crate::auth::token::OperatorToken;
use crate::failure::Failure;
use crate::http::client_address::Network;

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("listen", "DEZKY_LISTEN", Kind::Text, "\"127.0.0.1:8080\"", "",
        "The address and port to listen on. Any address other than loopback needs an\noperator token or an issuer."),
    key("operator_token", "DEZKY_OPERATOR_TOKEN", Kind::Secret, "", "",
        "The operators' bearer token. Without one and without issuers the server admits\nevery local caller, and only starts on a loopback address."),
    key("operator_token_file", "DEZKY_OPERATOR_TOKEN_FILE", Kind::Text, "", "\"/run/secrets/dezky-operator-token\"",
        "A file with that token; a newline at its end is ignored."),
    key("trusted_proxies", "DEZKY_TRUSTED_PROXIES", Kind::List, "[]", "",
        "Addresses or networks of reverse proxies whose X-Forwarded-For is trusted,\nsuch as [\"10.0.0.0/8\", \"::1\"]."),
    key("ingest_enabled", "AUDIT_INGEST_ENABLED", Kind::Switch, "true", "",
        "With false no worker starts; webhooks still answer."),
    key("max_body_bytes", "DEZKY_MAX_BODY_BYTES", Kind::Number(1, 1 << 30), "16777216", "",
        "The largest body of a webhook, {min} to {max}. Stalwart does not bound its\nbatches, and loses one that is refused."),
    key("shutdown_timeout_seconds", "DEZKY_SHUTDOWN_TIMEOUT_SECONDS", SECONDS, "10", "",
        "How long requests and workers have to finish when the server stops, {min} to {max}."),
];

impl Settings {
    pub(super) fn listen(&self) -> Result<SocketAddr, Failure> {
        let (text, origin) = self.required("listen")?;
        let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
        numeric.as_deref().unwrap_or(text).parse().map_err(|_| {
            refused("listen", origin, "must be an address and a port, such as 127.0.0.1:8080")
        })
    }

    pub(super) fn operator_token(&self) -> Result<Option<OperatorToken>, Failure> {
        let Some((token, name, origin)) =
            self.secret_or_file("operator_token", "operator_token_file")?
        else {
            return Ok(None);
        };
        OperatorToken::new(&token).map(Some).map_err(|problem| refused(name, origin, problem))
    }

    pub(super) fn trusted_proxies(&self) -> Result<Vec<Network>, Failure> {
        let Some((list, origin)) = self.layers.list("trusted_proxies") else {
            return Ok(Vec::new());
        };
        list.iter()
            .map(|text| {
                text.parse().map_err(|problem| {
                    refused("trusted_proxies", origin, format!("\"{text}\" {problem}"))
                })
            })
            .collect()
    }
}

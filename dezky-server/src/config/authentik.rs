//! `[authentik]`: the Authentik whose events are polled.

use std::time::Duration;

use dezky_ingest::authentik::ApiToken;

use super::keys::{Key, Kind, SECONDS, key};
use super::settings::{Settings, refused};
use crate::failure::Failure;

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("authentik.url", "DEZKY_AUTHENTIK_URL", Kind::Text, "", "\"https://id.example.com\"",
        "The base URL of the Authentik to poll."),
    key("authentik.token", "DEZKY_AUTHENTIK_TOKEN", Kind::Secret, "", "",
        "The key of an API token of Authentik that may view events, users and groups; an\napp password is refused."),
    key("authentik.token_file", "DEZKY_AUTHENTIK_TOKEN_FILE", Kind::Text, "", "\"/run/secrets/authentik-token\"",
        "A file with that key; a newline at its end is ignored."),
    key("authentik.poll_seconds", "DEZKY_POLL_SECONDS", SECONDS, "60", "",
        "The interval between polls, {min} to {max}."),
    key("authentik.admin_groups", "DEZKY_AUTHENTIK_ADMIN_GROUPS", Kind::List, "[\"dezky-platform-admins\"]", "",
        "Groups that never name a tenant; superusers' groups never do."),
];

/// The Authentik to poll.
#[derive(Debug, Clone)]
pub struct AuthentikApi {
    /// Its base URL.
    pub url: String,
    /// The key of the API token.
    pub token: ApiToken,
    /// The interval between polls.
    pub poll: Duration,
    /// Groups that never name a tenant.
    pub admin_groups: Vec<String>,
}

impl Settings {
    pub(super) fn authentik(&self) -> Result<Option<AuthentikApi>, Failure> {
        let poll = self.seconds("authentik.poll_seconds")?;
        let token = self.secret_or_file("authentik.token", "authentik.token_file")?;
        let url = self.layers.text("authentik.url").filter(|(url, _)| !url.is_empty());
        let ((url, origin), (token, name, token_origin)) = match (url, token) {
            (Some(url), Some(token)) => (url, token),
            (None, None) => return Ok(None),
            (Some((_, origin)), None) => {
                return Err(refused(
                    "authentik.url",
                    origin,
                    "has no token: set DEZKY_AUTHENTIK_TOKEN",
                ));
            }
            (None, Some((_, name, origin))) => {
                return Err(refused(
                    name,
                    origin,
                    "has no effect without a URL: set DEZKY_AUTHENTIK_URL",
                ));
            }
        };
        let token =
            ApiToken::new(&token).map_err(|problem| refused(name, token_origin, problem))?;
        check_base_url(url).map_err(|problem| refused("authentik.url", origin, problem))?;
        let admin_groups =
            self.layers.list("authentik.admin_groups").map_or_else(Vec::new, |(l, _)| l.to_vec());
        Ok(Some(AuthentikApi { url: url.to_owned(), token, poll, admin_groups }))
    }
}

/// Checks a base URL: it must have no credentials, query or fragment.
fn check_base_url(url: &str) -> Result<(), &'static str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let rest = rest.ok_or("must begin with https:// or http://")?;
    if rest.is_empty() || rest.starts_with('/') {
        return Err("has no host: write https:// and the host");
    }
    if rest.contains(['@', '?', '#']) {
        return Err("must be the base URL alone, without a user, ? or #");
    }
    let parsed = reqwest::Url::parse(url)
        .map_err(|_| "is not a URL: write it as in https://id.example.com")?;
    if parsed.path().trim_end_matches('/').ends_with("/api/v3") {
        return Err("must be Authentik's address without /api/v3, which is added");
    }
    Ok(())
}

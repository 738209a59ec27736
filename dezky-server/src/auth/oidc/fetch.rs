//! Fetches discovery documents and key sets.

use std::pin::pin;
use std::time::Duration;

use dezky_core::Runtime;
use dezky_core::http::client_builder;
use futures_util::future::{Either, select};
use reqwest::header::{self, HeaderMap};
use serde_json::Value;

use super::cache;
use crate::auth::is_loopback;
use crate::auth::jwt::KeySet;

/// The maximum time for one response.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum size of a response, in bytes.
pub const MAX_RESPONSE_BYTES: usize = 256 << 10;
/// The maximum length of the address of a key set, in bytes.
const MAX_URI_BYTES: usize = 2 << 10;
/// The maximum length of a remote text in a message, in bytes.
const MAX_SHOWN_BYTES: usize = 512;

/// The addresses of an issuer's keys.
pub(super) struct Source {
    issuer: String,
    discovery_url: String,
    /// The configured address of the key set; discovery is not asked then.
    jwks_uri: Option<String>,
    http: reqwest::Client,
}

/// A fetched key set.
pub(super) struct Fetched {
    pub(super) keys: KeySet,
    pub(super) max_age: Option<Duration>,
}

impl Source {
    pub(super) fn new(
        issuer: &str,
        discovery_url: Option<&str>,
        jwks_uri: Option<&str>,
    ) -> dezky_core::Result<Self> {
        let discovery_url = discovery_url.map_or_else(|| discovery_url_of(issuer), str::to_owned);
        // Each address may be asked; if one is https, the client needs the system's certificates.
        let is_secure =
            |url: &&str| url.get(..6).is_some_and(|head| head.eq_ignore_ascii_case("https:"));
        let address = [jwks_uri.unwrap_or_default(), &discovery_url].into_iter().find(is_secure);
        let http = client_builder(address.unwrap_or_default())?
            .connect_timeout(FETCH_TIMEOUT)
            .build()
            .map_err(|error| {
                let what = "can't make an HTTP client";
                dezky_core::Error::new(dezky_core::ErrorKind::ConfigInvalid, what)
                    .with_source(error)
            })?;
        Ok(Self {
            issuer: issuer.to_owned(),
            discovery_url,
            jwks_uri: jwks_uri.map(str::to_owned),
            http,
        })
    }

    pub(super) async fn fetch(&self, runtime: &dyn Runtime) -> Result<Fetched, String> {
        let uri = match &self.jwks_uri {
            Some(uri) => uri.clone(),
            None => self.discover(runtime).await?.0,
        };
        self.key_set(&uri, runtime).await
    }

    /// The address of the key set by the discovery document, and the document's `Date`.
    pub(super) async fn discover(
        &self,
        runtime: &dyn Runtime,
    ) -> Result<(String, Option<String>), String> {
        let url = &self.discovery_url;
        check_url(url).map_err(|problem| format!("{url}: {problem}"))?;
        let (headers, body) = self.get(url, runtime).await?;
        let document: Value = serde_json::from_slice(&body).map_err(|_| {
            format!("{url}: the response is not JSON: name the document by discovery_url")
        })?;
        let issuer = document["issuer"].as_str();
        let issuer = issuer.ok_or_else(|| format!("{url}: the document has no issuer"))?;
        if issuer != self.issuer {
            return Err(format!(
                "{url}: the issuer is configured as \"{}\", and its document says {}: they must be equal, including a slash at the end",
                self.issuer,
                shown(issuer)
            ));
        }
        let uri = document["jwks_uri"].as_str();
        let uri = uri.ok_or_else(|| format!("{url}: the document has no jwks_uri"))?;
        let uri = key_set_address(url, uri)?;
        Ok((uri, header_of(&headers, &header::DATE)))
    }

    pub(super) async fn key_set(
        &self,
        uri: &str,
        runtime: &dyn Runtime,
    ) -> Result<Fetched, String> {
        let (headers, body) = self.get(uri, runtime).await?;
        let keys =
            KeySet::parse(&body).map_err(|problem| format!("{uri}: the key set {problem}"))?;
        let max_age =
            header_of(&headers, &header::CACHE_CONTROL).and_then(|header| cache::max_age(&header));
        Ok(Fetched { keys, max_age })
    }

    async fn get(&self, url: &str, runtime: &dyn Runtime) -> Result<(HeaderMap, Vec<u8>), String> {
        let response = pin!(self.read(url));
        match select(response, runtime.sleep(FETCH_TIMEOUT)).await {
            Either::Left((response, _)) => response.map_err(|problem| format!("{url}: {problem}")),
            Either::Right(_) => {
                Err(format!("{url}: no complete response within {} s", FETCH_TIMEOUT.as_secs()))
            }
        }
    }

    async fn read(&self, url: &str) -> Result<(HeaderMap, Vec<u8>), String> {
        let unreachable = |error: reqwest::Error| {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(next) = cause.source() {
                cause = next;
            }
            format!("can't be reached: {cause}")
        };
        let request = self.http.get(url).header(header::ACCEPT, "application/json");
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if status.is_redirection() {
            return Err(format!(
                "answers {status}, and redirects are not followed: configure the final address"
            ));
        }
        if status != reqwest::StatusCode::OK {
            return Err(format!("answers {status}"));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
                return Err(format!("the response has more than {MAX_RESPONSE_BYTES} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((response.headers().clone(), body))
    }

    pub(super) fn discovery_url(&self) -> &str {
        &self.discovery_url
    }

    pub(super) fn jwks_uri(&self) -> Option<&str> {
        self.jwks_uri.as_deref()
    }
}

/// The address of the key set that the document at `document` names.
fn key_set_address(document: &str, uri: &str) -> Result<String, String> {
    let refused = |problem: &str| format!("{document}: jwks_uri {} {problem}", shown(uri));
    if uri.len() > MAX_URI_BYTES {
        return Err(refused(&format!("has more than {MAX_URI_BYTES} bytes")));
    }
    let uri = checked_url(uri).map_err(refused)?;
    // A document from elsewhere must not name addresses of this machine.
    if !reqwest::Url::parse(document).is_ok_and(|document| document.scheme() == uri.scheme()) {
        return Err(refused("has another scheme than the document: use https for both"));
    }
    Ok(uri.into())
}

/// A remote text for a message: quoted, so that it forges no line, and cut.
fn shown(text: &str) -> String {
    let cut = text.floor_char_boundary(MAX_SHOWN_BYTES);
    let more = if cut < text.len() { "…" } else { "" };
    format!("{:?}{more}", &text[..cut])
}

fn header_of(headers: &HeaderMap, name: &header::HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// The address of an issuer's discovery document.
fn discovery_url_of(issuer: &str) -> String {
    let base = issuer.strip_suffix('/').unwrap_or(issuer);
    format!("{base}/.well-known/openid-configuration")
}

/// Checks the address of a document that decides which tokens are accepted.
///
/// # Errors
/// Unless it is `https`, or `http` on a loopback address.
pub fn check_url(url: &str) -> Result<(), &'static str> {
    checked_url(url).map(drop)
}

fn checked_url(url: &str) -> Result<reqwest::Url, &'static str> {
    const BAD: &str = "must be an https URL; http is accepted for loopback addresses only";
    let parsed = reqwest::Url::parse(url).map_err(|_| BAD)?;
    let host = parsed.host_str().unwrap_or_default();
    let has_user = !parsed.username().is_empty() || parsed.password().is_some();
    match parsed.scheme() {
        _ if has_user || parsed.fragment().is_some() => {
            Err("must have neither a user nor a fragment")
        }
        "https" if !host.is_empty() => Ok(parsed),
        "http" if is_loopback(host) => Ok(parsed),
        _ => Err(BAD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slash_is_removed_for_discovery() {
        for (issuer, url) in [
            (
                "https://id.example.com/realms/a",
                "https://id.example.com/realms/a/.well-known/openid-configuration",
            ),
            (
                "https://id.example.com/o/a/",
                "https://id.example.com/o/a/.well-known/openid-configuration",
            ),
            (
                "https://id.example.com//",
                "https://id.example.com//.well-known/openid-configuration",
            ),
        ] {
            assert_eq!(discovery_url_of(issuer), url);
        }
    }

    #[test]
    fn a_document_names_no_address_of_another_kind() {
        let (remote, local) = ("https://id.example.com/x", "http://127.0.0.1:9000/x");
        let key_set = key_set_address(remote, "https://keys.example.com/").unwrap();
        assert_eq!(key_set, "https://keys.example.com/");
        assert_eq!(key_set_address(local, "http://[::1]/k").unwrap(), "http://[::1]/k");
        let long = format!("https://id.example.com/{}", "x".repeat(2 << 10));
        for (document, uri, word) in [
            (remote, "http://127.0.0.1:8500/v1/kv", "scheme"),
            (remote, "http://localhost/", "scheme"),
            (remote, "http://10.0.0.1/", "https"),
            (local, "https://id.example.com/", "scheme"),
            (remote, "file:///etc/passwd", "https"),
            (remote, &*long, "2048 bytes"),
        ] {
            let problem = key_set_address(document, uri).unwrap_err();
            assert!(problem.contains(word) && problem.len() < 700, "{uri}: {problem}");
        }
    }

    #[test]
    fn remote_texts_are_quoted_and_cut() {
        assert_eq!(shown("a\n\u{1b}\"b"), r#""a\n\u{1b}\"b""#);
        assert_eq!(shown(&"é".repeat(300)), format!("\"{}\"…", "é".repeat(256)));
    }

    #[test]
    fn addresses_are_https_or_loopback() {
        for good in [
            "https://id.example.com/x?y=1",
            "http://127.0.0.1:9000/",
            "http://[::1]/",
            "http://localhost/x",
        ] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for bad in [
            "http://id.example.com/",
            "http://localhost.evil.example/",
            "file:///etc/keys",
            "id.example.com",
            "https://a:b@id.example.com/",
            "https://id.example.com/#x",
            "",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }
}

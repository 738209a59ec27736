//! The HTTP client of sources and providers, with TLS by rustls and ring.

use std::sync::Arc;

use reqwest::ClientBuilder;
use rustls_platform_verifier::BuilderVerifierExt;

use crate::{Error, ErrorKind, Result};

/// Returns a builder for a client of one address. The client follows no redirects, so that a token
/// never reaches another address; it ignores proxies set in the environment; and for `https` it
/// trusts the certificates that the system trusts.
///
/// Create all clients with this function: reqwest is built without a default crypto provider, so
/// `reqwest::Client::new()` panics.
///
/// # Errors
/// `config_invalid` if the system's certificates can't be loaded.
///
/// ```
/// let client = dezky_core::http::client_builder("http://127.0.0.1:9000")?;
/// assert!(client.build().is_ok());
/// # Ok::<(), dezky_core::Error>(())
/// ```
pub fn client_builder(address: &str) -> Result<ClientBuilder> {
    let is_secure = address.get(..6).is_some_and(|head| head.eq_ignore_ascii_case("https:"));
    Ok(reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_backend_preconfigured(tls(is_secure)?))
}

fn tls(is_used: bool) -> Result<rustls::ClientConfig> {
    let failed = |error: rustls::Error| {
        let what = "can't load the system's trusted certificates: install them";
        Error::new(ErrorKind::ConfigInvalid, what).with_source(error)
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    let builder = if is_used {
        builder.with_platform_verifier().map_err(failed)?
    } else {
        // `http` needs no roots; loading them would fail on a machine without certificates.
        builder.with_root_certificates(rustls::RootCertStore::empty())
    };
    Ok(builder.with_no_client_auth())
}

//! The HTTP client of sources and providers: TLS by rustls and ring.

use std::sync::Arc;

use reqwest::ClientBuilder;
use rustls_platform_verifier::BuilderVerifierExt;

use crate::{Error, ErrorKind, Result};

/// Returns a builder of a client for one address: it follows no redirect, so that a token reaches
/// no other address; it uses no proxy, whatever the environment says; and for `https` it trusts the
/// certificates that the system trusts.
///
/// All clients must come from here: reqwest is built without a provider of cryptography, so
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
        // A plain connection never uses the roots, so a machine without certificates can make one.
        builder.with_root_certificates(rustls::RootCertStore::empty())
    };
    Ok(builder.with_no_client_auth())
}

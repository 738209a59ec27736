//! HTTP clients as the sources use them: TLS by rustls and ring.

use std::sync::Arc;

use dezky_core::{Error, ErrorKind, Result};
use reqwest::ClientBuilder;
use rustls_platform_verifier::BuilderVerifierExt;

/// The beginning of a client for an address: no redirects, no proxy whatever the
/// environment names, and for `https` the certificates that the system trusts.
///
/// Make every client by it: reqwest is built without a provider of cryptography,
/// and `reqwest::Client::new()` panics.
///
/// # Errors
/// `config_invalid` if the system's certificates can't be read.
///
/// ```
/// let client = dezky_ingest::http::client_builder("http://127.0.0.1:9000")?;
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
        let what = "the certificates that the system trusts can't be used; install them";
        Error::new(ErrorKind::ConfigInvalid, what).with_source(error)
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    let builder = if is_used {
        builder.with_platform_verifier().map_err(failed)?
    } else {
        // A plain connection never comes to use them, and a machine without
        // certificates can make one.
        builder.with_root_certificates(rustls::RootCertStore::empty())
    };
    Ok(builder.with_no_client_auth())
}

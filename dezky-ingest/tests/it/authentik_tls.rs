//! TLS against a server with a private certificate authority. A process reads the trusted
//! certificates once, from `SSL_CERT_FILE`, so each test runs in a separate process.

use std::process::Command;
use std::sync::Arc;

use dezky_core::rt::TokioRuntime;
use dezky_core::{IngestSource, PullLimits};
use dezky_ingest::authentik::{ApiToken, AuthentikConfig, AuthentikSource};
use dezky_ingest::testkit::{AuthentikDouble, authentik_event};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::run;

/// The variable that gives the second process the server's address.
const ADDRESS: &str = "DEZKY_TEST_TLS_ADDRESS";

struct Secure {
    /// The authority's certificate.
    authority: String,
    port: u16,
    _double: AuthentikDouble,
}

/// A double behind TLS, with a certificate of a new authority for `localhost`.
async fn secure() -> Secure {
    let double = AuthentikDouble::builder()
        .events([authentik_event(1, "2026-09-01T08:00:00Z")])
        .start()
        .await
        .unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let plain = double.url().trim_start_matches("http://").to_owned();
    serve(listener, TlsAcceptor::from(Arc::new(config)), plain);
    Secure { authority: pem(authority.der()), port, _double: double }
}

/// Terminates TLS and forwards the bytes.
#[expect(clippy::disallowed_methods, reason = "a server alongside the test")]
fn serve(listener: TcpListener, acceptor: TlsAcceptor, plain: String) {
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let (acceptor, plain) = (acceptor.clone(), plain.clone());
            tokio::spawn(async move {
                let Ok(mut secure) = acceptor.accept(connection).await else { return };
                let mut plain = TcpStream::connect(plain).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut secure, &mut plain).await;
            });
        }
    });
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Runs the ignored test of this name in a process that trusts `authority`.
fn again(name: &str, authority: &str, address: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("authority.pem");
    std::fs::write(&file, authority).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &format!("authentik_tls::{name}"), "--ignored", "--nocapture"])
        .env("SSL_CERT_FILE", &file)
        .env_remove("SSL_CERT_DIR")
        .env(ADDRESS, address);
    let done = tokio::task::block_in_place(|| command.output().unwrap());
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains("1 passed"), "it was run: {said}");
}

#[expect(clippy::disallowed_methods, reason = "the first process sets this variable")]
async fn pull() -> dezky_core::Result<dezky_core::Pull> {
    let address = std::env::var(ADDRESS).expect("run by another test");
    let config = AuthentikConfig::new(address, ApiToken::new("double-token")?);
    AuthentikSource::new(config, Arc::new(TokioRuntime))?.pull(None, PullLimits::default()).await
}

#[test]
fn a_private_authority_that_the_system_trusts_is_trusted() {
    run(async {
        let server = secure().await;
        let address = format!("https://localhost:{}", server.port);
        again("trusts", &server.authority, &address);
    });
}

#[test]
fn an_authority_that_nobody_knows_and_another_name_are_not_trusted() {
    run(async {
        let (server, other) = (secure().await, secure().await);
        let address = format!("https://localhost:{}", server.port);
        again("refuses", &other.authority, &address);
        let address = format!("https://127.0.0.1:{}", server.port);
        again("refuses", &server.authority, &address);
    });
}

#[test]
#[ignore = "run by the tests above, in a separate process"]
fn trusts() {
    assert_eq!(run(pull()).unwrap().events.len(), 1);
}

#[test]
#[ignore = "run by the tests above, in a separate process"]
fn refuses() {
    let error = run(pull()).unwrap_err();
    assert_eq!(error.code(), "source_unavailable");
    let mut causes = std::iter::successors(std::error::Error::source(&error), |e| e.source());
    assert!(causes.any(|cause| cause.to_string().contains("certificate")), "{error:?}");
}

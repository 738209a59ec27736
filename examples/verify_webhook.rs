//! Verifies a webhook in any framework: first the signature over the raw bytes, then decoding.
//! Needs no store, runtime or network.
//!
//! `cargo run -p dezky-examples --example verify_webhook`

use dezky::ingest::signature::{HEADER, Secret, Secrets};
use dezky::ingest::stalwart::decode;
use dezky::{Result, Timestamp};

/// The input of your handler: a header and the body *as received*. A body that was parsed and
/// serialized again is a different body with a different signature.
fn handle(secrets: &Secrets, signature: Option<&str>, body: &[u8]) -> Result<Vec<String>> {
    // In constant time; every secret is tried, so that a secret can be replaced while the sender
    // still signs with the old one.
    secrets.verify(signature, body)?;
    let now = Timestamp::parse("2026-08-17T10:00:01Z").expect("a time");
    let decoded = decode("stalwart", body, None, now);
    // Malformed items are set aside with the reason, never dropped.
    for item in &decoded.quarantine {
        println!("set aside: {}: {}", item.reason, item.detail);
    }
    Ok(decoded.events.into_iter().map(|pulled| pulled.event.action).collect())
}

fn main() -> Result<()> {
    let secrets = Secrets::from_texts(["the new secret", "the old secret"])?;
    let body = br#"{"events":[{"id":"178696080012035","createdAt":"2026-08-17T10:00:00Z",
        "type":"auth.failed","data":{"accountName":"alice@example.com","remoteIp":"203.0.113.7"}}]}"#;

    // As Stalwart sends it: X-Signature is the HMAC-SHA-256 in base64.
    let signature = Secret::new("the old secret")?.sign_base64(body);
    println!("{HEADER}: {signature}");
    assert_eq!(handle(&secrets, Some(&signature), body)?, ["stalwart.auth_failed"]);

    // Missing, wrong or for another body: refused before anything is parsed.
    for (signature, body) in
        [(None, &body[..]), (Some("deadbeef"), body), (Some(&*signature), b"{}")]
    {
        let refused = handle(&secrets, signature, body).expect_err("it is not signed");
        assert_eq!(refused.code(), "signature_invalid");
    }
    println!("three forgeries were refused");
    Ok(())
}

//! Verify a webhook, in any framework: the signature first, over the raw bytes,
//! then decode. Nothing here needs a store, a runtime or a network.
//!
//! `cargo run -p dezky-examples --example verify_webhook`

use dezky::ingest::signature::{HEADER, Secret, Secrets};
use dezky::ingest::stalwart::decode;
use dezky::{Result, Timestamp};

/// What your handler has in its hands: a header and the body *as it came*. A body
/// that was parsed and written again is another body, with another signature.
fn handle(secrets: &Secrets, signature: Option<&str>, body: &[u8]) -> Result<Vec<String>> {
    // In constant time; every secret is tried, so that one can be replaced while
    // the sender still signs with the old one.
    secrets.verify(signature, body)?;
    let now = Timestamp::parse("2026-08-17T10:00:01Z").expect("a time");
    let decoded = decode("stalwart", body, None, now);
    // Odd items are set aside with the reason, never dropped.
    for item in &decoded.quarantine {
        println!("set aside: {}: {}", item.reason, item.detail);
    }
    Ok(decoded.events.into_iter().map(|pulled| pulled.event.action).collect())
}

fn main() -> Result<()> {
    let secrets = Secrets::from_texts(["the new secret", "the old secret"])?;
    let body = br#"{"events":[{"id":"178696080012035","createdAt":"2026-08-17T10:00:00Z",
        "type":"auth.failed","data":{"accountName":"alice@example.com","remoteIp":"203.0.113.7"}}]}"#;

    // As Stalwart sends it: X-Signature, the HMAC-SHA-256 in base64.
    let signature = Secret::new("the old secret")?.sign_base64(body);
    println!("{HEADER}: {signature}");
    assert_eq!(handle(&secrets, Some(&signature), body)?, ["stalwart.auth_failed"]);

    // Missing, wrong, or of another body: refused before anything is parsed.
    for (signature, body) in
        [(None, &body[..]), (Some("deadbeef"), body), (Some(&*signature), b"{}")]
    {
        let refused = handle(&secrets, signature, body).expect_err("it is not signed");
        assert_eq!(refused.code(), "signature_invalid");
    }
    println!("three forgeries were refused");
    Ok(())
}

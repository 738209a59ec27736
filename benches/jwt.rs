//! Verifies access tokens of 1 KiB with cached keys.
//!
//! `cargo bench -p dezky-benches --bench jwt`. Fails if a verification by ES256 or RS256 (2048
//! bits) takes 100 µs or more, in an unoptimised build 10 ms. The fastest group of many counts,
//! which other work on the machine does not slow down.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use dezky_core::Timestamp;
use dezky_server::auth::jwt::{Algorithm, Decoded, KeySet, Preset, Profile, Reason};
use dezky_server::testkit::{SigningKey, TokenBuilder};
use serde_json::json;

const ISSUER: &str = "https://id.example.com/application/o/api/";
const NOW: Timestamp = Timestamp::from_millis(1_796_058_000_000).unwrap();
const MOST: Duration =
    if cfg!(debug_assertions) { Duration::from_millis(10) } else { Duration::from_micros(100) };

fn token(key: &Arc<SigningKey>) -> String {
    TokenBuilder::new(Arc::clone(key))
        .claim("iss", ISSUER)
        .claim("sub", "144a529cab985ae21bf07c8795e1700a962c53ecc8fb932ca9d7520638394933")
        .claim("aud", "api")
        .claim("exp", 1_796_061_600)
        .claim("iat", 1_796_058_000)
        .claim("sid", "e16e5ed2ef3a051948cf922fa191166abed16a0c19a331063aacb05a9c2adb47")
        .claim("email", "ana@acme.example")
        .claim("groups", json!(["acme", "globex", "staff", "everybody"]))
        .claim("azp", "api")
        .claim("uid", "bgCQkYjTbxJ3d83jiEjwlrFA4xHGAPYT6zmvHF1P")
        .claim("scope", "openid profile email")
        .sign()
}

fn verify(token: &[u8], profile: &Profile, keys: &KeySet) -> Result<usize, Reason> {
    let decoded = Decoded::new(token)?;
    let token = decoded.token()?;
    token.verify(profile, keys, NOW).map(|claims| claims.subject.len())
}

fn verification(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verify");
    for key in [
        SigningKey::es256("k"),
        SigningKey::rs256("k"),
        SigningKey::ps256("k"),
        SigningKey::es384("k"),
        SigningKey::ed25519("k"),
    ] {
        let key = Arc::new(key);
        let mut profile = Profile::new(Preset::Authentik, ISSUER, "api");
        profile.algorithms = Algorithm::ALL.to_vec();
        let keys = KeySet::parse(json!({ "keys": [key.jwk()] }).to_string().as_bytes());
        let (keys, token) = (keys.expect("a set"), token(&key));
        let once = || verify(black_box(token.as_bytes()), &profile, &keys);
        assert_eq!(once(), Ok(64));
        if matches!(key.algorithm(), "ES256" | "RS256") {
            let took = fastest(once);
            assert!(took < MOST, "{}: {took:?}", key.algorithm());
        }
        group.bench_function(key.algorithm(), |bencher| bencher.iter(once));
    }
    group.finish();
}

/// The time of one in the fastest of a hundred groups of ten.
fn fastest<T>(mut work: impl FnMut() -> T) -> Duration {
    let groups = (0..100).map(|_| {
        let began = now();
        for _ in 0..10 {
            black_box(work());
        }
        began.elapsed() / 10
    });
    groups.min().unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn now() -> Instant {
    Instant::now()
}

criterion_group!(benches, verification);
criterion_main!(benches);

//! Properties that hold for any bytes, for tests with random ones. Each function panics if its
//! property does not hold.

use dezky_core::Timestamp;

use crate::auth::jwt::{Decoded, KeySet, Preset, Profile, Reason};

/// No bytes make the verifier panic or succeed without a key. The reason can't quote them, because
/// it borrows nothing from them.
pub fn token(data: &[u8]) {
    const NOW: i64 = 1_796_057_300_000;
    let refused = |profile: &mut Profile| -> Result<(), Reason> {
        let decoded = Decoded::new(data)?;
        let token = decoded.token()?;
        token.issuer().clone_into(&mut profile.issuer);
        let now = Timestamp::from_millis_clamped(NOW);
        token.verify(profile, &KeySet::default(), now).map(drop)
    };
    for preset in Preset::ALL {
        let reason = refused(&mut Profile::new(preset, "", "")).expect_err("without a key");
        assert!(reason.code().starts_with("token_"));
        is_fixed(reason);
    }
}

/// A value that is copied and borrows nothing holds no text of its input.
fn is_fixed<T: Copy + 'static>(_: T) {}

/// No bytes make the reader of key sets panic, or accept a key that a signature of zeros
/// satisfies.
pub fn key_set(data: &[u8]) {
    let Ok(keys) = KeySet::parse(data) else { return };
    assert!(keys.usable() <= crate::auth::jwt::MAX_KEYS);
    // {"alg":"ES256"}.{"iss":"x"}. and a signature of 64 zeros.
    let token = format!("eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJ4In0.{}", "A".repeat(86));
    let decoded = Decoded::new(token.as_bytes()).expect("three parts");
    let token = decoded.token().expect("a header and an issuer");
    let profile = Profile::new(Preset::Generic, "x", "x");
    let reason = token.verify(&profile, &keys, Timestamp::from_millis_clamped(0));
    assert!(matches!(
        reason,
        Err(Reason::Signature | Reason::KeyUnknown | Reason::NoKeys | Reason::KeyUnfit(_))
    ));
}

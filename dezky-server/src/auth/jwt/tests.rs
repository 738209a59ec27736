//! Genuine tokens, the vectors of RFCs, and each class of bad token.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::testkit::{SigningKey, TokenBuilder, properties};

/// A quarter of an hour after the genuine tokens were issued.
const NOW: Timestamp = Timestamp::from_millis(1_796_058_000_000).unwrap();
const ISSUER: &str = "https://id.example.com/application/o/api/";

fn fixture(path: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oidc");
    std::fs::read(folder.join(path)).unwrap()
}

fn fixture_json(path: &str) -> Value {
    serde_json::from_slice(&fixture(path)).unwrap()
}

/// The tokens of that name in every response of an application.
fn genuine(application: &str, name: &str) -> Vec<String> {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oidc").join(application);
    let mut tokens = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        if file.starts_with("token-") {
            let answer = fixture_json(&format!("{application}/{file}"));
            tokens.extend(answer[name].as_str().map(str::to_owned));
        }
    }
    assert!(!tokens.is_empty(), "{application} {name}");
    tokens
}

fn keys_of(application: &str) -> KeySet {
    KeySet::parse(&fixture(&format!("{application}/jwks.json"))).unwrap()
}

fn profile_of(application: &str) -> Profile {
    let discovery = fixture_json(&format!("{application}/discovery.json"));
    Profile::new(Preset::Authentik, discovery["issuer"].as_str().unwrap(), application)
}

fn verify(
    token: &[u8],
    profile: &Profile,
    keys: &KeySet,
    now: Timestamp,
) -> Result<String, Reason> {
    let decoded = Decoded::new(token)?;
    let token = decoded.token()?;
    token.verify(profile, keys, now).map(|claims| claims.subject.to_owned())
}

#[test]
fn genuine_access_tokens_verify_and_others_of_theirs_do_not() {
    for (application, count) in [("dezky-operator", 5), ("dezky-portal", 1)] {
        let (keys, profile) = (keys_of(application), profile_of(application));
        let tokens = genuine(application, "access_token");
        assert_eq!(tokens.len(), count);
        for token in tokens {
            let subject = verify(token.as_bytes(), &profile, &keys, NOW).unwrap();
            assert!(matches!(subject.len(), 36 | 64), "a UUID or a hash: {subject}");
        }
        for token in genuine(application, "id_token") {
            let refused = verify(token.as_bytes(), &profile, &keys, NOW);
            assert_eq!(refused, Err(Reason::Kind("it is an ID token")));
        }
    }
    for token in genuine("dezky-hs", "access_token") {
        let refused = verify(token.as_bytes(), &profile_of("dezky-hs"), &keys_of("dezky-hs"), NOW);
        assert_eq!(refused, Err(Reason::Symmetric));
    }
    for token in genuine("dezky-jwe", "access_token") {
        let refused =
            verify(token.as_bytes(), &profile_of("dezky-jwe"), &keys_of("dezky-jwe"), NOW);
        assert_eq!(refused, Err(Reason::Encrypted));
    }
}

#[test]
fn the_claims_of_a_genuine_token() {
    let answer = fixture_json("dezky-operator/token-code-gus.json");
    let mut profile = profile_of("dezky-operator");
    let keys = keys_of("dezky-operator");
    let decoded = Decoded::new(answer["access_token"].as_str().unwrap().as_bytes()).unwrap();
    let token = decoded.token().unwrap();
    let claims = token.verify(&profile, &keys, NOW).unwrap();
    assert_eq!((claims.email, claims.name), (Some("gus@dezky.test"), Some("Gus Admin")));
    assert_eq!(
        (claims.client, &*claims.audiences),
        (Some("dezky-operator"), &["dezky-operator"][..])
    );
    assert_eq!(claims.authenticated_at, Timestamp::from_millis(1_796_057_264_000));
    assert!(!claims.is_for_operators);
    profile.operator_audiences = vec!["dezky-operator".into()];
    assert!(token.verify(&profile, &keys, NOW).unwrap().is_for_operators);
    // Not of the other application, whose key is another.
    let portal = token.verify(&profile_of("dezky-portal"), &keys_of("dezky-portal"), NOW);
    assert_eq!(portal, Err(Reason::Issuer));
}

#[test]
fn no_bit_of_a_genuine_token_can_be_flipped() {
    for application in ["dezky-operator", "dezky-portal"] {
        let (keys, profile) = (keys_of(application), profile_of(application));
        let token = genuine(application, "access_token").remove(0).into_bytes();
        let header = token.iter().position(|byte| *byte == b'.').unwrap();
        let signature = token.iter().rposition(|byte| *byte == b'.').unwrap();
        for at in 0..token.len() {
            // Each bit of header and signature, and of the payload every third, each in turn.
            let is_payload = at > header && at < signature;
            for bit in (0..8).filter(|bit| !is_payload || (at + bit) % 3 == 0) {
                let mut flipped = token.clone();
                flipped[at] ^= 1 << bit;
                assert!(verify(&flipped, &profile, &keys, NOW).is_err(), "byte {at}, bit {bit}");
            }
        }
    }
}

/// RFC 7515 A.2 and A.3, RFC 8037 A.4: payloads that are not access tokens, so that the
/// signature is checked alone.
#[test]
fn the_vectors_of_rfcs_have_right_signatures() {
    const CLAIMS: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let rsa = SigningKey::rs256("").with_id(None).jwk();
    let p256 = json!({
        "kty": "EC", "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    });
    let ed25519 = json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
    for (key, algorithm, header, payload, signature) in [
        (
            rsa,
            Algorithm::Rs256,
            "eyJhbGciOiJSUzI1NiJ9",
            CLAIMS,
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        ),
        (
            p256,
            Algorithm::Es256,
            "eyJhbGciOiJFUzI1NiJ9",
            CLAIMS,
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
        (
            ed25519,
            Algorithm::EdDsa,
            "eyJhbGciOiJFZERTQSJ9",
            "RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        ),
    ] {
        let keys = KeySet::parse(json!({ "keys": [key] }).to_string().as_bytes()).unwrap();
        let token = format!("{header}.{payload}.{signature}");
        let decoded = Decoded::new(token.as_bytes()).unwrap();
        let check = |signature: &[u8]| keys.check(None, algorithm, decoded.signed, signature);
        assert_eq!(check(&decoded.signature), Ok(()), "{algorithm}");
        let mut wrong = decoded.signature.clone();
        wrong[7] ^= 1;
        assert_eq!(check(&wrong), Err(Reason::Signature), "{algorithm}");
    }
    // RFC 7515 A.2 and A.3 as tokens: their times are over before a claim is missed.
    let profile = Profile::new(Preset::Generic, "joe", "joe");
    let keys = KeySet::parse(
        json!({ "keys": [SigningKey::rs256("").with_id(None).jwk()] }).to_string().as_bytes(),
    );
    let token = SigningKey::rs256("").with_id(None).sign(
        r#"{"alg":"RS256"}"#,
        "{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}",
    );
    assert_eq!(token.split('.').nth(1), Some(CLAIMS));
    assert_eq!(verify(token.as_bytes(), &profile, &keys.unwrap(), NOW), Err(Reason::Expired));
}

/// RFC 7517 A.1: an EC key for encryption and an RSA key.
#[test]
fn the_key_set_of_rfc_7517_is_read() {
    let set = json!({ "keys": [
        { "kty": "EC", "crv": "P-256", "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
          "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM", "use": "enc", "kid": "1" },
        { "kty": "RSA", "n": SigningKey::rs256("").jwk()["n"], "e": "AQAB", "alg": "RS256",
          "kid": "2011-04-29" },
    ]});
    let set = KeySet::parse(set.to_string().as_bytes()).unwrap();
    assert_eq!(set.usable(), 1);
}

#[test]
fn one_odd_key_does_not_spoil_the_set() {
    let good = Arc::new(SigningKey::es256("good"));
    let mut off_curve = good.jwk();
    off_curve["kid"] = "off-curve".into();
    off_curve["x"] = off_curve["y"].clone();
    let small = json!({ "kty": "RSA", "kid": "small", "e": "AQAB", "n": URL_SAFE_NO_PAD.encode([0xff; 128]) });
    let odd = [
        json!(null),
        json!(7),
        json!({}),
        json!({ "kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ", "kid": "oct" }),
        json!({ "kty": 7, "kid": 7 }),
        json!({ "alg": "ES512" }),
        json!({ "kty": "RSA", "n": ["AQAB"], "e": 65_537, "kid": "list" }),
        json!({ "kty": "EC", "crv": "P-521", "x": "AA", "y": "AA", "kid": "p521" }),
        off_curve,
        small,
        {
            let mut key = good.jwk();
            key["use"] = "enc".into();
            key["kid"] = "enc".into();
            key
        },
        {
            let mut key = good.jwk();
            key["key_ops"] = json!(["sign"]);
            key["kid"] = "ops".into();
            key
        },
        {
            let mut key = good.jwk();
            key["alg"] = "ES384".into();
            key["kid"] = "alg".into();
            key
        },
    ];
    let keys: Vec<Value> = odd.into_iter().chain([good.jwk()]).collect();
    let keys = KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap();
    let token = access_token(&good);
    assert!(verify(token.sign().as_bytes(), &profile(), &keys, NOW).is_ok());
    let by_id = |id: &str| {
        let token = token.clone().header("kid", id);
        verify(token.sign().as_bytes(), &profile(), &keys, NOW).unwrap_err()
    };
    assert_eq!(by_id("other"), Reason::KeyUnknown);
    assert_eq!(by_id("off-curve"), Reason::Signature);
    for (id, word) in [
        ("enc", "use"),
        ("ops", "key_ops"),
        ("alg", "algorithm"),
        ("small", "2048"),
        ("p521", "crv"),
        ("oct", "kty"),
        ("list", "base64url"),
    ] {
        let reason = by_id(id);
        assert_eq!(reason.code(), "token_key_unfit");
        assert!(reason.to_string().contains(word), "{id}: {reason}");
    }
    for (set, usable) in [
        ("{}", Some(0)),
        (r#"{"keys":[]}"#, Some(0)),
        (r#"{"keys":{}}"#, None),
        ("[]", None),
        ("<html>", None),
        ("", None),
    ] {
        assert_eq!(KeySet::parse(set.as_bytes()).ok().map(|set| set.usable()), usable, "{set}");
    }
    let none = KeySet::parse(b"{}").unwrap();
    assert_eq!(verify(token.sign().as_bytes(), &profile(), &none, NOW), Err(Reason::NoKeys));
}

#[test]
fn without_a_kid_four_keys_are_tried() {
    let signer = Arc::new(SigningKey::es256("x").with_id(None));
    let token = access_token(&signer).sign();
    let other = |_| SigningKey::es256("other").jwk();
    for (before, expected) in [(3, Ok(())), (4, Err(Reason::Signature))] {
        let mut keys: Vec<Value> = (0..before).map(other).collect();
        // Keys of another type do not count.
        keys.extend([
            SigningKey::rs256("rsa").jwk(),
            SigningKey::ed25519("ed").jwk(),
            signer.jwk(),
        ]);
        let keys = KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap();
        assert_eq!(
            verify(token.as_bytes(), &profile(), &keys, NOW).map(drop),
            expected,
            "{before}"
        );
    }
}

fn profile() -> Profile {
    Profile {
        audiences: vec!["other".into(), "api".into()],
        ..Profile::new(Preset::Authentik, ISSUER, "")
    }
}

/// A token as Authentik makes it in the code flow.
fn access_token(key: &Arc<SigningKey>) -> TokenBuilder {
    let seconds = NOW.as_millis() / 1_000;
    TokenBuilder::new(Arc::clone(key))
        .claim("iss", ISSUER)
        .claim("sub", "144a529cab98")
        .claim("aud", "api")
        .claim("exp", seconds + 3_600)
        .claim("iat", seconds)
        .claim("nonce", "n-0S6_WzA2Mj")
        .claim("azp", "api")
        .claim("uid", "bgCQkYjTbxJ3d83jiEjwlrFA4xHGAPYT6zmvHF1P")
}

#[test]
fn every_algorithm_verifies_where_it_is_configured() {
    for key in [
        SigningKey::rs256("k"),
        SigningKey::ps256("k"),
        SigningKey::es256("k"),
        SigningKey::es384("k"),
        SigningKey::ed25519("k"),
    ] {
        let key = Arc::new(key);
        let keys = KeySet::parse(json!({ "keys": [key.jwk()] }).to_string().as_bytes()).unwrap();
        let token = access_token(&key).sign();
        let only =
            |algorithms: &[Algorithm]| Profile { algorithms: algorithms.to_vec(), ..profile() };
        let algorithm: Algorithm = key.algorithm().parse().unwrap();
        assert!(verify(token.as_bytes(), &only(&[algorithm]), &keys, NOW).is_ok(), "{algorithm}");
        let others: Vec<_> =
            Algorithm::ALL.into_iter().filter(|other| *other != algorithm).collect();
        assert_eq!(verify(token.as_bytes(), &only(&others), &keys, NOW), Err(Reason::Algorithm));
    }
}

#[test]
fn each_class_of_bad_token_has_its_reason() {
    let key = Arc::new(SigningKey::es256("k"));
    let keys = KeySet::parse(json!({ "keys": [key.jwk()] }).to_string().as_bytes()).unwrap();
    let seconds = NOW.as_millis() / 1_000;
    let good = || access_token(&key);
    let check = |what: &str, token: String, expected: Result<(), Reason>| {
        assert_eq!(verify(token.as_bytes(), &profile(), &keys, NOW).map(drop), expected, "{what}");
    };
    let claim = |name: &str, value: Value| good().claim(name, value).sign();
    let header = |name: &str, value: Value| good().header(name, value).sign();
    check("good", good().sign(), Ok(()));

    check("empty", String::new(), Err(Reason::Opaque));
    check("opaque", "ory_at_Zz".into(), Err(Reason::Opaque));
    check("four parts", "a.b.c.d".into(), Err(Reason::Opaque));
    check("six parts", "a.b.c.d.e.f".into(), Err(Reason::Opaque));
    check("five parts", "a.b.c.d.e".into(), Err(Reason::Encrypted));
    check("too long", claim("x", "x".repeat(MAX_TOKEN_BYTES).into()), Err(Reason::TooLong));
    check("padded", format!("{}=", good().sign()), Err(Reason::Malformed("signature")));
    check("space", format!(" {}", good().sign()), Err(Reason::Malformed("header")));
    check("list", key.sign("[]", "{}"), Err(Reason::Malformed("header")));
    check("no alg", key.sign("{}", "{}"), Err(Reason::Malformed("header")));
    check("number as kid", header("kid", 7.into()), Err(Reason::Malformed("header")));
    check("text", key.sign(r#"{"alg":"ES256"}"#, "text"), Err(Reason::Malformed("payload")));
    let twice = |header: &str, payload: &str| key.sign(header, payload);
    check(
        "alg twice",
        twice(r#"{"alg":"ES256","alg":"ES256"}"#, "{}"),
        Err(Reason::DuplicateMember),
    );
    check(
        "sub twice",
        twice(r#"{"alg":"ES256"}"#, r#"{"iss":"x","sub":"a","sub":"a"}"#),
        Err(Reason::DuplicateMember),
    );
    check(
        "nested twice",
        twice(r#"{"alg":"ES256"}"#, r#"{"iss":"x","a":{"b":1,"b":1}}"#),
        Err(Reason::DuplicateMember),
    );

    for none in ["none", "None", "NONE"] {
        check(
            none,
            good().signed_by(Arc::new(SigningKey::none())).header("alg", none).sign(),
            Err(Reason::Unsigned),
        );
    }
    // The public key as the secret, the oldest trick.
    let secret = key.jwk().to_string();
    check(
        "hmac",
        good().signed_by(Arc::new(SigningKey::hs256(secret.as_bytes()))).sign(),
        Err(Reason::Symmetric),
    );
    for unknown in ["ES512", "es256", "RS1", ""] {
        check(unknown, header("alg", unknown.into()), Err(Reason::Algorithm));
    }
    check(
        "another alg",
        header("alg", "RS256".into()),
        Err(Reason::KeyUnfit("it is for another algorithm")),
    );
    check("crit", header("crit", json!(["b64"])), Err(Reason::Critical));
    check(
        "own key",
        good().signed_by(Arc::new(SigningKey::es256("mine"))).header("jwk", key.jwk()).sign(),
        Err(Reason::KeyUnknown),
    );
    check(
        "stolen kid",
        good().signed_by(Arc::new(SigningKey::es256("k"))).sign(),
        Err(Reason::Signature),
    );
    check("no iss", good().without("iss").sign(), Err(Reason::ClaimMissing("iss")));
    check("no slash", claim("iss", ISSUER.trim_end_matches('/').into()), Err(Reason::Issuer));
    check("list of iss", claim("iss", json!([ISSUER])), Err(Reason::ClaimInvalid("iss")));

    for required in ["exp", "aud", "sub"] {
        check(required, good().without(required).sign(), Err(Reason::ClaimMissing(required)));
    }
    check("expired", claim("exp", (seconds - 60).into()), Err(Reason::Expired));
    check("within leeway", claim("exp", (seconds - 59).into()), Ok(()));
    check("float", claim("exp", json!(1.796_058_06e9)), Ok(()));
    check("expired float", claim("exp", json!(1.7e9)), Err(Reason::Expired));
    check("text as exp", claim("exp", "2030".into()), Err(Reason::ClaimInvalid("exp")));
    check("nbf", claim("nbf", (seconds + 61).into()), Err(Reason::NotYetValid));
    check("nbf within leeway", claim("nbf", (seconds + 60).into()), Ok(()));
    check("issuer's clock ahead", claim("iat", (seconds + 90).into()), Err(Reason::NotYetValid));
    check("null as nbf", claim("nbf", Value::Null), Err(Reason::ClaimInvalid("nbf")));
    check("aud in a list", claim("aud", json!(["x", "api"])), Ok(()));
    check("other aud", claim("aud", json!(["x", "API"])), Err(Reason::Audience));
    check("no aud in the list", claim("aud", json!([])), Err(Reason::Audience));
    check("number in aud", claim("aud", json!(["api", 7])), Err(Reason::ClaimInvalid("aud")));
    check(
        "ID token",
        good().without("azp").without("uid").sign(),
        Err(Reason::Kind("it is an ID token")),
    );
    check("at_hash", claim("at_hash", "x".into()), Err(Reason::Kind("it is an ID token")));
    check(
        "logout token",
        claim("events", json!({})),
        Err(Reason::Kind("it is a logout token or another security event")),
    );
    check(
        "typ of a logout token",
        header("typ", "logout+jwt".into()),
        Err(Reason::Kind("it is a logout token")),
    );
    check(
        "typ of DPoP",
        header("typ", "dpop+id_token".into()),
        Err(Reason::Kind("the typ of its header is that of another kind")),
    );
    check("at+jwt", header("typ", "application/AT+JWT".into()), Ok(()));
    check("no typ", header("typ", Value::Null), Ok(()));
    check("empty sub", claim("sub", "".into()), Err(Reason::ClaimInvalid("sub")));
    check("number as sub", claim("sub", 7.into()), Err(Reason::ClaimInvalid("sub")));
    check("longest sub", claim("sub", "ä".repeat(255).into()), Ok(()));
    check("too long sub", claim("sub", "ä".repeat(256).into()), Err(Reason::ClaimInvalid("sub")));
    check("cnf", claim("cnf", json!({ "jkt": "x" })), Err(Reason::Bound));
    check("strange name", claim("name", json!({ "first": "Ana" })), Ok(()));
}

#[test]
fn clients_are_checked_where_some_are_configured() {
    let key = Arc::new(SigningKey::es256("k"));
    let keys = KeySet::parse(json!({ "keys": [key.jwk()] }).to_string().as_bytes()).unwrap();
    let profile = Profile { clients: vec!["api".into(), "portal".into()], ..profile() };
    let check =
        |token: TokenBuilder| verify(token.sign().as_bytes(), &profile, &keys, NOW).map(drop);
    assert_eq!(check(access_token(&key)), Ok(()));
    assert_eq!(check(access_token(&key).claim("client_id", "portal")), Ok(()));
    assert_eq!(check(access_token(&key).claim("client_id", "x")), Err(Reason::Client));
    assert_eq!(check(access_token(&key).claim("azp", "x")), Err(Reason::Client));
    assert_eq!(check(access_token(&key).claim("azp", json!(["api"]))), Err(Reason::Client));
    let strict = Profile { requires_at_jwt: true, ..profile.clone() };
    let strictly = |token: TokenBuilder| {
        verify(token.sign().as_bytes(), &strict, &keys, NOW).map_err(Reason::code)
    };
    assert_eq!(strictly(access_token(&key)), Err("token_kind"));
    assert!(strictly(access_token(&key).header("typ", "at+jwt")).is_ok());
}

#[test]
fn the_kinds_of_each_preset() {
    let key = Arc::new(SigningKey::es256("k").with_id(None));
    let rsa = Arc::new(SigningKey::rs256("r"));
    let keys =
        KeySet::parse(json!({ "keys": [key.jwk(), rsa.jwk()] }).to_string().as_bytes()).unwrap();
    let base =
        access_token(&key).without("azp").without("uid").without("nonce").claim("oid", "o-1");
    let check = |preset: Preset, token: TokenBuilder| {
        let token = token.signed_by(Arc::clone(&rsa));
        let profile = Profile { audiences: vec!["api".into()], ..Profile::new(preset, ISSUER, "") };
        verify(token.sign().as_bytes(), &profile, &keys, NOW).map_err(Reason::code)
    };
    let is_access = |preset, token: TokenBuilder| match check(preset, token) {
        Ok(_) => true,
        Err("token_kind") => false,
        Err(code) => panic!("{preset}: {code}"),
    };
    let with = |name: &str, value: Value| base.clone().claim(name, value);
    // Whether each preset takes: a bare token, at_hash, typ Bearer, typ ID, scp and appid, azp
    // and uid.
    for (preset, expected) in [
        (Preset::Authentik, [false, false, false, false, false, true]),
        (Preset::Keycloak, [false, false, true, false, false, false]),
        (Preset::Zitadel, [true, false, true, false, true, true]),
        (Preset::Dex, [true, true, true, false, true, true]),
        (Preset::Entra, [false, false, false, false, true, false]),
        (Preset::Generic, [true, false, true, false, true, true]),
    ] {
        let taken = [
            base.clone(),
            with("at_hash", "x".into()),
            with("typ", "Bearer".into()),
            with("typ", "ID".into()),
            with("scp", "access".into()).claim("appid", "api"),
            with("azp", "api".into()).claim("uid", "u"),
        ]
        .map(|token| is_access(preset, token));
        assert_eq!(taken, expected, "{preset}");
        assert!(!is_access(preset, with("typ", "Refresh".into())), "{preset}");
        assert!(!is_access(preset, with("events", json!({}))), "{preset}");
    }
    // Entra's sub is another one in each application.
    let client = || with("azp", "api".into());
    for token in
        [client().claim("scp", "a"), with("appid", "api".into()).claim("roles", json!(["a"]))]
    {
        assert_eq!(check(Preset::Entra, token).as_deref(), Ok("o-1"));
    }
    assert_eq!(
        check(Preset::Entra, client().claim("scp", "a").without("oid")),
        Err("token_claim_missing")
    );
    // An ID token has roles, but no client.
    assert_eq!(check(Preset::Entra, with("roles", json!(["a"]))), Err("token_kind"));
}

#[test]
fn debug_forms_hold_nothing_personal() {
    let key = Arc::new(SigningKey::es256("k-secret"));
    let keys = KeySet::parse(json!({ "keys": [key.jwk()] }).to_string().as_bytes()).unwrap();
    let text = access_token(&key)
        .claim("sub", "s-secret")
        .claim("email", "ana@secret.example")
        .claim("name", "Ana Secret")
        .sign();
    let decoded = Decoded::new(text.as_bytes()).unwrap();
    let token = decoded.token().unwrap();
    let claims = token.verify(&profile(), &keys, NOW).unwrap();
    let shown = format!("{decoded:?} {token:?} {claims:?}");
    assert!(!shown.to_lowercase().contains("secret"), "{shown}");
    assert!(!text.split('.').any(|part| shown.contains(part)), "{shown}");
    assert!(!shown.contains("[1"), "no bytes of the token: {shown}");
    assert!(shown.contains(ISSUER), "{shown}");
}

#[test]
fn keys_count_for_the_algorithms_that_are_accepted() {
    let keys = [SigningKey::es256("a").jwk(), SigningKey::es384("b").jwk()];
    let set = KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap();
    assert_eq!(set.usable(), 2);
    assert_eq!(set.usable_by(&[Algorithm::Es256, Algorithm::Rs256]), 1);
    assert_eq!(set.usable_by(&[Algorithm::Rs256]), 0);
    for (exponent, usable) in
        [("AQAB", 1), ("Aw", 1), ("AQ", 0), ("", 0), ("BA", 0), ("AQAAAAAB", 0)]
    {
        let mut key = SigningKey::rs256("r").jwk();
        key["e"] = exponent.into();
        let set = KeySet::parse(json!({ "keys": [key] }).to_string().as_bytes()).unwrap();
        assert_eq!(set.usable(), usable, "{exponent}");
    }
    let mut odd = SigningKey::es256("a").jwk();
    odd["alg"] = 7.into();
    let set = KeySet::parse(json!({ "keys": [odd] }).to_string().as_bytes()).unwrap();
    assert!(set.is_empty(), "alg must be a string");
}

#[test]
fn names_are_read_back() {
    for preset in Preset::ALL {
        assert_eq!(preset.to_string().parse(), Ok(preset));
    }
    for algorithm in Algorithm::ALL {
        assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
    }
    assert!("okta".parse::<Preset>().is_err() && "HS256".parse::<Algorithm>().is_err());
}

#[test]
fn no_input_panics() {
    let mut seeds: Vec<Vec<u8>> = [
        ("dezky-operator", "access_token"),
        ("dezky-portal", "id_token"),
        ("dezky-jwe", "access_token"),
    ]
    .into_iter()
    .flat_map(|(application, name)| genuine(application, name))
    .map(String::into_bytes)
    .collect();
    seeds.push(fixture("dezky-operator/jwks.json"));
    seeds.push(fixture("dezky-portal/jwks.json"));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % bound.max(1)
    };
    for round in 0..4_000 {
        let mut data = seeds[round % seeds.len()].clone();
        for _ in 0..=below(4) {
            let at = below(data.len());
            match below(5) {
                0 => data.truncate(at),
                1 => data.insert(at, u8::try_from(below(256)).unwrap()),
                2 => data.insert(at, b".\"{}[],:"[below(8)]),
                3 => drop(data.drain(at..(at + below(40)).min(data.len()))),
                _ => {
                    if let Some(byte) = data.get_mut(at) {
                        *byte ^= 1 << below(8);
                    }
                }
            }
        }
        properties::token(&data);
        properties::key_set(&data);
        // The decoded parts, changed and encoded again, reach further.
        let payload = URL_SAFE_NO_PAD.encode(&data);
        properties::token(format!("eyJhbGciOiJFUzI1NiJ9.{payload}.AAAA").as_bytes());
        properties::token(format!("{payload}.eyJpc3MiOiJ4In0.AAAA").as_bytes());
    }
}

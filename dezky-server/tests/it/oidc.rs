//! Issuers: discovery, keys, rotation, and providers that fail, against the double.

use std::sync::Arc;
use std::time::Duration;

use dezky_core::Runtime;
use dezky_core::rt::TokioRuntime;
use dezky_core::testkit::ManualRuntime;
use dezky_server::auth::jwt::{Preset, Profile, Reason};
use dezky_server::auth::oidc::{
    COOL_DOWN, FETCH_TIMEOUT, Issuer, IssuerConfig, Issuers, MAX_WAITING, Rejection, Verified,
};
use dezky_server::testkit::{Endpoint, Fault, IdentityProvider, LogoutDefect, SigningKey};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::until;

/// Issuers with their workers, on a clock that the test moves.
struct Running {
    issuers: Issuers,
    clock: ManualRuntime,
    workers: Vec<JoinHandle<()>>,
}

impl Running {
    fn start(configs: &[IssuerConfig]) -> Self {
        let clock = ManualRuntime::new(1);
        // The double's clock is the machine's.
        let ahead = TokioRuntime.now().saturating_since(clock.now());
        clock.advance(ahead);
        let runtime: Arc<dyn Runtime> = Arc::new(clock.clone());
        let issuers = Issuers::new(configs, &runtime).unwrap();
        let run = |issuer: &Arc<Issuer>| {
            let issuer = Arc::clone(issuer);
            tokio::spawn(async move { issuer.run(std::future::pending()).await })
        };
        let workers = issuers.iter().map(run).collect();
        Self { issuers, clock, workers }
    }

    async fn verify(&self, token: &str) -> Result<Verified, Rejection> {
        self.issuers.verify(token.as_bytes()).await
    }

    /// Waits until the last fetch of the first issuer has failed, and returns the reason.
    async fn problem(&self) -> String {
        let issuer = self.issuers.iter().next().unwrap();
        until("a failure", async || issuer.problem().is_some()).await;
        issuer.problem().unwrap()
    }

    /// Waits until the keys were fetched again after `before` requests.
    async fn refetched(&self, provider: &IdentityProvider, before: usize) {
        until("a fetch", async || provider.requests(Endpoint::KeySet) > before).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.workers.iter().for_each(JoinHandle::abort);
    }
}

fn config(provider: &IdentityProvider) -> IssuerConfig {
    IssuerConfig::new(Profile::new(Preset::Authentik, provider.issuer(), "api"))
}

fn refused(reason: Reason) -> Result<Verified, Rejection> {
    Err(Rejection::Token(reason))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_the_double_verify_and_its_other_tokens_do_not() {
    let provider = IdentityProvider::start().await.unwrap();
    let running = Running::start(&[config(&provider)]);
    let verified = running.verify(&provider.access_token("ana").sign()).await.unwrap();
    assert_eq!((&*verified.issuer, &*verified.subject), (&*provider.issuer(), "ana"));
    assert_eq!(verified.email.as_deref(), Some("ana@acme.example"));
    for (token, code) in [
        (provider.id_token("ana").sign(), "token_kind"),
        (provider.symmetric_token("ana").sign(), "token_symmetric"),
        (provider.encrypted_token(), "token_encrypted"),
        (provider.opaque_token(), "token_opaque"),
        (provider.access_token("ana").without("aud").sign(), "token_claim_missing"),
        (provider.access_token("ana").claim("aud", json!(["x"])).sign(), "token_audience"),
        (provider.logout_token("ana", "s", LogoutDefect::None), "token_kind"),
    ] {
        match running.verify(&token).await {
            Err(Rejection::Token(reason)) => assert_eq!(reason.code(), code),
            other => panic!("{code}: {other:?}"),
        }
    }
    // Each is refused for the first rule that it breaks; the kind is asked late.
    for defect in LogoutDefect::ALL {
        let token = provider.logout_token("ana", "s", defect);
        let expected = match defect {
            LogoutDefect::OtherIssuer => "token_issuer",
            LogoutDefect::Symmetric => "token_symmetric",
            LogoutDefect::Old => "token_expired",
            LogoutDefect::NoTime => "token_claim_missing",
            LogoutDefect::OtherAudience => "token_audience",
            _ => "token_kind",
        };
        match running.verify(&token).await {
            Err(Rejection::Token(reason)) => assert_eq!(reason.code(), expected, "{defect:?}"),
            other => panic!("{defect:?}: {other:?}"),
        }
    }
    // Without a typ that tells, the events do.
    let event = json!({ "http://schemas.openid.net/event/backchannel-logout": {} });
    let token = provider.access_token("ana").claim("events", event).sign();
    let kind = Reason::Kind("it is a logout token or another security event");
    assert_eq!(running.verify(&token).await, refused(kind));
    let listed = provider.access_token("ana").claim("aud", json!(["x", "api"])).sign();
    assert!(running.verify(&listed).await.is_ok());
    provider.set_clock_ahead(90);
    let early = provider.access_token("ana").sign();
    assert_eq!(running.verify(&early).await, refused(Reason::NotYetValid));
    assert_eq!(provider.requests(Endpoint::KeySet), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_rotated_with_and_without_overlap() {
    let provider = IdentityProvider::start().await.unwrap();
    let running = Running::start(&[config(&provider)]);
    let first = provider.access_token("ana").sign();
    assert!(running.verify(&first).await.is_ok());

    running.clock.advance(COOL_DOWN);
    provider.rotate(SigningKey::rs256("key-2"), true);
    let second = provider.access_token("ana").sign();
    assert!(running.verify(&second).await.is_ok(), "an unknown key is fetched at once");
    assert!(running.verify(&first).await.is_ok(), "the former key is published still");

    running.clock.advance(COOL_DOWN);
    provider.rotate(SigningKey::ed25519("key-3"), false);
    let third = provider.access_token("ana").sign();
    assert!(running.verify(&third).await.is_ok());
    assert_eq!(running.verify(&first).await, refused(Reason::KeyUnknown));
    assert_eq!(provider.requests(Endpoint::KeySet), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_unknown_keys_cause_one_fetch_per_cool_down() {
    let provider = IdentityProvider::start().await.unwrap();
    let running = Arc::new(Running::start(&[config(&provider)]));
    assert!(running.verify(&provider.access_token("ana").sign()).await.is_ok());
    // A slow answer, so that many wait for the same fetch.
    provider.fail(Endpoint::KeySet, Fault::Slow(Duration::from_millis(100)));
    let forger = Arc::new(SigningKey::es256("x"));
    for round in 1..=2 {
        running.clock.advance(COOL_DOWN);
        let requests: Vec<_> = (0..1_000)
            .map(|n| {
                let token = provider.access_token("eve").signed_by(Arc::clone(&forger));
                let token = token.header("kid", format!("forged-{n}")).sign();
                let running = Arc::clone(&running);
                tokio::spawn(async move { running.verify(&token).await })
            })
            .collect();
        for request in requests {
            assert_eq!(request.await.unwrap(), refused(Reason::KeyUnknown));
        }
        assert_eq!(provider.requests(Endpoint::KeySet), 1 + round);
        assert!(running.verify(&provider.access_token("ana").sign()).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_hangs_holds_up_nobody_else() {
    let (good, hanging) =
        (IdentityProvider::start().await.unwrap(), IdentityProvider::start().await.unwrap());
    hanging.fail(Endpoint::Discovery, Fault::Hang);
    let running = Arc::new(Running::start(&[config(&hanging), config(&good)]));
    let waiting = {
        let (running, token) = (Arc::clone(&running), hanging.access_token("ana").sign());
        tokio::spawn(async move { running.verify(&token).await })
    };
    until("the hanging request", async || hanging.requests(Endpoint::Discovery) == 1).await;
    assert!(running.verify(&good.access_token("ana").sign()).await.is_ok());
    assert!(!waiting.is_finished());
    // The fetch times out, and so does whoever waits for it.
    until("the end of the wait", async || {
        running.clock.advance(Duration::from_secs(6));
        waiting.is_finished()
    })
    .await;
    assert_eq!(waiting.await.unwrap(), Err(Rejection::Unavailable));
    // It recovers without a request.
    hanging.recover(Endpoint::Discovery);
    until("the recovery", async || {
        running.clock.advance(Duration::from_secs(6));
        running.verify(&hanging.access_token("ana").sign()).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_key_is_no_fault_of_the_token_while_no_keys_can_be_fetched() {
    let provider = IdentityProvider::start().await.unwrap();
    let running = Arc::new(Running::start(&[config(&provider)]));
    let old = provider.access_token("ana").sign();
    assert!(running.verify(&old).await.is_ok());
    provider.rotate(SigningKey::es256("key-2"), false);
    let token = provider.access_token("ana").sign();
    // Fetched a moment ago, so that the key is unknown for certain.
    assert_eq!(running.verify(&token).await, refused(Reason::KeyUnknown));

    provider.fail(Endpoint::Discovery, Fault::Html(502));
    running.clock.advance(COOL_DOWN);
    assert_eq!(running.verify(&token).await, Err(Rejection::Unavailable));
    let fetches = provider.requests(Endpoint::Discovery);
    assert_eq!(running.verify(&token).await, Err(Rejection::Unavailable), "in the cool-down too");
    assert_eq!(provider.requests(Endpoint::Discovery), fetches);
    assert!(running.verify(&old).await.is_ok(), "known keys verify");

    provider.fail(Endpoint::Discovery, Fault::Hang);
    running.clock.advance(COOL_DOWN);
    until("the hanging request", async || provider.requests(Endpoint::Discovery) > fetches).await;
    let waiting = {
        let (running, token) = (Arc::clone(&running), token.clone());
        tokio::spawn(async move { running.verify(&token).await })
    };
    until("the end of the wait", async || {
        running.clock.advance(Duration::from_secs(6));
        waiting.is_finished()
    })
    .await;
    assert_eq!(waiting.await.unwrap(), Err(Rejection::Unavailable));

    provider.recover(Endpoint::Discovery);
    until("the recovery", async || {
        running.clock.advance(COOL_DOWN);
        running.verify(&token).await.is_ok()
    })
    .await;
}

/// Discovery and key set may each take as long as one response may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_waits_for_a_whole_slow_fetch() {
    let provider = IdentityProvider::start().await.unwrap();
    for endpoint in [Endpoint::Discovery, Endpoint::KeySet] {
        provider.fail(endpoint, Fault::Slow(Duration::from_millis(500)));
    }
    let running = Arc::new(Running::start(&[config(&provider)]));
    let waiting = {
        let (running, token) = (Arc::clone(&running), provider.access_token("ana").sign());
        tokio::spawn(async move { running.verify(&token).await })
    };
    until("the wait", async || running.clock.sleeping() >= 2).await;
    for endpoint in [Endpoint::Discovery, Endpoint::KeySet] {
        until("the request", async || provider.requests(endpoint) == 1).await;
        running.clock.advance(FETCH_TIMEOUT.saturating_sub(Duration::from_secs(1)));
    }
    assert!(waiting.await.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_without_ids_are_rotated() {
    let provider = IdentityProvider::start().await.unwrap();
    provider.rotate(SigningKey::es256("").with_id(None), false);
    let running = Running::start(&[config(&provider)]);
    let first = provider.access_token("ana").sign();
    assert!(running.verify(&first).await.is_ok());
    // Another key of the same type, and one of another type.
    for key in [SigningKey::es256(""), SigningKey::rs256("")] {
        running.clock.advance(COOL_DOWN);
        provider.rotate(key.with_id(None), false);
        assert!(running.verify(&provider.access_token("ana").sign()).await.is_ok());
        assert!(running.verify(&first).await.is_err());
    }
    // Another key under the id of the former one.
    running.clock.advance(COOL_DOWN);
    provider.rotate(SigningKey::es256("key-1"), false);
    assert!(running.verify(&provider.access_token("ana").sign()).await.is_ok());
    running.clock.advance(COOL_DOWN);
    provider.rotate(SigningKey::es256("key-1"), false);
    assert!(running.verify(&provider.access_token("ana").sign()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_a_thousand_requests_wait() {
    let provider = IdentityProvider::start().await.unwrap();
    provider.fail(Endpoint::Discovery, Fault::Hang);
    let running = Arc::new(Running::start(&[config(&provider)]));
    let token = provider.access_token("ana").sign();
    let requests: Vec<_> = (0..=MAX_WAITING)
        .map(|_| {
            let (running, token) = (Arc::clone(&running), token.clone());
            tokio::spawn(async move { running.verify(&token).await })
        })
        .collect();
    // One too many, which is refused at once: the clock stands still.
    let finished = || requests.iter().filter(|request| request.is_finished()).count();
    until("the one too many", async || finished() == 1).await;
    running.clock.advance(Duration::from_secs(12));
    for request in requests {
        assert_eq!(request.await.unwrap(), Err(Rejection::Unavailable));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_verified_with_the_keys_of_their_own_issuer() {
    let (one, other) =
        (IdentityProvider::start().await.unwrap(), IdentityProvider::start().await.unwrap());
    let running = Running::start(&[config(&one), config(&other)]);
    for (issuer, signer) in [(&one, &other), (&other, &one)] {
        assert!(running.verify(&issuer.access_token("ana").sign()).await.is_ok());
        let forged = signer.access_token("ana").claim("iss", issuer.issuer());
        assert_eq!(running.verify(&forged.sign()).await, refused(Reason::Signature));
        let forged = forged.header("kid", "key-of-the-other").sign();
        assert_eq!(running.verify(&forged).await, refused(Reason::KeyUnknown));
        let forged =
            signer.access_token("ana").claim("iss", issuer.issuer()).header("kid", Value::Null);
        assert_eq!(running.verify(&forged.sign()).await, refused(Reason::Signature));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_that_are_not_to_be_followed() {
    for (fault, words) in [
        (Fault::Redirect("https://id.example.com/".into()), ["302", "redirects are not followed"]),
        (Fault::Body("x".repeat(300 << 10)), ["response", "more than 262144 bytes"]),
        (Fault::Body("{}".into()), ["the document", "has no issuer"]),
        (Fault::Body("{\"issuer\":\"a\\nforged line\"}".into()), ["\"a\\nforged line\"", "equal"]),
        (
            Fault::Body("jwks_uri=http://10.0.0.1/".into()),
            ["jwks_uri \"http://10.0.0.1/\"", "https"],
        ),
        (Fault::Body("jwks_uri=https://id.example.com/".into()), ["jwks_uri", "scheme"]),
    ] {
        let provider = IdentityProvider::start().await.unwrap();
        let fault = match fault {
            Fault::Body(body) if body.starts_with("jwks_uri=") => {
                let uri = &body["jwks_uri=".len()..];
                Fault::Body(json!({ "issuer": provider.issuer(), "jwks_uri": uri }).to_string())
            }
            fault => fault,
        };
        provider.fail(Endpoint::Discovery, fault);
        let running = Running::start(&[config(&provider)]);
        let problem = running.problem().await;
        assert!(!problem.contains('\n') && problem.len() < 1_000, "{problem}");
        for word in words {
            assert!(problem.contains(word), "{word}: {problem}");
        }
        assert_eq!(provider.requests(Endpoint::KeySet), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_good_keys_survive_failures_for_a_day() {
    let provider = IdentityProvider::start().await.unwrap();
    provider.set_cache_control(Some("max-age=600"));
    let running = Running::start(&[config(&provider)]);
    let token = || {
        let far = TokioRuntime.now().as_millis() / 1_000 + 400_000;
        provider.access_token("ana").claim("exp", far).sign()
    };
    assert!(running.verify(&token()).await.is_ok());
    for fault in [
        Fault::Html(502),
        Fault::Redirect(provider.jwks_uri()),
        Fault::Body("<html>".into()),
        Fault::Body(r#"{"keys":7}"#.into()),
        Fault::Body(format!("{{\"x\":\"{}\"}}", "x".repeat(300 << 10))),
    ] {
        let before = provider.requests(Endpoint::KeySet);
        provider.fail(Endpoint::KeySet, fault.clone());
        running.clock.advance(Duration::from_mins(11));
        running.refetched(&provider, before).await;
        let problem = running.problem().await;
        let expected = match fault {
            Fault::Html(_) => "502",
            Fault::Redirect(_) => "redirects are not followed",
            Fault::Body(body) if body.len() > 100 => "more than 262144 bytes",
            Fault::Body(body) if body.starts_with('<') => "is not a JSON object",
            _ => "not a list",
        };
        assert!(problem.contains(expected), "{problem}");
        assert!(running.verify(&token()).await.is_ok(), "{problem}");
        // Good again, so that the next fault is seen alone.
        let before = provider.requests(Endpoint::KeySet);
        provider.recover(Endpoint::KeySet);
        running.clock.advance(Duration::from_mins(2));
        running.refetched(&provider, before).await;
        let issuer = running.issuers.iter().next().unwrap();
        until("the recovery", async || issuer.problem().is_none()).await;
    }
    provider.fail(Endpoint::KeySet, Fault::Html(502));
    running.clock.advance(Duration::from_hours(23));
    running.problem().await;
    assert!(running.verify(&token()).await.is_ok());
    running.clock.advance(Duration::from_hours(2));
    assert_eq!(running.verify(&token()).await, Err(Rejection::Unavailable));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_without_a_signing_key_and_odd_keys() {
    let provider = IdentityProvider::start().await.unwrap();
    provider.set_key_set(Some(json!({})));
    let running = Running::start(&[config(&provider)]);
    let token = provider.access_token("ana").sign();
    assert_eq!(running.verify(&token).await, refused(Reason::NoKeys));
    provider.set_key_set(None);
    for odd in [json!({ "kty": "future", "kid": 7 }), json!({ "alg": "ES512" }), Value::Null] {
        provider.publish_first(odd);
    }
    running.clock.advance(COOL_DOWN);
    assert!(running.verify(&token).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_differs_from_its_document_is_refused_with_both_names() {
    let provider = IdentityProvider::start().await.unwrap();
    let configured = provider.issuer();
    let announced = configured.trim_end_matches('/').to_owned();
    provider.set_issuer(&announced);
    let mut config = config(&provider);
    config.profile.issuer.clone_from(&configured);
    let running = Running::start(&[config]);
    let problem = running.problem().await;
    assert!(problem.contains(&format!("\"{configured}\"")), "{problem}");
    assert!(problem.contains(&format!("\"{announced}\"")), "{problem}");
    let token = provider.access_token("ana").claim("iss", configured.as_str()).sign();
    assert_eq!(running.verify(&token).await, Err(Rejection::Unavailable));
    assert_eq!(provider.requests(Endpoint::KeySet), 0);

    // The same, because the host is another one.
    provider.set_issuer_by_host(true);
    let mut other = self::config(&provider);
    other.discovery_url = Some(provider.discovery_url().replace("127.0.0.1", "localhost"));
    other.profile.issuer.clone_from(&configured);
    let running = Running::start(&[other]);
    assert!(running.problem().await.contains("localhost"));
    // A configured address needs no document.
    let mut direct = self::config(&provider);
    direct.profile.issuer.clone_from(&configured);
    direct.jwks_uri = Some(provider.jwks_uri());
    let running = Running::start(&[direct]);
    assert!(running.verify(&token).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_endpoint_of_the_double_keeps_its_rules() {
    let provider = IdentityProvider::start().await.unwrap();
    let http = dezky_core::http::client_builder("http:").unwrap().build().unwrap();
    let (client, secret) = provider.client();
    let ask = async |pairs: &[(&str, &str)]| {
        let mut url =
            reqwest::Url::parse(&format!("{}/application/o/token/", provider.url())).unwrap();
        url.query_pairs_mut()
            .extend_pairs([("client_id", &*client), ("client_secret", &*secret)])
            .extend_pairs(pairs);
        let form = url.query().unwrap().to_owned();
        url.set_query(None);
        let answer = http.post(url).body(form).send().await.unwrap();
        (
            answer.status().as_u16(),
            serde_json::from_slice::<Value>(&answer.bytes().await.unwrap()).unwrap(),
        )
    };
    // RFC 7636, appendix B.
    let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
    let code_grant = |code: String, verifier: Option<&'static str>| {
        let mut pairs = vec![("grant_type", "authorization_code".to_owned()), ("code", code)];
        pairs.extend(verifier.map(|verifier| ("code_verifier", verifier.to_owned())));
        pairs
    };
    let redeem = async |code: String, verifier| {
        let pairs = code_grant(code, verifier);
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        ask(&pairs).await
    };
    for (challenge, verifier, status) in [
        (Some(challenge), Some(verifier), 200),
        (None, None, 200),
        (None, Some(verifier), 400),
        (Some(challenge), None, 400),
    ] {
        let code = provider.authorize("ana", challenge, Some("n-1"));
        let (found, answer) = redeem(code.clone(), verifier).await;
        assert_eq!(found, status, "{answer}");
        assert_eq!(redeem(code, verifier).await.1["error"], "invalid_grant", "a code is used once");
    }
    let (_, first) = redeem(provider.authorize("ana", None, None), None).await;
    let refresh =
        async |token: &str| ask(&[("grant_type", "refresh_token"), ("refresh_token", token)]).await;
    let old = first["refresh_token"].as_str().unwrap();
    provider.omit_refresh_token(true);
    assert!(refresh(old).await.1["refresh_token"].is_null());
    provider.omit_refresh_token(false);
    let (_, second) = refresh(old).await;
    let new = second["refresh_token"].as_str().unwrap();
    assert_eq!(refresh(old).await.1["error"], "invalid_grant");
    assert_eq!(refresh(new).await.1["error"], "invalid_grant", "a reuse ends the family");
    let (status, answer) = ask(&[("grant_type", "client_credentials")]).await;
    assert_eq!(status, 200, "{answer}");
}

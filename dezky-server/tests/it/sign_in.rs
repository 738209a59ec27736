//! Callers with access tokens: operators, users, and tokens that are not accepted.

use std::sync::Arc;

use dezky_core::directory::{Edit, User, UserKey, UserPatch, UserQuery};
use dezky_core::{Actor, Timestamp};
use dezky_server::auth::users::MAX_CREATED_PER_MINUTE;
use dezky_server::testkit::{Endpoint, Fault, IdentityProvider, SigningKey, TokenBuilder};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection};

use crate::access::{request, routes};
use crate::openapi;
use crate::support::{Answer, Client, Embedder, Process, Server, in_order, until, verbs};

const TOKEN: &str = "operator-token-0123456789";

/// A server that accepts tokens of `provider` for portal and operators.
async fn server(provider: &IdentityProvider) -> Server {
    Server::start(&[
        ("DEZKY_OPERATOR_TOKEN", TOKEN),
        ("AUTHENTIK_ISSUER", &provider.issuer()),
        ("AUTHENTIK_AUDIENCE", "dezky-portal, dezky-operator"),
    ])
    .await
}

fn portal_token(provider: &IdentityProvider, subject: &str) -> TokenBuilder {
    provider.access_token(subject).claim("aud", "dezky-portal").claim("azp", "dezky-portal")
}

fn operator_token(provider: &IdentityProvider, subject: &str) -> TokenBuilder {
    provider.access_token(subject).claim("aud", "dezky-operator").claim("azp", "dezky-operator")
}

/// The directory of a running server.
async fn user(server: &Server, provider: &IdentityProvider, subject: &str) -> Option<User> {
    let issuer = provider.issuer();
    let key = UserKey::Subject { issuer: &issuer, subject };
    server.running.platform().directory.store().user(key).await.unwrap()
}

async fn set_admin(server: &Server, provider: &IdentityProvider, subject: &str, is_admin: bool) {
    let issuer = provider.issuer();
    let key = UserKey::Subject { issuer: &issuer, subject };
    let patch = UserPatch { platform_admin: Some(is_admin), ..UserPatch::default() };
    let by = Edit::by(Actor::user("u-root"));
    server.running.platform().directory.update_user(key, patch, &by).await.unwrap();
}

fn challenge<'a>(answer: &'a Answer, error: &str) -> &'a str {
    let challenge = answer.header("www-authenticate");
    assert!(
        challenge.starts_with(&format!("Bearer error=\"{error}\", error_description=\"")),
        "{challenge}"
    );
    challenge
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_needs_the_audience_and_the_right() {
    let provider = IdentityProvider::start().await.unwrap();
    let server = server(&provider).await;
    let client = |token: TokenBuilder| server.client.with_token(&token.sign());
    let refused = async |client: &Client, word: &str| {
        let answer =
            client.post("/tenants", json!({ "slug": "no", "name": "No", "plan": "pro" })).await;
        let detail = answer.problem(403, "operator_required");
        assert!(detail.contains("operator-scoped token is required"), "{detail}");
        assert!(detail.contains(word), "{detail}");
        challenge(&answer, "insufficient_scope");
    };
    // Neither, the audience alone, the right alone.
    refused(&client(portal_token(&provider, "gus")), "audience").await;
    refused(&client(operator_token(&provider, "gus")), "administrator").await;
    set_admin(&server, &provider, "gus", true).await;
    refused(&client(portal_token(&provider, "gus")), "audience").await;
    // Both.
    let operator =
        client(operator_token(&provider, "gus").claim("aud", json!(["x", "dezky-operator"])));
    let tenant = json!({ "slug": "acme", "name": "Acme", "plan": "pro", "status": "active" });
    operator.post("/tenants", tenant).await.with_status(201);
    operator.act("/tenants/acme/suspend").await.with_status(200);
    // A revoked right is gone at the next request.
    set_admin(&server, &provider, "gus", false).await;
    refused(&operator, "administrator").await;

    let events = in_order(server.client.with_token(TOKEN).all("").await);
    assert_eq!(
        verbs(events.clone()),
        ["user.created", "user.updated", "tenant.created", "tenant.suspended", "user.updated"]
    );
    let gus = user(&server, &provider, "gus").await.unwrap();
    let created = &events[0];
    assert_eq!(
        (&created["actorType"], &created["actorEmail"]),
        (&json!("user"), &json!("gus@acme.example"))
    );
    assert_eq!(
        (&created["actorIp"], &created["resourceId"]),
        (&json!("127.0.0.1"), &json!(gus.id))
    );
    for event in &events[2..4] {
        assert_eq!(event["actorType"], "operator", "{event}");
        assert_eq!(
            (&event["actorId"], &event["actorEmail"]),
            (&json!(gus.id), &json!("gus@acme.example"))
        );
        assert_eq!(event["actorIp"], "127.0.0.1");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_token_makes_a_user_without_rights() {
    let provider = IdentityProvider::start().await.unwrap();
    let server = server(&provider).await;
    // Many requests at once make one user.
    let token = portal_token(&provider, "ana").sign();
    let requests: Vec<_> = (0..20)
        .map(|_| {
            let client = server.client.with_token(&token);
            tokio::spawn(async move { client.get("/tenants").await.status.as_u16() })
        })
        .collect();
    for request in requests {
        assert_eq!(request.await.unwrap(), 403);
    }
    let ana = user(&server, &provider, "ana").await.unwrap();
    assert!(!ana.platform_admin && ana.tenant_ids.is_empty());
    assert_eq!(
        (ana.email.as_deref(), ana.name.as_deref()),
        (Some("ana@acme.example"), Some("ana"))
    );
    let login = ana.last_login_at.unwrap();

    // Groups and claims of the token give nothing, and strange ones keep nobody out.
    let strange = operator_token(&provider, "eve")
        .claim("groups", json!(["dezky-platform-admins"]))
        .claim("platformAdmin", true)
        .claim("email", "not an address")
        .claim("name", "n".repeat(1_000));
    let client = server.client.with_token(&strange.sign());
    client.get("/tenants").await.problem(403, "operator_required");
    let eve = user(&server, &provider, "eve").await.unwrap();
    assert_eq!((eve.email, eve.name, eve.platform_admin), (None, None, false));

    // The same address is another user.
    let twin = portal_token(&provider, "ana-2").claim("email", "ana@acme.example").sign();
    server.client.with_token(&twin).get("/tenants").await.problem(403, "operator_required");
    let users = server.running.platform().directory.store().users(&UserQuery::default()).await;
    assert_eq!(users.unwrap().len(), 3);

    // A later login is recorded, an earlier one is not.
    let at = |offset: i64| login.as_millis().div_euclid(1_000) + offset;
    for (offset, expected) in [(-3_600, login), (-120, login)] {
        let token = portal_token(&provider, "ana").claim("auth_time", at(offset)).sign();
        server.client.with_token(&token).get("/tenants").await.with_status(403);
        assert_eq!(user(&server, &provider, "ana").await.unwrap().last_login_at, Some(expected));
    }
    let events = server.client.with_token(TOKEN).all("").await;
    assert_eq!(verbs(events), ["user.created", "user.created", "user.created"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_moves_the_time_of_the_last_one() {
    let provider = IdentityProvider::start().await.unwrap();
    let server = server(&provider).await;
    let now = portal_token(&provider, "ana").claims()["auth_time"].as_i64().unwrap();
    for (auth_time, expected) in
        [(now - 7_200, now - 7_200), (now - 3_600, now - 3_600), (now - 3_590, now - 3_600)]
    {
        let token = portal_token(&provider, "ana").claim("auth_time", auth_time).sign();
        // It is recorded after the response, and not while another one is.
        until("the login", async || {
            server.client.with_token(&token).get("/tenants").await.with_status(403);
            let last = user(&server, &provider, "ana").await.unwrap().last_login_at;
            last == Timestamp::from_millis(expected * 1_000)
        })
        .await;
    }
    server.stop().await;
}

/// Known users are served while the store takes no writes; new ones have to wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_is_recorded_after_the_response() {
    let provider = IdentityProvider::start().await.unwrap();
    let server = server(&provider).await;
    let url = format!("sqlite://{}", server.folder.path().join("audit.db").display());
    let now = portal_token(&provider, "ana").claims()["auth_time"].as_i64().unwrap();
    let at = |auth_time: i64| portal_token(&provider, "ana").claim("auth_time", auth_time).sign();
    server.client.with_token(&at(now - 7_200)).get("/me").await.with_status(200);
    let last = async || user(&server, &provider, "ana").await.unwrap().last_login_at;
    let before = last().await;

    let mut other = SqliteConnection::connect(&url).await.unwrap();
    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    server.client.with_token(&at(now)).get("/me").await.with_status(200);
    assert_eq!(last().await, before);
    held.rollback().await.unwrap();
    // No further request is needed.
    until("the login", async || last().await == Timestamp::from_millis(now * 1_000)).await;

    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let new = server.client.with_token(&portal_token(&provider, "eve").sign());
    new.get("/me").await.problem(503, "store_busy");
    held.rollback().await.unwrap();
    new.get("/me").await.with_status(200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn me_is_the_caller() {
    let provider = IdentityProvider::start().await.unwrap();
    let server = server(&provider).await;
    let operator = server.client.with_token(TOKEN);
    let me = operator.get("/me").await;
    openapi::check("get", "/me", &me);
    assert_eq!(me.with_status(200), json!({ "user": null, "operator": true, "tenants": [] }));

    let ana = server.client.with_token(&operator_token(&provider, "ana").sign());
    let me = ana.get("/me").await.with_status(200);
    assert_eq!(
        (&me["user"]["subject"], &me["operator"], &me["tenants"]),
        (&json!("ana"), &json!(false), &json!([]))
    );
    let mut ids = Vec::new();
    for slug in ["acme", "gone"] {
        let tenant = json!({ "slug": slug, "name": slug, "plan": "pro", "status": "active" });
        let tenant = operator.post("/tenants", tenant).await.with_status(201);
        ids.push(tenant["id"].as_str().unwrap().to_owned());
    }
    operator.delete("/tenants/gone").await.with_status(200);
    let (issuer, ids_of_ana) = (provider.issuer(), vec![ids[0].clone()]);
    let patch = UserPatch {
        tenant_ids: Some(ids_of_ana),
        platform_admin: Some(true),
        ..UserPatch::default()
    };
    let key = UserKey::Subject { issuer: &issuer, subject: "ana" };
    let directory = &server.running.platform().directory;
    directory.update_user(key, patch, &Edit::by(Actor::system())).await.unwrap();
    let me = ana.get("/me").await;
    openapi::check("get", "/me", &me);
    let expected = json!([{ "id": ids[0], "slug": "acme", "name": "acme", "plan": "pro", "status": "active" }]);
    assert_eq!((&me.json["tenants"], &me.json["operator"]), (&expected, &json!(true)));
    ana.get("/me?x=1").await.problem(400, "query_invalid");
    server.client.get("/me").await.problem(401, "unauthorized");
    server.stop().await;
}

/// A user without the right, and an operator with a token for the portal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_of_operators_needs_both_conditions() {
    let provider = IdentityProvider::start().await.unwrap();
    let server = server(&provider).await;
    let user_of_portal = server.client.with_token(&portal_token(&provider, "ana").sign());
    let user_of_console = server.client.with_token(&operator_token(&provider, "ana").sign());
    let operator_of_portal = server.client.with_token(&portal_token(&provider, "gus").sign());
    operator_of_portal.get("/me").await.with_status(200);
    set_admin(&server, &provider, "gus", true).await;
    user_of_portal.get("/me").await.with_status(200);
    let before = server.client.with_token(TOKEN).all("").await;
    for route in routes().into_iter().filter(|(_, path, _)| *path != "/me") {
        for client in [&user_of_portal, &user_of_console, &operator_of_portal] {
            let answer = client.send(request(client, &route)).await;
            answer.problem(403, "operator_required");
            challenge(&answer, "insufficient_scope");
        }
    }
    assert_eq!(server.client.with_token(TOKEN).all("").await, before);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deactivated_user_is_refused() {
    let provider = IdentityProvider::start().await.unwrap();
    let server = server(&provider).await;
    let gus = server.client.with_token(&operator_token(&provider, "gus").sign());
    gus.get("/tenants").await.problem(403, "operator_required");
    set_admin(&server, &provider, "gus", true).await;
    gus.get("/tenants").await.with_status(200);
    let id = user(&server, &provider, "gus").await.unwrap().id;
    gus.act(&format!("/users/{id}/deactivate")).await.with_status(200);
    let answer = gus.get("/tenants").await;
    answer.problem(403, "user_deactivated");
    challenge(&answer, "insufficient_scope");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_creates_a_bounded_number_of_users_in_a_minute() {
    let (provider, other) =
        (IdentityProvider::start().await.unwrap(), IdentityProvider::start().await.unwrap());
    let server = Server::start(&[
        ("AUTHENTIK_ISSUER", &*format!("{},{}", provider.issuer(), other.issuer())),
        ("AUTHENTIK_AUDIENCE", "dezky-portal"),
    ])
    .await;
    let ask = async |provider: &IdentityProvider, subject: &str| {
        server.client.with_token(&portal_token(provider, subject).sign()).get("/me").await
    };
    for n in 0..MAX_CREATED_PER_MINUTE {
        ask(&provider, &format!("user-{n}")).await.with_status(200);
    }
    // A minute may pass on a slow machine, but not in between of two requests for long.
    let mut n = MAX_CREATED_PER_MINUTE;
    let refused = loop {
        let answer = ask(&provider, &format!("user-{n}")).await;
        if answer.status != 200 {
            break answer;
        }
        n += 1;
        assert!(n < 4 * MAX_CREATED_PER_MINUTE, "no bound");
    };
    openapi::check("get", "/me", &refused);
    refused.problem(503, "too_many_new_users");
    assert_eq!(refused.header("retry-after"), "60");
    // Known users and other issuers are not affected.
    ask(&provider, "user-0").await.with_status(200);
    ask(&other, "ana").await.with_status(200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_class_of_bad_token_has_its_problem() {
    let provider = IdentityProvider::start().await.unwrap();
    let server = server(&provider).await;
    let good = || operator_token(&provider, "gus");
    let seconds = good().claims()["iat"].as_i64().unwrap();
    let forged = Arc::new(SigningKey::es256("forged"));
    let same_id = Arc::new(SigningKey::es256("key-1"));
    let secret = provider.key().jwk().to_string();
    let by_public_key = Arc::new(SigningKey::hs256(secret.as_bytes()));
    let mut broken = good().sign();
    broken.replace_range(0..1, "!");
    for (token, status, code) in [
        ("garbage".to_owned(), 401, "token_opaque"),
        (provider.opaque_token(), 401, "token_opaque"),
        (provider.encrypted_token(), 401, "token_encrypted"),
        ("x".repeat(17 << 10), 401, "token_too_long"),
        (broken, 401, "token_malformed"),
        (
            provider.key().sign(r#"{"alg":"ES256"}"#, r#"{"iss":"a","iss":"b"}"#),
            401,
            "token_duplicate_member",
        ),
        (good().signed_by(Arc::new(SigningKey::none())).sign(), 401, "token_unsigned"),
        (good().signed_by(by_public_key).sign(), 401, "token_symmetric"),
        (good().header("alg", "ES512").sign(), 401, "token_algorithm"),
        (good().header("crit", json!(["exp"])).sign(), 401, "token_critical"),
        (good().claim("iss", "https://other.example/").sign(), 401, "token_issuer"),
        (good().signed_by(forged).sign(), 401, "token_key_unknown"),
        (good().header("alg", "RS256").sign(), 401, "token_key_unfit"),
        (good().signed_by(same_id).sign(), 401, "token_signature"),
        (good().without("exp").sign(), 401, "token_claim_missing"),
        (good().claim("sub", 7).sign(), 401, "token_claim_invalid"),
        (good().claim("sub", "control\u{7}").sign(), 401, "token_claim_invalid"),
        (good().claim("exp", seconds - 61).sign(), 401, "token_expired"),
        (good().claim("nbf", seconds + 90).sign(), 401, "token_not_yet_valid"),
        (good().claim("aud", "other").sign(), 401, "token_audience"),
        (good().claim("cnf", json!({ "jkt": "x" })).sign(), 401, "token_bound"),
        (provider.id_token("gus").claim("aud", "dezky-operator").sign(), 403, "token_kind"),
    ] {
        let answer = server.client.with_token(&token).get("/tenants").await;
        let detail = answer.problem(status, code);
        let error = if status == 401 { "invalid_token" } else { "insufficient_scope" };
        assert!(challenge(&answer, error).contains(detail), "{code}");
        assert!(!detail.contains(&token));
    }
    // No credentials, other ones, and two.
    for request in [
        server.client.request(Method::GET, "/tenants"),
        server.client.request(Method::GET, "/tenants").header("Authorization", "Basic Z3VzOng="),
        server.client.request(Method::GET, &format!("/tenants?access_token={}", good().sign())),
    ] {
        let answer = server.client.send(request).await;
        answer.problem(401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    let twice = server.client.with_token(TOKEN).request(Method::GET, "/tenants");
    let twice = twice.header("Authorization", format!("Bearer {TOKEN}"));
    server.client.send(twice).await.problem(400, "header_invalid");
    assert!(user(&server, &provider, "gus").await.is_none());
    assert!(server.client.with_token(TOKEN).all("").await.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_its_provider_starts_and_says_so() {
    let provider = IdentityProvider::start().await.unwrap();
    provider.fail(Endpoint::Discovery, Fault::Html(502));
    let server = server(&provider).await;
    let gus = server.client.with_token(&operator_token(&provider, "gus").sign());
    let answer = gus.get("/tenants").await;
    let detail = answer.problem(503, "issuer_unavailable");
    assert!(detail.contains("retry with the same token"));
    assert_eq!((answer.header("retry-after"), answer.header("www-authenticate")), ("5", ""));
    server.client.with_token(TOKEN).get("/tenants").await.with_status(200);
    provider.recover(Endpoint::Discovery);
    until("the provider's return", async || gus.get("/tenants").await.status == 403).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_operator_token_the_issuers_decide() {
    let provider = IdentityProvider::start().await.unwrap();
    let issuer = provider.issuer();
    let server =
        Server::start(&[("AUTHENTIK_ISSUER", &issuer), ("AUTHENTIK_AUDIENCE", "dezky-operator")])
            .await;
    // From this machine, but without a token.
    server.client.get("/tenants").await.problem(401, "unauthorized");
    server.client.get("/health").await.with_status(200);
    let gus = server.client.with_token(&operator_token(&provider, "gus").sign());
    gus.get("/tenants").await.problem(403, "operator_required");
    set_admin(&server, &provider, "gus", true).await;
    gus.get("/tenants").await.with_status(200);
    // OFREP, by either header; a refusal has no body.
    let evaluate =
        |client: &Client| client.document(Method::POST, "/ofrep/v1/evaluate/flags", "{}");
    gus.send(evaluate(&gus)).await.with_status(200);
    let key = operator_token(&provider, "gus").sign();
    gus.send(evaluate(&server.client).header("X-API-Key", key)).await.with_status(200);
    let portal = server.client.with_token("garbage");
    let refused = portal.send(evaluate(&portal)).await;
    assert_eq!((refused.status.as_u16(), &refused.json), (401, &Value::Null));
    challenge(&refused, "invalid_token");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_and_no_address_gets_into_the_log() {
    let provider = IdentityProvider::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(
        folder.path(),
        &[
            ("AUTHENTIK_ISSUER", &*provider.issuer()),
            ("AUTHENTIK_AUDIENCE", "dezky-portal"),
            ("DEZKY_LOG", "debug"),
        ],
    );
    let claims = |token: TokenBuilder| token.claim("name", "Ana Surname");
    let good = claims(portal_token(&provider, "subject-of-ana")).sign();
    let bad = claims(portal_token(&provider, "subject-of-ana")).claim("exp", 7).sign();
    process.client.with_token(&good).get("/tenants").await.problem(403, "operator_required");
    process.client.with_token(&bad).get("/tenants").await.problem(401, "token_expired");
    process.client.get("/tenants").await.problem(401, "unauthorized");
    // Each refusal with its reason, and those of tokens with the configured issuer.
    let issuer = provider.issuer();
    for words in [
        ["token_expired", "the token has expired", &*issuer],
        ["operator_required", "not one for operators", "a caller is refused"],
        ["unauthorized", "a caller is refused", "code"],
    ] {
        until(words[0], async || {
            let log = process.stderr();
            log.lines().any(|line| words.iter().all(|word| line.contains(word)))
        })
        .await;
    }
    let log = process.stderr();
    let personal = ["subject-of-ana", "subject-of-ana@acme.example", "Surname"];
    for secret in good.split('.').chain(bad.split('.')).skip(1).chain(personal) {
        // Both have the same header.
        assert!(good.starts_with(secret) || !log.contains(secret), "{secret}");
    }
    process.stop().await;
}

/// An embedder's user, made before the first login, is the one who signs in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_was_added_before_keeps_their_rights() {
    let provider = IdentityProvider::start().await.unwrap();
    let server = server(&provider).await;
    let embedder = Embedder::open(&server).await;
    let new = dezky_core::directory::NewUser {
        email: Some("gus@dezky.example".into()),
        platform_admin: true,
        ..dezky_core::directory::NewUser::new(provider.issuer(), "gus")
    };
    embedder.directory.create_user(new, &Edit::by(Actor::system())).await.unwrap();
    embedder.close().await;
    let gus = server.client.with_token(&operator_token(&provider, "gus").sign());
    gus.post("/tenants", json!({ "slug": "acme", "name": "Acme", "plan": "pro" }))
        .await
        .with_status(201);
    let events = server.client.with_token(TOKEN).all("&action=tenant.created").await;
    assert_eq!(events[0]["actorEmail"], "gus@dezky.example", "the directory's address counts");
    server.stop().await;
}

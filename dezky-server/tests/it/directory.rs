//! Tenants, partners and users over HTTP.

use dezky_core::directory::{Edit, Identity, NewUser, TenantKey, UserKey};
use dezky_core::{Actor, Timestamp};
use serde_json::{Value, json};

use crate::support::{Client, Embedder, Engine, Server, verbs};

async fn make_tenant(client: &Client, slug: &str) -> Value {
    let body = json!({ "slug": slug, "name": slug, "plan": "pro" });
    client.post("/tenants", body).await.with_status(201)
}

async fn make_partner(client: &Client, slug: &str) -> Value {
    let body = json!({ "slug": slug, "name": slug });
    client.post("/partners", body).await.with_status(201)
}

/// The documents of a list, read in pages of at most `limit`.
async fn pages(client: &Client, path: &str, name: &str, limit: usize) -> Vec<Value> {
    let (mut documents, mut cursor) = (Vec::new(), String::new());
    loop {
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}limit={limit}{cursor}");
        let page = client.get(&path).await.with_status(200);
        let some = page[name].as_array().unwrap();
        assert!(some.len() <= limit, "{path}: {page}");
        documents.extend(some.iter().cloned());
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return documents,
        }
    }
}

fn texts(documents: &[Value], field: &str) -> Vec<String> {
    documents.iter().map(|document| document[field].as_str().unwrap().to_owned()).collect()
}

pub(crate) async fn a_tenant_is_made_read_and_changed(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    let client = &server.client;
    let new = json!({
        "slug": "acme", "name": "Acme Ltd", "plan": "pro", "status": "active",
        "domains": ["ACME.example", "acme.test"],
        "billing": { "company": "Acme Ltd", "vatId": "NO 1", "email": "pay@acme.example" },
    });
    let made = client.post("/tenants", new).await;
    assert_eq!((made.status.as_u16(), made.header("location")), (201, "/tenants/acme"));
    let tenant = &made.json;
    assert_eq!(tenant["domains"], json!(["acme.example", "acme.test"]));
    assert_eq!((&tenant["status"], &tenant["version"]), (&json!("active"), &json!(1)));
    assert_eq!(
        tenant["provisioningStatus"],
        json!({ "authentik": "pending", "stalwart": "pending", "ocis": "pending" })
    );
    assert!(
        tenant["createdAt"].as_str().unwrap().ends_with('Z') && tenant.get("partnerId").is_none()
    );
    assert_eq!(client.get("/tenants/acme").await.with_status(200), *tenant);

    let patch =
        json!({ "name": "Acme AS", "billing": { "vatId": null, "address": "Road 1\nOslo" } });
    let changed = client.patch("/tenants/acme", patch).await.with_status(200);
    assert_eq!(
        changed["billing"],
        json!({ "company": "Acme Ltd", "email": "pay@acme.example", "address": "Road 1\nOslo" })
    );
    assert_eq!((&changed["name"], &changed["version"]), (&json!("Acme AS"), &json!(2)));
    assert_eq!((&changed["plan"], &changed["id"]), (&json!("pro"), &tenant["id"]));
    for nothing in [json!({}), json!({ "name": "Acme AS" })] {
        let answer = client.patch("/tenants/acme", nothing).await;
        assert_eq!(answer.with_status(200), changed);
    }
    client.get("/tenants/nowhere").await.problem(404, "not_found");
    client.patch("/tenants/nowhere", json!({ "plan": "pro" })).await.problem(404, "not_found");
    assert_eq!(verbs(client.all("&tenantSlug=acme").await), ["tenant.created", "tenant.updated"]);
    server.stop().await;
}

pub(crate) async fn lists_come_in_pages_by_slug(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    let client = &server.client;
    make_partner(client, "p-1").await;
    for n in 0..7 {
        make_tenant(client, &format!("t-{n}")).await;
        make_partner(client, &format!("q-{n}")).await;
    }
    for n in [1, 3, 4] {
        let attach = json!({ "partnerId": "p-1" });
        client.patch(&format!("/tenants/t-{n}"), attach).await.with_status(200);
    }
    client.act("/tenants/t-5/suspend").await.with_status(200);
    client.delete("/tenants/t-4").await.with_status(200);
    let everybody: Vec<_> = (0..7).map(|n| format!("t-{n}")).collect();
    for limit in [1, 2, 3, 7, 8, 500] {
        let tenants = pages(client, "/tenants", "tenants", limit).await;
        assert_eq!(texts(&tenants, "slug"), everybody, "{limit}");
        let theirs = pages(client, "/partners/p-1/tenants", "tenants", limit).await;
        assert_eq!(texts(&theirs, "slug"), ["t-1", "t-3", "t-4"]);
        assert_eq!(pages(client, "/partners", "partners", limit).await.len(), 8);
    }
    for (status, expected) in [("suspended", &["t-5"][..]), ("deleted", &["t-4"]), ("active", &[])]
    {
        let tenants = pages(client, &format!("/tenants?status={status}"), "tenants", 2).await;
        assert_eq!(texts(&tenants, "slug"), expected, "{status}");
    }
    assert_eq!(pages(client, "/tenants?status=pending", "tenants", 2).await.len(), 5);
    client.get("/partners/nobody/tenants").await.problem(404, "not_found");
    server.stop().await;
}

pub(crate) async fn a_partner_is_attached_by_id_or_slug_and_their_customers_are_counted(
    engine: Engine,
) {
    let server = Server::on(engine, &[]).await;
    let client = &server.client;
    let partner = make_partner(client, "reseller").await;
    assert_eq!(
        (&partner["status"], &partner["marginPct"]),
        (&json!("active"), &json!(0.0)),
        "{partner}"
    );
    for slug in ["acme", "beta", "gone"] {
        make_tenant(client, slug).await;
    }
    let customers = async || client.get("/partners/reseller").await.json["customers"].clone();
    assert_eq!(customers().await, 0);
    for (slug, by) in
        [("acme", &partner["slug"]), ("beta", &partner["id"]), ("gone", &partner["id"])]
    {
        let path = format!("/tenants/{slug}");
        let attached = client.patch(&path, json!({ "partnerId": by })).await.with_status(200);
        assert_eq!(attached["partnerId"], partner["id"]);
    }
    client.delete("/tenants/gone").await.with_status(200);
    assert_eq!(customers().await, 2, "a deleted tenant is not a customer");
    let listed = client.get("/partners").await.with_status(200);
    assert_eq!(listed["partners"][0]["customers"], 2);
    for detach in [json!({ "partnerId": null }), json!({ "partnerId": null })] {
        let detached = client.patch("/tenants/beta", detach).await.with_status(200);
        assert_eq!(detached.get("partnerId"), None);
    }
    assert_eq!(customers().await, 1);

    let patch = json!({ "marginPct": 12.5, "contactInfo": { "phone": "+47 1" } });
    let changed = client.patch("/partners/reseller", patch).await.with_status(200);
    assert_eq!(changed["contactInfo"], json!({ "phone": "+47 1" }));
    let ended = client.delete("/partners/reseller").await.with_status(200);
    assert_eq!((&ended["status"], &ended["version"]), (&json!("terminated"), &json!(3)));
    assert_eq!(client.delete("/partners/reseller").await.with_status(200), ended);
    client.patch("/partners/reseller", json!({ "name": "x" })).await.problem(409, "state_conflict");
    let answer = client.patch("/tenants/beta", json!({ "partnerId": "reseller" })).await;
    assert!(answer.problem(409, "state_conflict").contains("terminated"));
    let new = json!({ "slug": "late", "name": "Late", "plan": "pro", "partnerId": "reseller" });
    client.post("/tenants", new).await.problem(409, "state_conflict");
    client.get("/tenants/late").await.problem(404, "not_found");
    let answer = client.patch("/tenants/beta", json!({ "partnerId": "nobody" })).await;
    assert!(answer.problem(404, "not_found").contains("partnerId"));
    // Existing tenants keep the partner until they are detached.
    let kept = client.patch("/tenants/acme", json!({ "plan": "basic" })).await.with_status(200);
    assert_eq!(kept["partnerId"], partner["id"]);

    let told = client.all("&partnerSlug=reseller&tenantSlug=beta").await;
    assert_eq!(
        verbs(told),
        ["tenant.updated", "tenant.updated"],
        "the partner's timeline shows the detachment"
    );
    assert_eq!(
        verbs(client.all("&action=partner.").await),
        ["partner.created", "partner.updated", "partner.terminated"]
    );
    server.stop().await;
}

pub(crate) async fn a_tenant_passes_from_status_to_status_as_far_as_it_may(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    let client = &server.client;
    make_tenant(client, "acme").await;
    let resumed = client.act("/tenants/acme/resume").await;
    assert!(resumed.problem(409, "state_conflict").contains("pending"));
    let active = client.patch("/tenants/acme", json!({ "status": "active" })).await;
    assert_eq!(active.with_status(200)["status"], "active");
    for (action, status) in [
        ("resume", "active"),
        ("suspend", "suspended"),
        ("suspend", "suspended"),
        ("resume", "active"),
        ("suspend", "suspended"),
    ] {
        let tenant = client.act(&format!("/tenants/acme/{action}")).await.with_status(200);
        assert_eq!(tenant["status"], status, "{action}");
    }
    let patched = client.patch("/tenants/acme", json!({ "status": "active" })).await;
    assert!(patched.problem(409, "state_conflict").contains("resume"));
    for status in ["pending", "deleted"] {
        let patched = client.patch("/tenants/acme", json!({ "status": status })).await;
        assert!(patched.problem(400, "field_invalid").contains("status"), "{status}");
    }
    let deleted = client.delete("/tenants/acme").await.with_status(200);
    assert_eq!(deleted["status"], "deleted");
    assert_eq!(client.get("/tenants/acme").await.with_status(200), deleted);
    assert_eq!(client.delete("/tenants/acme").await.with_status(200), deleted);
    for action in ["suspend", "resume"] {
        let answer = client.act(&format!("/tenants/acme/{action}")).await;
        assert!(answer.problem(409, "state_conflict").contains("deleted"), "{action}");
    }
    client.patch("/tenants/acme", json!({ "name": "x" })).await.problem(409, "state_conflict");
    let again = json!({ "slug": "acme", "name": "Acme", "plan": "pro" });
    assert!(client.post("/tenants", again).await.problem(409, "already_exists").contains("slug"));
    for action in ["suspend", "resume"] {
        let answer = client.act(&format!("/tenants/nowhere/{action}")).await;
        answer.problem(404, "not_found");
    }
    client.delete("/tenants/nowhere").await.problem(404, "not_found");
    assert_eq!(
        verbs(client.all("&tenantSlug=acme").await),
        [
            "tenant.created",
            "tenant.updated",
            "tenant.suspended",
            "tenant.resumed",
            "tenant.suspended",
            "tenant.deleted"
        ]
    );
    server.stop().await;
}

pub(crate) async fn a_domain_belongs_to_one_tenant(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    let client = &server.client;
    let owns = |slug: &str, domain: &str| json!({ "slug": slug, "name": slug, "plan": "pro", "domains": [domain] });
    client.post("/tenants", owns("acme", "acme.example")).await.with_status(201);
    let answer = client.post("/tenants", owns("beta", "Acme.Example")).await;
    let detail = answer.problem(409, "already_exists");
    assert!(detail.contains("domains") && detail.contains("acme.example"), "{detail}");
    client.get("/tenants/beta").await.problem(404, "not_found");
    client.post("/tenants", owns("beta", "beta.example")).await.with_status(201);
    let take = json!({ "domains": ["beta.example", "acme.example"] });
    client.patch("/tenants/beta", take.clone()).await.problem(409, "already_exists");
    assert_eq!(client.get("/tenants/beta").await.json["domains"], json!(["beta.example"]));
    client.delete("/tenants/acme").await.with_status(200);
    client.patch("/tenants/beta", take).await.with_status(200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_out_of_bounds_is_refused_by_field_and_bound() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    make_tenant(client, "acme").await;
    make_partner(client, "reseller").await;
    let before = (
        client.get("/tenants").await.json,
        client.get("/partners").await.json,
        client.all("").await,
    );
    let long = "s".repeat(64);
    for slug in ["", "-a", "a-", "A", "a_b", "a.b", "å", "a b", "a\u{0}", &long] {
        for path in ["/tenants", "/partners"] {
            let mut body = json!({ "slug": slug, "name": "n" });
            if path == "/tenants" {
                body["plan"] = "pro".into();
            }
            let answer = client.post(path, body).await;
            let detail = answer.problem(400, "field_invalid");
            assert!(detail.starts_with("slug must be 1 to 63"), "{path} {slug:?}: {detail}");
        }
    }
    for domain in ["", ".", "a..b", "-a.example", "a_b.example", "a b", "a.example..", &long] {
        let answer = client.patch("/tenants/acme", json!({ "domains": [domain] })).await;
        let detail = answer.problem(400, "field_invalid");
        assert!(detail.contains("domains") && detail.contains("must be"), "{domain:?}: {detail}");
        let answer = client.patch("/partners/reseller", json!({ "domain": domain })).await;
        assert!(answer.problem(400, "field_invalid").contains("domain must be"), "{domain:?}");
    }
    let many: Vec<_> = (0..=100).map(|n| format!("d{n}.example")).collect();
    for (body, words) in [
        (json!({ "domains": ["b\u{fffd}cher.example"] }), &["domains", "xn--"][..]),
        (json!({ "domains": many }), &["domains", "at most 100"]),
        (json!({ "domains": ["a.example", "A.example"] }), &["domains", "repetition"]),
        (json!({ "domains": "a.example" }), &["domains", "sequence"]),
        (json!({ "domains": null }), &["domains"]),
        (json!({ "name": "" }), &["name", "1 to 200"]),
        (json!({ "name": null }), &["name"]),
        (json!({ "name": "n".repeat(201) }), &["name", "1 to 200"]),
        (json!({ "plan": "Pro!" }), &["plan", "1 to 63"]),
        (json!({ "status": "gone" }), &["status"]),
        (json!({ "partnerId": 7 }), &["partnerId"]),
        (json!({ "partnerID": "reseller" }), &["partnerID", "partnerId"]),
        (json!({ "slug": "other" }), &["slug"]),
        (json!({ "id": "1" }), &["id"]),
        (json!({ "version": 1 }), &["version"]),
        (json!({ "billing": { "email": "nobody" } }), &["billing.email", "@"]),
        (json!({ "billing": { "iban": "x" } }), &["billing", "iban"]),
        (json!({ "billing": { "vatId": 7 } }), &["billing.vatId"]),
        (json!([]), &["JSON object"]),
    ] {
        let answer = client.patch("/tenants/acme", body.clone()).await;
        let detail = answer.problem(400, "field_invalid");
        assert!(words.iter().all(|word| detail.contains(word)), "{body}: {detail}");
    }
    for (body, word) in [
        (json!({}), "slug"),
        (json!({ "slug": "new", "name": "n" }), "plan"),
        (json!({ "slug": "new", "name": "n", "plan": "p", "status": "deleted" }), "status"),
        (json!({ "slug": "new", "name": "n", "plan": "p", "version": 9 }), "version"),
        (json!({ "slug": 7, "name": "n", "plan": "p" }), "slug"),
        (json!(["new", "n", "p"]), "JSON object"),
    ] {
        let answer = client.post("/tenants", body.clone()).await;
        let detail = answer.problem(400, "field_invalid");
        assert!(detail.contains(word), "{body}: {detail}");
    }
    for (body, words) in [
        (json!({ "marginPct": -0.1 }), &["marginPct", "0 to 100"][..]),
        (json!({ "marginPct": 100.1 }), &["marginPct", "0 to 100"]),
        (json!({ "marginPct": "10" }), &["marginPct"]),
        (json!({ "marginPct": null }), &["marginPct"]),
        (json!({ "contactInfo": { "email": "@" } }), &["contactInfo.email"]),
        (json!({ "contactInfo": { "fax": "1" } }), &["contactInfo", "fax"]),
        (json!({ "contactInfo": ["Ana"] }), &["contactInfo", "an object"]),
        (json!({ "billingInfo": [] }), &["billingInfo", "an object"]),
        (json!({ "status": "terminated" }), &["status"]),
        (json!({ "customers": 7 }), &["customers"]),
    ] {
        let answer = client.patch("/partners/reseller", body.clone()).await;
        let detail = answer.problem(400, "field_invalid");
        assert!(words.iter().all(|word| detail.contains(word)), "{body}: {detail}");
    }
    let after = (
        client.get("/tenants").await.json,
        client.get("/partners").await.json,
        client.all("").await,
    );
    assert_eq!(after, before);
    server.stop().await;
}

pub(crate) async fn users_are_listed_by_their_logins_and_deactivated(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    let client = &server.client;
    make_tenant(client, "acme").await;
    let embedder = Embedder::open(&server).await;
    let by = Edit::by(Actor::system());
    let acme = embedder.directory.store().tenant(TenantKey::Slug("acme")).await.unwrap().unwrap();
    let login = |ms: i64| Timestamp::from_millis(1_790_000_000_000 + ms);
    let mut ids = Vec::new();
    for (n, last_login_at) in
        [login(5), None, login(9), login(5), login(7), None].into_iter().enumerate()
    {
        let user = NewUser {
            email: Some(format!("u{n}@acme.example")),
            identities: vec![Identity { system: "ocis".into(), id: format!("o-{n}") }],
            tenant_ids: if n % 2 == 0 { vec![acme.id.clone()] } else { Vec::new() },
            platform_admin: n == 2,
            last_login_at,
            ..NewUser::new("https://id.example", format!("s-{n}"))
        };
        ids.push(embedder.directory.create_user(user, &by).await.unwrap().id);
    }
    // Of users with equal times, the one with the greater id, created later, comes first.
    for limit in [1, 2, 4, 6, 7] {
        let users = pages(client, "/users", "users", limit).await;
        assert_eq!(texts(&users, "subject"), ["s-2", "s-4", "s-3", "s-0", "s-5", "s-1"], "{limit}");
        let users = pages(client, "/tenants/acme/users", "users", limit).await;
        assert_eq!(texts(&users, "subject"), ["s-2", "s-4", "s-0"], "{limit}");
    }
    client.get("/tenants/nowhere/users").await.problem(404, "not_found");

    let path = format!("/users/{}/deactivate", ids[2]);
    let user = client.act(&path).await.with_status(200);
    assert_eq!((&user["status"], &user["platformAdmin"]), (&json!("deactivated"), &json!(false)));
    assert_eq!(client.act(&path).await.with_status(200), user);
    client.act("/users/nobody/deactivate").await.problem(404, "not_found");
    let events = client.all("&action=user.deactivated").await;
    assert_eq!(events.len(), 1);
    assert_eq!(
        (&events[0]["resourceId"], &events[0]["tenantSlug"]),
        (&json!(ids[2]), &json!("acme"))
    );
    // Another program sees the change at once.
    let seen = embedder.directory.store().user(UserKey::Id(&ids[2])).await.unwrap().unwrap();
    assert!(!seen.is_active());
    embedder.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_that_no_list_gave_is_refused() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    client
        .post("/tenants", json!({"slug": "acme", "name": "Acme", "plan": "pro"}))
        .await
        .with_status(201);
    client.post("/partners", json!({"slug": "nordic", "name": "Nordic"})).await.with_status(201);
    for path in ["/tenants", "/partners", "/partners/nordic/tenants", "/tenants/acme/users"] {
        for cursor in ["x", "zzz", "-x", "Acme", "", &"a".repeat(64)] {
            let answer = client.get(&format!("{path}?cursor={cursor}")).await;
            answer.problem(400, "cursor_invalid");
        }
    }
    client.get("/tenants?cursor=acme").await.with_status(200);
    client.get("/partners?cursor=nordic").await.with_status(200);
    server.stop().await;
}

//! The OpenAPI document, compared with the router and its responses.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection};

use crate::support::{Answer, Server};

fn document() -> Value {
    serde_json::from_str(include_str!("../../openapi.json")).unwrap()
}

/// Checks a response against the document: the route documents the status, and the body matches the
/// schema without unknown members.
pub(crate) fn check(method: &str, route: &str, answer: &Answer) {
    let problems = problems(method, route, answer);
    assert!(problems.is_empty(), "{method} {route}: {problems:?}: {}", answer.json);
}

fn problems(method: &str, route: &str, answer: &Answer) -> Vec<String> {
    let mut document = document();
    let mut response = &document["paths"][route][method]["responses"][answer.status.as_str()];
    if let Some(reference) = response["$ref"].as_str() {
        response = document.pointer(&reference[1..]).unwrap();
    }
    let schema = match &response["content"] {
        Value::Null if response.is_object() && answer.json.is_null() => return Vec::new(),
        content => content[answer.header("content-type")]["schema"].clone(),
    };
    if !schema.is_object() {
        return vec![format!("no such answer: {answer:?}")];
    }
    let components = document["components"].take();
    let schema =
        json!({ "allOf": [schema], "unevaluatedProperties": false, "components": components });
    let validator =
        jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap();
    validator.iter_errors(&answer.json).map(|problem| problem.to_string()).collect()
}

/// The routes in the source files, each with its methods.
fn routes() -> BTreeSet<(String, String)> {
    let mut routes = BTreeSet::new();
    let sources = sources("api") + &sources("webhooks") + &sources("ofrep");
    for route in sources.split(".route(").skip(1) {
        let route = route.split(".route").next().unwrap().split("\n}").next().unwrap();
        let path = route.split('"').nth(1).unwrap();
        for method in ["get", "post", "patch", "put", "delete"] {
            if route.contains(&format!("{method}(")) {
                routes.insert((path.to_owned(), method.to_owned()));
            }
        }
    }
    routes
}

fn sources(room: &str) -> String {
    let folder = format!("{}/src/{room}", env!("CARGO_MANIFEST_DIR"));
    let mut all = String::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let path = if path.is_dir() { path.join("mod.rs") } else { path };
        all += &std::fs::read_to_string(path).unwrap();
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_has_every_route_and_no_other() {
    let server = Server::start(&[]).await;
    let client = server.client.clone();
    let answer = client.get("/openapi.json").await;
    assert_eq!(answer.header("content-type"), "application/json");
    let document = answer.with_status(200);
    assert_eq!(document, self::document());
    let mut documented = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys().filter(|name| *name != "parameters") {
            documented.insert((path.clone(), method.clone()));
        }
    }
    assert_eq!(documented, routes());
    for (path, method) in documented {
        let place = path.replace(['{', '}'], "");
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let response = client.request(method.clone(), &place).send().await.unwrap();
        let status = response.status();
        assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        if status == StatusCode::NOT_FOUND {
            let text = response.text().await.unwrap();
            assert!(!text.contains("there is nothing at this path"), "{method} {path}");
        }
    }
    // Every reference resolves.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_as_the_document_says() {
    let server = Server::start(&[]).await;
    let none = Value::Null;
    let flag = json!({ "key": "k", "description": "d", "state": "rollout", "pct": 1,
                       "scope": { "plans": ["pro"], "environments": ["staging"] },
                       "options": { "seed": "s", "pctHundredths": 25, "requireActiveTenant": true,
                                    "expiresAt": "2026-01-01T00:00:00Z" } });
    let tenant = json!({ "slug": "acme", "name": "Acme", "plan": "pro", "status": "active",
                         "partnerId": "nordic", "domains": ["acme.example"],
                         "billing": { "company": "Acme" } });
    let partner = json!({ "slug": "nordic", "name": "N", "domain": "nordic.example",
                          "contactInfo": { "name": "Ana" } });
    let acme = json!({ "tenantSlug": "acme" });
    let staging = json!({ "tenantSlug": "acme", "environment": "staging" });
    for (status, method, path, route, body) in [
        (200, "get", "/health", "/health", &none),
        (201, "post", "/partners", "/partners", &partner),
        (201, "post", "/tenants", "/tenants", &tenant),
        (409, "post", "/tenants", "/tenants", &tenant),
        // An empty result matches both schemas.
        (200, "post", "/flags/evaluate", "/flags/evaluate", &acme),
        (200, "post", "/flags/evaluate?explain=true", "/flags/evaluate", &acme),
        (201, "post", "/flags", "/flags", &flag),
        (409, "post", "/flags", "/flags", &flag),
        (400, "post", "/flags", "/flags", &json!({ "key": "l", "pct": 101 })),
        (201, "post", "/flags", "/flags", &json!({ "key": "l", "state": "on" })),
        (200, "get", "/flags/k", "/flags/{key}", &none),
        (404, "get", "/flags/none", "/flags/{key}", &none),
        (200, "post", "/flags/evaluate", "/flags/evaluate", &staging),
        (200, "post", "/flags/evaluate?explain=true", "/flags/evaluate", &acme),
        (200, "post", "/flags/evaluate?explain=true", "/flags/evaluate", &staging),
        (404, "post", "/flags/evaluate", "/flags/evaluate", &json!({ "tenantSlug": "x" })),
        (200, "get", "/flags?report=true", "/flags", &none),
        (200, "get", "/flags", "/flags", &none),
        (400, "get", "/flags?report=perhaps", "/flags", &none),
        (
            200,
            "post",
            "/flags/k/preview",
            "/flags/{key}/preview",
            &json!({ "pct": 100, "environment": "staging" }),
        ),
        (200, "post", "/flags/new/preview", "/flags/{key}/preview", &json!({ "state": "on" })),
        (400, "post", "/flags/k/preview", "/flags/{key}/preview", &json!({ "pct": -1 })),
        (200, "patch", "/flags/k?environment=staging", "/flags/{key}", &json!({ "pct": 100 })),
        (200, "patch", "/flags/k", "/flags/{key}", &json!({ "note": "why", "description": "e" })),
        (404, "patch", "/flags/none", "/flags/{key}", &json!({ "pct": 1 })),
        (200, "get", "/flags/k", "/flags/{key}", &none),
        (200, "post", "/flags/k/kill", "/flags/{key}/kill", &json!({ "note": "now" })),
        (404, "post", "/flags/none/kill", "/flags/{key}/kill", &json!({})),
        (204, "delete", "/flags/k", "/flags/{key}", &none),
        (404, "delete", "/flags/k", "/flags/{key}", &none),
        (200, "get", "/tenants", "/tenants", &none),
        (200, "get", "/tenants/acme", "/tenants/{slug}", &none),
        (200, "patch", "/tenants/acme", "/tenants/{slug}", &json!({ "plan": "basic" })),
        (200, "post", "/tenants/acme/suspend", "/tenants/{slug}/suspend", &none),
        (200, "post", "/tenants/acme/resume", "/tenants/{slug}/resume", &none),
        (200, "get", "/tenants/acme/users", "/tenants/{slug}/users", &none),
        (200, "delete", "/tenants/acme", "/tenants/{slug}", &none),
        (200, "get", "/partners", "/partners", &none),
        (200, "get", "/partners/nordic", "/partners/{slug}", &none),
        (200, "get", "/partners/nordic/tenants", "/partners/{slug}/tenants", &none),
        (200, "patch", "/partners/nordic", "/partners/{slug}", &json!({ "name": "M" })),
        (200, "delete", "/partners/nordic", "/partners/{slug}", &none),
        (200, "get", "/users", "/users", &none),
        (404, "post", "/users/none/deactivate", "/users/{id}/deactivate", &none),
        (201, "post", "/audit", "/audit", &json!({ "action": "thing.done" })),
        (200, "get", "/audit", "/audit", &none),
        (400, "get", "/audit?limit=0", "/audit", &none),
        (200, "get", "/ingest", "/ingest", &none),
    ] {
        let asked = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let request = match body {
            Value::Null => server.client.request(asked, path),
            body => server.client.document(asked, path, body.to_string()),
        };
        let answer = server.client.send(request).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {answer:?}");
        check(method, route, &answer);
    }
    // A version in `If-Match` that is not the current one.
    let stale = server.client.document(Method::PATCH, "/flags/l", r#"{"state":"off"}"#);
    let answer = server.client.send(stale.header("If-Match", "\"7\"")).await;
    assert_eq!(answer.status, 412);
    check("patch", "/flags/{key}", &answer);
    // An undocumented member is detected.
    let mut answer = server.client.get("/flags/l").await;
    check("get", "/flags/{key}", &answer);
    answer.json["more"] = json!(1);
    assert_eq!(problems("get", "/flags/{key}", &answer).len(), 1);
    answer.status = StatusCode::IM_A_TEAPOT;
    assert_eq!(problems("get", "/flags/{key}", &answer).len(), 1);
    // A flag that can't be read.
    let mut database = SqliteConnection::connect(&server.url()).await.unwrap();
    let broken =
        "UPDATE dezky_flags SET flag = replace(flag, '\"on\"', '\"perhaps\"') WHERE key = 'l'";
    assert_eq!(sqlx::query(broken).execute(&mut database).await.unwrap().rows_affected(), 1);
    for (method, path, route) in [
        (Method::GET, "/flags/l", "/flags/{key}"),
        (Method::PATCH, "/flags/l", "/flags/{key}"),
        (Method::POST, "/flags/l/preview", "/flags/{key}/preview"),
    ] {
        let answer = server.client.send(server.client.document(method.clone(), path, "{}")).await;
        answer.problem(409, "state_conflict");
        check(&method.as_str().to_lowercase(), route, &answer);
    }
    let text = server.client.request(Method::POST, "/flags").body("{}");
    let answer = server.client.send(text).await;
    assert_eq!(answer.status, 415);
    check("post", "/flags", &answer);
    server.stop().await;
}

/// The schema of a body, with references resolved.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).unwrap(),
        None => schema,
    }
}

/// Variants of `base` that each violate one constraint of the schema: an unknown member, a string
/// one character too long or of the wrong format, a number out of range, a list with one entry too
/// many; in nested objects too.
fn broken(document: &Value, schema: &Value, base: &Value) -> Vec<(String, Value)> {
    let schema = resolved(document, schema);
    let mut all = Vec::new();
    let mut with = |name: &str, what: &str, value: Value| {
        let mut changed = base.clone();
        changed[name] = value;
        all.push((format!("{name}: {what}"), changed));
    };
    if schema["additionalProperties"] == false {
        with("nobodyKnowsThis", "unknown", json!(1));
    }
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        let member = resolved(document, member);
        if let Some(most) = member["maxLength"].as_u64() {
            let most = usize::try_from(most).unwrap();
            with(name, "too long", json!("a".repeat(most + 1)));
        }
        if member["minLength"].as_u64() > Some(0) {
            with(name, "empty", json!(""));
        }
        if member["pattern"].is_string() {
            with(name, "another form", json!("Ä b"));
        }
        if let Some(most) = member["maximum"].as_f64() {
            with(name, "too large", json!(most + 1.0));
        }
        if let Some(least) = member["minimum"].as_f64() {
            with(name, "too small", json!(least - 1.0));
        }
        if let Some(most) = member["maxItems"].as_u64() {
            let items: Vec<_> = (0..=most).map(|n| format!("x{n}.example")).collect();
            with(name, "too many", json!(items));
        }
        if member["properties"].is_object() {
            let inner = base.get(name).cloned().unwrap_or_else(|| json!({}));
            for (what, value) in broken(document, member, &inner) {
                with(name, &what, value);
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_document_bounds_the_server_refuses() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    let document = document();
    let tenant = json!({ "slug": "acme", "name": "Acme", "plan": "pro" });
    let partner = json!({ "slug": "nordic", "name": "N" });
    client.post("/tenants", tenant).await.with_status(201);
    client.post("/partners", partner).await.with_status(201);
    client.post("/flags", json!({ "key": "k" })).await.with_status(201);
    let before = client.all("").await;
    let (mut tried, mut bare) = (0, Vec::new());
    for (method, path, route, base) in [
        (
            Method::POST,
            "/tenants",
            "/tenants",
            json!({ "slug": "new", "name": "N", "plan": "pro" }),
        ),
        (Method::PATCH, "/tenants/acme", "/tenants/{slug}", json!({})),
        (Method::POST, "/partners", "/partners", json!({ "slug": "new", "name": "N" })),
        (Method::PATCH, "/partners/nordic", "/partners/{slug}", json!({})),
        (Method::POST, "/flags", "/flags", json!({ "key": "new" })),
        (Method::PATCH, "/flags/k", "/flags/{key}", json!({})),
        (Method::POST, "/flags/k/kill", "/flags/{key}/kill", json!({})),
        (Method::POST, "/flags/evaluate", "/flags/evaluate", json!({ "tenantSlug": "acme" })),
        (Method::POST, "/audit", "/audit", json!({ "action": "a.b" })),
    ] {
        let operation = &document["paths"][route][method.as_str().to_lowercase()];
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        let schema = if schema["oneOf"].is_array() { &schema["oneOf"][0] } else { schema };
        if resolved(&document, schema)["additionalProperties"] != false {
            bare.push(path);
        }
        for (what, body) in broken(&document, schema, &base) {
            tried += 1;
            let answer = client.send(client.document(method.clone(), path, body.to_string())).await;
            // A name of the wrong format or length matches no document.
            let is_unknown = answer.status == 404
                && ["partnerId", "tenantSlug"].iter().any(|name| what.starts_with(name));
            assert!(is_unknown || answer.status == 400, "{method} {path}: {what}: {answer:?}");
            check(&method.as_str().to_lowercase(), route, &answer);
        }
    }
    assert!(bare.is_empty(), "without additionalProperties: false: {bare:?}");
    assert!(tried > 100, "{tried}");
    assert_eq!(client.all("").await, before, "nothing was changed");
    let unknown = json!({ "slug": "b", "name": "B", "plan": "pro", "partnerId": "nobody" });
    let answer = client.post("/tenants", unknown).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    check("post", "/tenants", &answer);
    server.stop().await;
}

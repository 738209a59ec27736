//! Previews and reports of the tenants that a flag's change affects, and flags in files.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use reqwest::Method;
use reqwest::header::IF_MATCH;
use serde_json::{Value, json};

use crate::support::{Client, Engine, Server, program, refusal, run, stdout, verbs};

/// Creates twenty tenants on two plans, every third with a partner, every fourth pending, and a
/// deleted one.
async fn tenants(client: &Client) -> Vec<String> {
    let partner = json!({ "slug": "reseller", "name": "Reseller" });
    client.post("/partners", partner).await.with_status(201);
    let mut slugs = Vec::new();
    for n in 0..20 {
        let slug = format!("tenant-{n:02}");
        let plan = if n % 2 == 0 { "pro" } else { "basic" };
        let status = if n % 4 == 0 { "pending" } else { "active" };
        let mut tenant = json!({ "slug": slug, "name": "T", "plan": plan, "status": status });
        if n % 3 == 0 {
            tenant["partnerId"] = "reseller".into();
        }
        client.post("/tenants", tenant).await.with_status(201);
        slugs.push(slug);
    }
    client
        .post("/tenants", json!({ "slug": "gone", "name": "G", "plan": "pro" }))
        .await
        .with_status(201);
    let gone = client.delete("/tenants/gone").await.status;
    assert!(gone.is_success(), "{gone}");
    slugs
}

/// The tenants for whom the flag is on.
async fn on_for(client: &Client, tenants: &[String], flag: &str) -> BTreeSet<String> {
    let mut on = BTreeSet::new();
    for slug in tenants {
        let question = json!({ "tenantSlug": slug, "environment": "production" });
        let values = client.post("/flags/evaluate", question).await.with_status(200);
        if values[flag] == true {
            on.insert(slug.clone());
        }
    }
    on
}

fn slugs(flipped: &Value) -> BTreeSet<String> {
    let tenants = flipped["tenants"].as_array().unwrap();
    let slugs: BTreeSet<_> =
        tenants.iter().map(|tenant| tenant["slug"].as_str().unwrap().to_owned()).collect();
    assert_eq!(flipped["count"], slugs.len());
    slugs
}

pub(crate) async fn a_change_reaches_exactly_whom_its_preview_names(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    let client = &server.client;
    let tenants = tenants(client).await;
    let mut on = BTreeSet::new();
    for (version, patch) in [
        json!({ "state": "rollout", "pct": 30 }),
        json!({ "pct": 60, "options": { "pctHundredths": 50 } }),
        json!({ "scope": { "partnerSlugs": ["reseller"], "environments": ["production"] } }),
        json!({ "state": "targeted", "scope": { "plans": ["pro"], "partnerSlugs": [] } }),
        json!({ "options": { "requireActiveTenant": true } }),
        json!({ "state": "on", "options": { "requireActiveTenant": false } }),
        json!({ "state": "off", "note": "kill-switch" }),
    ]
    .into_iter()
    .enumerate()
    {
        let mut body = patch.clone();
        body["environment"] = "production".into();
        let listed = client.get("/flags").await.with_status(200);
        let events = client.all("").await.len();
        let preview = client.post("/flags/k/preview", body).await;
        assert_eq!(client.get("/flags").await.with_status(200), listed, "it changes nothing");
        assert_eq!(client.all("").await.len(), events);
        let made = if version == 0 {
            let mut new = patch;
            new["key"] = "k".into();
            assert_eq!(preview.header("etag"), "", "there is no flag yet");
            client.post("/flags", new).await.with_status(201)
        } else {
            assert_eq!(preview.header("etag"), format!("\"{version}\""));
            let path = "/flags/k?environment=production";
            let request = client.document(Method::PATCH, path, patch.to_string());
            let if_match = version.to_string();
            client.send(request.header(IF_MATCH, if_match)).await.with_status(200)
        };
        let preview = preview.with_status(200);
        let now = on_for(client, &tenants, "k").await;
        assert_eq!(slugs(&preview["gains"]), &now - &on, "{made}");
        assert_eq!(slugs(&preview["loses"]), &on - &now, "{made}");
        assert_eq!((&preview["of"], &preview["environment"]), (&json!(20), &json!("production")));
        assert_eq!(
            (&preview["beforeOn"], &preview["afterOn"]),
            (&json!(on.len()), &json!(now.len()))
        );
        assert_eq!(preview["byPlan"]["pro"]["of"], 10);
        let summary = preview["summary"].as_str().unwrap();
        assert!(summary.starts_with(&format!("~{} of 20 tenants", now.len())), "{summary}");
        let flipped = made.get("flipped");
        assert_eq!(flipped, (version > 0).then_some(&preview), "the response reports the effect");
        on = now;
    }
    assert!(on.is_empty());
    // A change that can't affect any tenant reports nothing, nor does reading a flag.
    let told = client.patch("/flags/k", json!({ "description": "told" })).await.with_status(200);
    assert_eq!(told.get("flipped"), None);
    assert_eq!(client.get("/flags/k").await.with_status(200), told);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preview_out_of_bounds_is_refused_like_the_change() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    client.post("/flags", json!({ "key": "k" })).await.with_status(201);
    let ask = async |key: &str, if_match: Option<&str>, body: Value| {
        let path = format!("/flags/{key}/preview");
        let request = client.document(Method::POST, &path, body.to_string());
        client.send(if_match.iter().fold(request, |r, value| r.header(IF_MATCH, *value))).await
    };
    for (key, body, word) in [
        ("k", json!({ "pct": 101 }), "pct must be"),
        ("k", json!({ "pct": 100, "options": { "pctHundredths": 1 } }), "options.pctHundredths"),
        ("k", json!({ "key": "k" }), "key is not a field"),
        ("k", json!({ "environment": 7 }), "environment must be text"),
        ("k", json!({ "environment": "e".repeat(129) }), "128 bytes"),
        ("new", json!({ "key": "other" }), "key must be the key in the path"),
        ("new", json!({ "key": 7 }), "key must be a string"),
        ("new", json!({ "note": "x" }), "note is not a field"),
        ("No", json!({ "state": "on" }), "key must be 1 to 64"),
        ("k", json!([]), "JSON object"),
    ] {
        let answer = ask(key, None, body.clone()).await;
        let detail = answer.problem(400, "field_invalid");
        assert!(detail.contains(word), "{body}: {detail}");
    }
    let stale = ask("k", Some("2"), json!({ "pct": 1 })).await;
    stale.problem(412, "version_mismatch");
    assert_eq!(stale.json["current"]["version"], 1);
    ask("k", Some("x"), json!({ "pct": 1 })).await.problem(400, "header_invalid");
    ask("new", Some("1"), json!({ "pct": 1 })).await.problem(404, "not_found");
    assert_eq!(ask("k", Some("*"), json!({ "pct": 1 })).await.with_status(200)["of"], 0);
    let long = format!("/flags/k?environment={}", "e".repeat(129));
    client.patch(&long, json!({ "state": "on" })).await.problem(400, "field_invalid");
    client.patch("/flags/k?why=1", json!({ "state": "on" })).await.problem(400, "query_invalid");
    assert_eq!(client.get("/flags/k").await.json["version"], 1);
    server.stop().await;
}

/// Each client reads the flag, adds itself, and retries on a version mismatch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_fifty_clients_with_if_match_none_loses_a_change() {
    let server = Server::start(&[]).await;
    server.client.post("/flags", json!({ "key": "k" })).await.with_status(201);
    let editors: Vec<_> = (0..50)
        .map(|n| {
            let client = server.client.clone();
            tokio::spawn(async move {
                loop {
                    let read = client.get("/flags/k").await;
                    let mut slugs = read.json["scope"]["tenantSlugs"].as_array().unwrap().clone();
                    slugs.push(format!("tenant-{n:02}").into());
                    let body = json!({ "scope": { "tenantSlugs": slugs } }).to_string();
                    let request = client.document(Method::PATCH, "/flags/k", body);
                    let request = request.header(IF_MATCH, read.header("etag"));
                    let answer = client.send(request).await;
                    if answer.status == 412 {
                        answer.problem(412, "version_mismatch");
                        continue;
                    }
                    return answer.with_status(200)["version"].as_u64().unwrap();
                }
            })
        })
        .collect();
    let mut versions = Vec::new();
    for editor in editors {
        versions.push(editor.await.unwrap());
    }
    versions.sort_unstable();
    assert_eq!(versions, (2..=51).collect::<Vec<_>>(), "gapless, each once");
    let flag = server.client.get("/flags/k").await.with_status(200);
    let all: Vec<_> = (0..50).map(|n| json!(format!("tenant-{n:02}"))).collect();
    assert_eq!(flag["scope"]["tenantSlugs"], json!(all));
    for pair in flag["history"].as_array().unwrap().windows(2) {
        assert_eq!(pair[0]["changes"][0]["from"], pair[1]["changes"][0]["to"]);
    }
    let events = verbs(server.client.all("&resourceId=k").await);
    assert_eq!((events.len(), events[0].as_str()), (51, "flag.created"));
    assert!(events[1..].iter().all(|verb| verb == "flag.updated"));
    server.stop().await;
}

/// Runs the program on the store, and reads what it prints.
fn flags(store: &str, arguments: &[&str]) -> Value {
    let output = run(&[&["flags"], arguments, &["--json", "--store", store]].concat(), &[]);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(store: &str, arguments: &[&str], status: i32, word: &str) {
    let output = run(&[&["flags"], arguments, &["--store", store]].concat(), &[]);
    let said = refusal(&output, status);
    assert!(said.contains(word), "{arguments:?}: {said}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flags_are_previewed_exported_and_imported_on_the_command_line() {
    let server = Server::start(&[]).await;
    let tenants = tenants(&server.client).await;
    let store = server.url();
    let chat = json!({
        "key": "chat", "state": "rollout", "pct": 12, "scope": { "environments": ["production"] },
        "options": { "pctHundredths": 50, "seed": "s", "requireActiveTenant": false },
    });
    server.client.post("/flags", chat).await.with_status(201);

    let raised = flags(&store, &["preview", "chat", "--pct", "100", "--in", "production"]);
    assert_eq!((&raised["of"], &raised["afterOn"]), (&json!(20), &json!(20)));
    let nowhere = flags(&store, &["preview", "chat", "--pct", "100"]);
    assert_eq!((&nowhere["afterOn"], &nowhere["environment"]), (&json!(0), &Value::Null));
    let new = flags(&store, &["preview", "new", "--state", "targeted", "--plan", "pro"]);
    assert_eq!((&new["gains"]["count"], &new["byPlan"]["pro"]["gains"]), (&json!(10), &json!(10)));
    let shown = run(&["flags", "preview", "new", "--state", "on", "--store", &store], &[]);
    let shown = stdout(&shown);
    let table = shown.strip_prefix("the flag new does not exist yet: this previews a new one\n");
    assert!(
        table.is_some_and(|t| t.starts_with("new: ~20 of 20 tenants: 20 gain it, 0 lose it\n")),
        "{shown}"
    );
    assert!(shown.contains("  gain: tenant-00, tenant-01"), "{shown}");
    refused(&store, &["preview", "No", "--state", "on"], 2, "key must be");
    let below = run(&["flags", "preview", "chat", "--pct", "-1", "--store", &store], &[]);
    assert_eq!(below.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&below.stderr).contains("it must be 0 to 100"));
    for (key, definition, note) in [
        ("on", ["--state", "on", "--plan", "pro"].as_slice(), "note: on is for everybody"),
        (
            "targeted",
            &["--state", "targeted"],
            "note: targeted with an empty scope is on for nobody",
        ),
        ("off", &["--pct", "0.5"], "note: the percentage counts in the state rollout alone"),
        ("fine", &["--state", "rollout", "--pct", "5"], ""),
    ] {
        let key = format!("hint-{key}");
        let args = [&["flags", "set", &key, "--create", "--store", &store], definition].concat();
        let told = stdout(&run(&args, &[]));
        assert_eq!(told.lines().nth(1).is_some(), !note.is_empty(), "{told}");
        assert!(told.lines().nth(1).unwrap_or_default().starts_with(note), "{told}");
        stdout(&run(&["flags", "remove", &key, "--store", &store], &[]));
    }
    let both = ["flags", "preview", "chat", "--file", "x"];
    assert_eq!(run(&both, &[]).status.code(), Some(2));
    assert_eq!(run(&["flags", "preview"], &[]).status.code(), Some(2));
    let table = run(&["flags", "list", "--store", &store], &[]);
    let table = stdout(&table);
    assert!(table.contains("12.5") && table.contains("seed=s"), "{table}");
    let table = stdout(&run(
        &[
            "flags",
            "eval",
            "--tenant",
            "tenant-00",
            "--environment",
            "production",
            "--store",
            &store,
        ],
        &[],
    ));
    assert!(table.contains("threshold") && table.contains("12.5"), "{table}");

    // Importing an export changes nothing.
    let out = server.folder.path().join("flags.json");
    let told = flags(&store, &["export", "--out", text(&out)]);
    assert_eq!(told["flags"], 1);
    let exported: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!(exported, flags(&store, &["export"]));
    assert_eq!(exported["flags"][0], server.client.get("/flags/chat").await.json);
    let mode = std::fs::metadata(&out).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // An existing link is not followed, and no device is replaced.
    let sibling = server.folder.path().join("flags.json.new");
    std::fs::write(server.folder.path().join("other"), "of somebody else").unwrap();
    std::os::unix::fs::symlink("other", &sibling).unwrap();
    flags(&store, &["export", "--out", text(&out)]);
    assert!(std::fs::symlink_metadata(&out).unwrap().is_file() && !sibling.exists());
    let other = std::fs::read_to_string(server.folder.path().join("other")).unwrap();
    assert_eq!(other, "of somebody else");
    let socket = server.folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    refused(&store, &["export", "--out", text(&socket)], 2, "not a regular file");
    assert!(!std::fs::metadata(&socket).unwrap().is_file());
    let again = flags(&store, &["import", text(&out), "--overwrite"]);
    assert_eq!(again["flags"], json!({ "chat": { "outcome": "unchanged" } }));
    assert_eq!(flags(&store, &["preview", "--file", text(&out)])["flags"], json!({}));

    // A file by hand.
    let file = server.folder.path().join("hand.json");
    let write = |value: Value| std::fs::write(&file, value.to_string()).unwrap();
    write(json!({ "flags": [{ "key": "chat", "state": "on" }, { "key": "pay", "state": "on" }] }));
    let simulated = flags(&store, &["preview", "--file", text(&file), "--in", "production"]);
    assert_eq!(simulated["flags"]["pay"]["gains"]["count"], tenants.len());
    assert_eq!(simulated["flags"]["chat"]["afterOn"], 20);
    let one = ["preview", "--file", text(&file), "--tenant", "tenant-03"];
    assert_eq!(flags(&store, &one)["flags"]["pay"]["gains"]["tenants"][0]["slug"], "tenant-03");
    refused(&store, &["preview", "--file", text(&file), "--tenant", "no"], 1, "no such tenant");
    let eval = ["eval", "pay", "--tenant", "tenant-03", "--file", text(&file)];
    assert_eq!(flags(&store, &eval)["pay"]["reason"], "on");
    refused(&store, &eval[..4], 1, "no such flag");

    let planned = flags(&store, &["import", text(&file), "--dry-run", "--overwrite"]);
    assert_eq!(planned["flags"]["chat"]["outcome"], "updated");
    assert_eq!(server.client.get("/flags").await.json["flags"].as_array().unwrap().len(), 1);
    refused(&store, &["import", text(&file)], 1, "--overwrite");
    assert_eq!(server.client.get("/flags/chat").await.json["version"], 1);
    assert_eq!(server.client.get("/flags/pay").await.json["state"], "on");
    let over = ["import", text(&file), "--overwrite", "--note", "moved"];
    assert_eq!(flags(&store, &over)["flags"]["pay"]["outcome"], "unchanged");
    let chat = server.client.get("/flags/chat").await.json;
    assert_eq!((&chat["version"], &chat["history"][0]["note"]), (&json!(2), &json!("moved")));
    assert_eq!(chat["history"].as_array().unwrap().len(), 2);

    for (content, word) in [
        (json!({ "flags": [{ "key": "pay" }, { "key": "bad", "pct": 101 }] }), "bad: pct must be"),
        (json!({ "flags": [{ "key": "pay" }, { "key": "pay" }] }), "pay is given twice"),
        (json!({ "flags": [{ "kye": "a" }] }), "flags[0].key is missing, and there is kye"),
        (json!([]), "not a flag file"),
    ] {
        write(content);
        refused(&store, &["import", text(&file), "--overwrite"], 2, word);
    }
    // From a pipe.
    write(json!({ "flags": [{ "key": "pay", "state": "on" }] }));
    let piped = |content: &Path| {
        let input = std::fs::File::open(content).unwrap();
        let mut cat = std::process::Command::new("cat");
        let mut cat = cat.stdin(input).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut import = program(&["flags", "import", "-", "--json", "--store", &store]);
        let output = import.stdin(cat.stdout.take().unwrap()).output().unwrap();
        assert!(cat.wait().unwrap().success());
        output
    };
    let told: Value = serde_json::from_str(&stdout(&piped(&file))).unwrap();
    assert_eq!(told["flags"], json!({ "pay": { "outcome": "unchanged" } }));
    write(json!([]));
    let said = refusal(&piped(&file), 2);
    assert!(said.contains("-: ") && said.contains("not a flag file"), "{said}");
    let missing = server.folder.path().join("missing.json");
    refused(&store, &["import", text(&missing)], 2, "missing.json: the file can't be read");
    refused(
        &store,
        &["eval", "--tenant", "tenant-00", "--file", text(&missing)],
        2,
        "can't be read",
    );
    let unwritable = server.folder.path().join("no/flags.json");
    refused(&store, &["export", "--out", text(&unwritable)], 1, "the file can't be written");
    assert_eq!(server.client.get("/flags").await.json["flags"].as_array().unwrap().len(), 2);
    server.stop().await;
}

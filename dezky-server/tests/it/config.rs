//! The configuration: errors, precedence and warnings.

use std::path::{Path, PathBuf};

use crate::support::{program, refusal, run, stdout};

fn file(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("dezky.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// The refusal of `config check` for a file and an environment.
fn refused(text: &str, environment: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), text);
    let output = program(&["config", "check", "--config", path.to_str().unwrap()])
        .current_dir(folder.path())
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was created");
    refusal(&output, 2)
}

#[test]
fn mistakes_in_the_file_are_named_with_key_file_and_line() {
    for (text, line, words) in [
        ("\nlisten = \"nowhere\"", 2, &["listen", "127.0.0.1:8080"][..]),
        ("listen = 8080", 1, &["listen", "text"]),
        ("lisen = \"127.0.0.1:8080\"", 1, &["lisen", "did you mean listen"]),
        ("[stalwart.instances.eu]\n", 1, &["stalwart.instances.eu", "has no secret"]),
        ("[ocis]\n\npoll_secnds = 5", 3, &["ocis.poll_secnds", "did you mean ocis.poll_seconds"]),
        ("[ocis]\npoll_seconds = 0", 2, &["ocis.poll_seconds", "1 to 3600"]),
        ("[ocis]\npoll_seconds = -1", 2, &["ocis.poll_seconds", "whole number"]),
        (
            "[ocis]\nlog_path = \"a\"\nspaces = [\"acme\"]",
            3,
            &["ocis.spaces", "\"acme\"", "<space id>=<slug"],
        ),
        (
            "[ocis]\nlog_path = \"a\"\nspaces = [\"a=b\", \"a=c\"]",
            3,
            &["ocis.spaces", "a second time"],
        ),
        ("[ocis]\nspaces = [\"abc\"]", 2, &["ocis.spaces", "\"abc\""]),
        ("[ocis]\nspaces = [\"a=Not A Slug\"]", 2, &["ocis.spaces", "slug"]),
        ("[ocis]\nlog_path = \"\"", 2, &["ocis.log_path", "is empty"]),
        ("[spool]\npath = \"\"", 2, &["spool.path", "is empty"]),
        ("[flags]\nfile = \"\"", 2, &["flags.file", "is empty"]),
        ("[head]\npath = \"\"", 2, &["head.path", "is empty"]),
        ("[htp]\nidle_seconds = 5", 1, &["htp", "did you mean http?"]),
        ("[unheard]\nof = 5", 1, &["unheard", "config example"]),
        ("DEZKY_OPERATOR_TOKEN = \"p4ss\"", 1, &["a variable does not belong in the file"]),
        ("OCIS_AUDIT_LOG_PATH = \"a\"", 1, &["a variable does not belong in the file"]),
        ("[http]\nidle_seconds = -1", 2, &["http.idle_seconds", "whole number", " to "]),
        ("trusted_proxies = [\"::1\", \"x\"]", 1, &["trusted_proxies", "\"x\""]),
        ("[log]\nformat = \"xml\"", 2, &["log.format", "json"]),
        ("[log]\nlevel = \"chatty=loud\"", 2, &["log.level", "debug"]),
        ("ingest_enabled = \"no\"", 1, &["ingest_enabled", "true or false"]),
        ("trusted_proxies = [\"10.0.0.0/40\"]", 1, &["trusted_proxies", "10.0.0.0/8"]),
        ("store = \"dezky.db\"", 1, &["store", "sqlite://"]),
        ("store = \"mongodb://u:p4ss@db/x\"", 1, &["store.url", "DEZKY_STORE_PASSWORD"]),
        ("store = \"postgres://u:p4ss@db/x\"", 1, &["store.url", "password_file"]),
        ("[store]\nurl = \"postgres://db/x?password=p4ss\"", 2, &["store.url", "password_file"]),
        ("store = \"postgres://u:p4/ss@db/x\"", 1, &["store.url", "percent-encoded"]),
        ("store = \"mysql://u:p4ss@db/x\"", 1, &["store.url", "postgres://"]),
        ("store = 5", 1, &["store.url", "text"]),
        ("[store]\npassword = \"p4ss\"", 2, &["DEZKY_STORE_PASSWORD", "password_file"]),
        ("[store]\npooler = \"session\"", 2, &["store.pooler", "none or transaction"]),
        ("[store]\nmax_connections = 0", 2, &["store.max_connections", "1 to 1000"]),
        (
            "operator_token = \"p4ss\"",
            1,
            &["operator_token", "DEZKY_OPERATOR_TOKEN", "operator_token_file"],
        ),
        (
            "[stalwart]\nsecret = \"p4ss\"",
            2,
            &["stalwart.secret", "STALWART_WEBHOOK_SECRET", "secret_files"],
        ),
        ("[stalwart.instances.eu2]\nsecret = \"p4ss\"", 2, &["DEZKY_STALWART_EU2_SECRET"]),
        (
            "[stalwart.instances.eu2]\nsecret_file = \"/nowhere/p\"",
            2,
            &["eu2.secret_file", "/nowhere/p"],
        ),
        (
            "[stalwart.instances.EU]\nsecret_file = \"x\"",
            2,
            &["stalwart.instances.EU", "lower-case"],
        ),
        ("listen = \"a\"\nlisten = \"b\"", 2, &["duplicate"]),
        ("listen =", 1, &["TOML"]),
    ] {
        let said = refused(text, &[]);
        assert!(said.contains(&format!("dezky.toml line {line}")), "{said}");
        assert!(!said.contains("p4ss"), "{said}");
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}

#[test]
fn mistakes_in_the_environment_are_named() {
    for (variable, value, words) in [
        ("DEZKY_LISTN", "x", &["DEZKY_LISTN", "did you mean DEZKY_LISTEN"][..]),
        ("DEZKY_PORT", "8080", &["DEZKY_PORT"]),
        ("DEZKY_LISTEN", "8080", &["listen", "DEZKY_LISTEN"]),
        ("DEZKY_STORE", "file.db", &["store", "DEZKY_STORE", "sqlite://"]),
        ("DEZKY_STORE", "sqlite:///nowhere/at/all/x.db", &["store", "folder"]),
        ("DEZKY_STORE_PASSWORD", "p4ss", &["store.password", "a file takes no password"]),
        ("DEZKY_HEAD_PATH", "/nowhere/at/all/x.head", &["head.path", "folder"]),
        ("DEZKY_SPOOL_PATH", "/nowhere/at/all/x.spool", &["spool.path", "folder"]),
        ("DEZKY_SPOOL_PATH", "/", &["spool.path", "file"]),
        ("DEZKY_OPERATOR_TOKEN", "", &["DEZKY_OPERATOR_TOKEN", "empty"]),
        ("DEZKY_OPERATOR_TOKEN", "two words", &["DEZKY_OPERATOR_TOKEN", "spaces"]),
        ("DEZKY_OPERATOR_TOKEN_FILE", "/nowhere/t", &["operator_token_file", "/nowhere/t"]),
        ("STALWART_WEBHOOK_SECRET", "", &["STALWART_WEBHOOK_SECRET", "empty"]),
        ("DEZKY_STALWART_EU2_SECRET", "", &["DEZKY_STALWART_EU2_SECRET", "empty"]),
        ("DEZKY_STALWART_SECRET", "x", &["DEZKY_STALWART_SECRET", "did you mean"]),
        ("DEZKY_STALWART_WEBHOOK_SECRET", "x", &["STALWART_WEBHOOK_SECRET"]),
        ("DEZKY_LOG", "verbose", &["DEZKY_LOG", "info"]),
        ("AUDIT_INGEST_ENABLED", "maybe", &["AUDIT_INGEST_ENABLED", "true or false"]),
        ("DEZKY_OCIS_POLL_SECONDS", "soon", &["DEZKY_OCIS_POLL_SECONDS", "number"]),
        ("DEZKY_MAX_BODY_BYTES", "0", &["max_body_bytes", "DEZKY_MAX_BODY_BYTES"]),
        ("OCIS_AUDIT_LOG_PATH", "/", &["ocis.log_path", "folder"]),
        ("DEZKY_LISTEN", "0.0.0.0:8080", &["DEZKY_OPERATOR_TOKEN", "0.0.0.0:8080"]),
        ("DEZKY_LISTEN", "[::]:8080", &["DEZKY_OPERATOR_TOKEN"]),
    ] {
        let said = refused("", &[(variable, value)]);
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}

#[test]
fn mistakes_of_issuers_are_named() {
    let issuer = "[auth.issuers.main]\nissuer = \"https://id.example.com/a/\"\n";
    let audience = format!("{issuer}preset = \"keycloak\"\naudiences = [\"api\"]\n");
    for (text, words) in [
        ("[auth.issuers.main]\n".to_owned(), &["auth.issuers.main", "is empty", "audiences"][..]),
        (
            "[auth.issuers.main]\naudiences = [\"api\"]".into(),
            &["auth.issuers.main.issuer", "exact iss"],
        ),
        (issuer.to_owned(), &["auth.issuers.main", "has no preset", "authentik, keycloak"]),
        (format!("{issuer}preset = \"dex\""), &["auth.issuers.main", "has no audience"]),
        (audience.replace("keycloak", "okta"), &["main.preset", "\"okta\"", "authentik, keycloak"]),
        (format!("{audience}prset = \"dex\""), &["main.prset", "did you mean preset"]),
        (format!("{audience}algorithms = [\"HS256\"]"), &["main.algorithms", "\"HS256\"", "ES256"]),
        (format!("{audience}algorithms = [\"ES512\"]"), &["main.algorithms", "\"ES512\""]),
        (format!("{audience}algorithms = []"), &["main.algorithms", "is empty"]),
        (
            format!("{audience}operator_audiences = [\"x\"]"),
            &["operator_audiences", "\"x\"", "add it"],
        ),
        (format!("{audience}jwks_uri = \"http://id.example.com/\""), &["main.jwks_uri", "https"]),
        (format!("{audience}discovery_url = \"ftp://x/\""), &["main.discovery_url", "https"]),
        (format!("{audience}subject_claim = \"\""), &["main.subject_claim", "oid"]),
        (format!("{audience}subject_claim = \"email\""), &["main.subject_claim", "sub or oid"]),
        (format!("{audience}subject_claim = \"upn\""), &["main.subject_claim", "sub or oid"]),
        (format!("{audience}clients = [\"\"]"), &["main.clients", "1 to 512 bytes"]),
        (format!("{audience}require_at_jwt = \"yes\""), &["require_at_jwt", "true or false"]),
        (audience.replace("https:", "http:"), &["main.issuer", "https", "discovery_url"]),
        (audience.replace("/a/", "/{tenantid}/v2.0"), &["main.issuer", "template"]),
        (
            format!("{audience}{}", audience.replace("main", "twin")),
            &["configured twice", "id.example.com/a/"],
        ),
        ("[auth]\nissuers = 7".into(), &["auth.issuers"]),
    ] {
        let said = refused(&text, &[]);
        for word in words {
            assert!(said.contains(word), "{text}: {word}: {said}");
        }
    }
    let (issuer, audience) = ("AUTHENTIK_ISSUER", "AUTHENTIK_AUDIENCE");
    for (set, words) in [
        (
            &[(issuer, "https://id.example.com/a/")][..],
            &["auth.authentik_issuers", "AUTHENTIK_AUDIENCE"][..],
        ),
        (&[(audience, "api")], &["auth.authentik_audiences", "AUTHENTIK_ISSUER"]),
        (&[(issuer, "id.example.com"), (audience, "api")], &["auth.authentik_issuers", "https"]),
        (
            &[(issuer, "https://a.example/,https://a.example/"), (audience, "api")],
            &["configured twice"],
        ),
    ] {
        let said = refused("", set);
        for word in words {
            assert!(said.contains(word), "{set:?}: {word}: {said}");
        }
    }
}

#[test]
fn issuers_are_read_and_open_the_server_to_other_machines() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(
        folder.path(),
        "listen = \"0.0.0.0:8080\"\n[auth.issuers.entra]\npreset = \"entra\"\nissuer = \"https://login.microsoftonline.com/t/v2.0\"\naudiences = [\"api\", \"ops\"]\noperator_audiences = [\"ops\"]\n",
    );
    let set = [
        ("AUTHENTIK_ISSUER", "https://id.example.com/o/a/, https://id.example.com/o/b/"),
        ("AUTHENTIK_AUDIENCE", "dezky-portal,dezky-operator"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let settings = dezky_server::Settings::load(Some(&path), set, None).unwrap();
    let config = settings.config().unwrap();
    assert!(!config.is_open_to_others());
    let seen: Vec<_> = config
        .issuers
        .iter()
        .map(|issuer| {
            (
                issuer.profile.preset.as_str(),
                &*issuer.profile.issuer,
                issuer.profile.operator_audiences.join(","),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("authentik", "https://id.example.com/o/a/", "dezky-operator".to_owned()),
            ("authentik", "https://id.example.com/o/b/", "dezky-operator".to_owned()),
            ("entra", "https://login.microsoftonline.com/t/v2.0", "ops".to_owned()),
        ]
    );
    assert_eq!(config.issuers[2].profile.subject_claim, "oid");
}

#[test]
fn an_authentik_needs_its_url_and_its_token() {
    let url = ("DEZKY_AUTHENTIK_URL", "https://id.example.com");
    let token = ("DEZKY_AUTHENTIK_TOKEN", "k3y");
    for (set, words) in [
        (&[url][..], &["authentik.url", "DEZKY_AUTHENTIK_TOKEN"][..]),
        (&[token], &["authentik.token", "DEZKY_AUTHENTIK_URL"]),
        (&[("DEZKY_AUTHENTIK_URL", "id.example.com"), token], &["authentik.url", "https://"]),
        (&[("DEZKY_AUTHENTIK_URL", "https://u:p@id.example.com"), token], &["without a user"]),
        (&[("DEZKY_AUTHENTIK_URL", "https://id:99999"), token], &["authentik.url", "is not a URL"]),
        (&[("DEZKY_AUTHENTIK_URL", "https://[::1"), token], &["authentik.url", "is not a URL"]),
        (
            &[("DEZKY_AUTHENTIK_URL", "https://id.example.com/auth/api/v3/"), token],
            &["authentik.url", "without /api/v3"],
        ),
        (&[url, ("DEZKY_AUTHENTIK_TOKEN", "a b")], &["authentik.token", "ASCII"]),
        (&[url, token, ("DEZKY_POLL_SECONDS", "0")], &["DEZKY_POLL_SECONDS", "1 to 3600"]),
    ] {
        let said = refused("", set);
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert!(!said.contains("u:p") && !said.contains("k3y"), "{said}");
    }
    let folder = tempfile::tempdir().unwrap();
    let output = program(&["config", "check"])
        .current_dir(folder.path())
        .envs([url, token, ("DEZKY_POLL_SECONDS", "30")])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("k3y"));
}

#[test]
fn an_empty_secret_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    for text in ["", "\n", "\r\n"] {
        std::fs::write(&path, text).unwrap();
        let said = refused("", &[("DEZKY_STALWART_SECRET_FILES", path.to_str().unwrap())]);
        assert!(said.contains("stalwart.secret_files"), "{said}");
    }
}

#[test]
fn others_variables_are_let_be() {
    let folder = tempfile::tempdir().unwrap();
    let output = program(&["config", "check"])
        .current_dir(folder.path())
        .env("OCIS_AUDIT_LOG_PATH", "")
        .env("DEZKY_CONFIG", "")
        .env("DEZKY_SERVER_SERVICE_HOST", "10.0.0.1")
        .env("DEZKY_SERVER_SERVICE_PORT_HTTP", "80")
        .env("DEZKY_SERVER_PORT", "tcp://10.0.0.1:80")
        .env("DEZKY_SERVER_PORT_80_TCP_ADDR", "10.0.0.1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_example_says_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let example = stdout(&run(&["config", "example"], &[]));
    let path = file(folder.path(), &example);
    let check = |arguments: &[&str]| {
        let output = program(arguments).current_dir(folder.path()).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success() && report["ok"] == true, "{output:?}");
        report["settings"].as_object().unwrap().clone()
    };
    let defaults = check(&["config", "check", "--json"]);
    let written = check(&["config", "check", "--json", "--config", path.to_str().unwrap()]);
    assert_eq!(defaults.keys().collect::<Vec<_>>(), written.keys().collect::<Vec<_>>());
    for (name, setting) in &defaults {
        assert_eq!(setting["value"], written[name]["value"], "{name}");
        assert_eq!(setting["from"], "default");
        assert!(written[name]["from"].as_str().unwrap().contains("dezky.toml line"));
    }
    // If every commented key is uncommented, all keys are known.
    let uncommented: String = example
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(key) if key.contains(" = ") || key.starts_with('[') => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let said = refused(&uncommented, &[]);
    assert!(said.contains("can't be read"), "{said}");
}

#[test]
fn the_environment_beats_the_file_and_no_secret_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "listen = \"127.0.0.1:1111\"\n[ocis]\npoll_seconds = 7\n");
    let secret = folder.path().join("eu2");
    std::fs::write(&secret, "p4ss-of-eu2\n").unwrap();
    let output = program(&["config", "check", "--json", "--store", "sqlite://other.db"])
        .current_dir(folder.path())
        .env("DEZKY_CONFIG", path)
        .env("DEZKY_LISTEN", "127.0.0.1:2222")
        .env("DEZKY_STORE", "sqlite://env.db")
        .env("STALWART_WEBHOOK_SECRET", "p4ss-one")
        .env("DEZKY_STALWART_SECRET_FILES", secret)
        .env("DEZKY_OPERATOR_TOKEN", "p4ss-two")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = stdout(&output);
    assert!(!text.contains("p4ss"), "{text}");
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let setting = |name: &str| report["settings"][name].clone();
    assert_eq!(setting("listen")["value"], "127.0.0.1:2222");
    assert_eq!(setting("listen")["from"], "environment DEZKY_LISTEN");
    assert_eq!(setting("store.url")["value"], "sqlite://other.db");
    assert_eq!(setting("ocis.poll_seconds")["value"], 7);
    assert_eq!(setting("operator_token")["value"], "(secret)");
}

#[test]
fn a_store_takes_its_password_from_the_environment_or_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(
        folder.path(),
        "[store]\nurl = \"postgres://dezky@db.example/x?sslmode=verify-full\"\npassword_file = \"secret\"\n",
    );
    let check = |environment: &[(&str, &str)]| {
        program(&["config", "check", "--config", path.to_str().unwrap()])
            .current_dir(folder.path())
            .envs(environment.iter().copied())
            .output()
            .unwrap()
    };
    assert!(refusal(&check(&[]), 2).contains("password_file"), "there is none yet");
    std::fs::write(folder.path().join("secret"), "p4ss@w/rd\n").unwrap();
    for environment in [&[][..], &[("DEZKY_STORE_PASSWORD", "p4ss")]] {
        let output = check(environment);
        let text = stdout(&output);
        assert!(output.status.success() && !text.contains("p4ss"), "{output:?}");
        assert!(text.contains("\"postgres://dezky@db.example/x\""), "{text}");
    }
    let twice = [("DEZKY_STORE", "postgres://u:p4ss@db/x")];
    assert!(refusal(&check(&twice), 2).contains("has a password already"));
}

/// The warnings of `config check`.
fn warnings(text: &str, environment: &[(&str, &str)], prepare: impl Fn(&Path)) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), text);
    prepare(folder.path());
    let output = program(&["config", "check", "--json", "--config", path.to_str().unwrap()])
        .current_dir(folder.path())
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    report["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap().into()).collect()
}

#[test]
fn a_secret_that_can_be_guessed_and_a_file_that_others_reach_are_warned_of() {
    let set_mode = |path: &Path, mode: u32| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let long = "0123456789abcdef";
    for (name, secret, is_weak) in [
        ("DEZKY_OPERATOR_TOKEN", "x", true),
        ("DEZKY_OPERATOR_TOKEN", &long[1..], true),
        ("DEZKY_OPERATOR_TOKEN", long, false),
        ("STALWART_WEBHOOK_SECRET", "x", true),
        ("STALWART_WEBHOOK_SECRET", long, false),
        ("DEZKY_STALWART_EU2_SECRET", "x", true),
        // 12 characters of base64 are 9 bytes of key.
        ("STALWART_WEBHOOK_SECRET", "whsec_0123456789ab", true),
        ("STALWART_WEBHOOK_SECRET", "whsec_AAAAAAAAAAAAAAAAAAAAAA==", false),
    ] {
        let found = warnings("", &[(name, secret)], |_| {});
        let about: Vec<_> = found.iter().filter(|w| w.contains("can be guessed")).collect();
        assert_eq!(about.len(), usize::from(is_weak), "{name}: {found:?}");
        assert!(about.iter().all(|w| w.contains("openssl") && w.contains(name)), "{about:?}");
    }
    let text = "[stalwart]\nsecret_files = [\"secret\"]";
    for (mode, word) in [
        (0o666, Some("replace")),
        (0o620, Some("replace")),
        (0o644, Some("read")),
        (0o640, None),
        (0o400, None),
    ] {
        let found = warnings(text, &[], |folder| {
            std::fs::write(folder.join("secret"), long).unwrap();
            set_mode(&folder.join("secret"), mode);
        });
        let about: Vec<_> = found.iter().filter(|w| w.contains("has mode")).collect();
        assert_eq!(about.len(), usize::from(word.is_some()), "{mode:o}: {found:?}");
        if let Some(word) = word {
            assert!(about[0].contains(word) && about[0].contains("chmod"), "{about:?}");
        }
    }
    for name in ["dezky.toml", "dezky.db", "dezky.db.head", "webhooks.spool"] {
        let found = warnings("[spool]\npath = \"webhooks.spool\"", &[], |folder| {
            let path = folder.join(name);
            std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
            if name == "dezky.db.head" {
                let (id, hash) = (uuid::Uuid::nil(), "0".repeat(64));
                let note =
                    serde_json::json!({"version": 1, "logId": id, "nextSeq": 0, "headHash": hash});
                std::fs::write(&path, note.to_string()).unwrap();
            }
            set_mode(&path, 0o666);
        });
        assert!(found.iter().any(|w| w.contains(name) && w.contains("0666")), "{name}: {found:?}");
    }
}

#[test]
fn a_blank_secret_is_refused() {
    for (name, text) in [
        ("STALWART_WEBHOOK_SECRET", "  "),
        ("DEZKY_STALWART_EU2_SECRET", "\t"),
        ("DEZKY_OPERATOR_TOKEN", " "),
    ] {
        let said = refused("", &[(name, text)]);
        assert!(said.contains(name), "{said}");
    }
}

/// Reading a device never ends, and reading a pipe without a writer never begins.
#[test]
fn only_regular_files_of_bounded_size_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let large = folder.path().join("large.toml");
    std::fs::write(&large, "#".repeat((4 << 20) + 1)).unwrap();
    for (path, words) in [
        (Path::new("/dev/zero"), "is not a regular file"),
        (&pipe, "is not a regular file"),
        (folder.path(), "is not a regular file"),
        (&large, "more than 4194304 bytes"),
    ] {
        let output = program(&["config", "check", "--config", path.to_str().unwrap()])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = refusal(&output, 2);
        assert!(said.contains(words), "{said}");
    }
    for path in ["/dev/zero", "/dev"] {
        let said = refused("", &[("DEZKY_OPERATOR_TOKEN_FILE", path)]);
        assert!(said.contains("is not a regular file"), "{said}");
    }
    let said = refused("", &[("DEZKY_OPERATOR_TOKEN_FILE", pipe.to_str().unwrap())]);
    assert!(said.contains("is not a regular file"), "{said}");
}

#[test]
fn many_sources_are_refused_by_their_number_and_the_last_is_found_at_once() {
    let declared = |count: usize| -> String {
        let source = |n: usize| format!("[sources.s{n}]\npath = \"/nowhere/{n}.log\"\n");
        (0..count).map(source).collect::<Vec<_>>().concat()
    };
    let said = refused(&declared(1_001), &[]);
    assert!(said.contains("1001 sources") && said.contains("at most 1000"), "{said}");
    let said = refused(&(declared(999) + "[sources.last]\npaht = \"x\""), &[]);
    assert!(said.contains("line 2000") && said.contains("did you mean path"), "{said}");
}

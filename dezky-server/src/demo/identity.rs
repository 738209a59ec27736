//! A simulated Authentik: a server that responds like the real one and is polled over HTTP.

use dezky_core::Timestamp;
use dezky_ingest::testkit::AuthentikDouble;
use serde_json::{Value, json};

use crate::failure::Failure;

/// Events in Authentik's real format: a login, an event without a user, a change by an
/// administrator, an impersonation, a custom action, an exception.
const EVENTS: &str = include_str!("data/authentik-events.json");

/// Key, name, e-mail, groups. The first group that is a tenant's slug determines the tenant of
/// the user's events.
const USERS: [(u64, &str, &str, &[&str]); 4] = [
    (42, "ana", "ana@acme.test", &["acme"]),
    (43, "gus", "gus@globex.test", &["globex", "everybody"]),
    (44, "ida", "ida@initech.test", &["initech"]),
    (5, "akadmin", "root@acme.test", &["authentik Admins", "dezky-platform-admins"]),
];

/// Time, user, action, context.
const LATER: [(&str, usize, &str, &str); 12] = [
    ("2026-11-21T23:58:02.113Z", 0, "login", r#"{"auth_method":"password"}"#),
    ("2026-11-21T23:58:40.007Z", 1, "login_failed", r#"{"username":"gus"}"#),
    ("2026-11-21T23:58:49.310Z", 1, "login", r#"{"auth_method":"auth_webauthn_pwl"}"#),
    ("2026-11-21T23:59:01Z", 1, "authorize_application", APPLICATION),
    ("2026-11-21T23:59:12.480Z", 2, "password_set", "{}"),
    ("2026-11-21T23:59:30.900Z", 3, "model_created", MODEL),
    ("2026-11-21T23:59:48.016Z", 2, "login", r#"{"auth_method":"password"}"#),
    ("2026-11-22T00:00:03.250Z", 0, "authorize_application", APPLICATION),
    ("2026-11-22T00:00:20.701Z", 3, "secret_view", r#"{"message":"Secret was viewed"}"#),
    ("2026-11-22T00:00:29.333Z", 2, "suspicious_request", r#"{"message":"state mismatch"}"#),
    ("2026-11-22T00:00:36.020Z", 1, "logout", "{}"),
    // An action of an unknown release.
    ("2026-11-22T00:00:41.500Z", 0, "passkey_enrolled", "{}"),
];
const APPLICATION: &str = r#"{"authorized_application":{"pk":"6a1f0c5e8a0142b59a406d1f0c5e8a01","app":"authentik_core","name":"Mail","model_name":"application"},"scopes":"openid email"}"#;
const MODEL: &str = r#"{"model":{"pk":"0d7c1e0a9f4b4c1d8a2e3f4051627385","app":"authentik_core","name":"initech","model_name":"group"}}"#;

/// The recurring events.
const FRESH: [(usize, &str, &str); 4] = [
    (0, "login", r#"{"auth_method":"password"}"#),
    (1, "login_failed", r#"{"username":"gus"}"#),
    (2, "authorize_application", APPLICATION),
    (1, "logout", "{}"),
];

/// The server with its events.
pub(super) struct Identity {
    double: AuthentikDouble,
}

impl Identity {
    /// Starts it with the bundled events.
    pub(super) async fn start() -> Result<Self, Failure> {
        let refused = |error: &dyn std::fmt::Display| {
            Failure::failed(format!("the simulated Authentik can't be started: {error}"))
        };
        let mut events: Vec<Value> =
            serde_json::from_str(EVENTS).map_err(|error| refused(&error))?;
        let later = LATER.iter().enumerate();
        events.extend(later.map(|(number, (created, user, action, context))| {
            event(
                &format!("7d1e6a40-1c2b-4f3a-9e5d-{number:012x}"),
                created,
                *user,
                action,
                context,
            )
        }));
        let double = AuthentikDouble::builder().events(events).start().await;
        let double = double.map_err(|error| refused(&error))?;
        double.add_group("authentik Admins", true);
        double.add_group("dezky-platform-admins", false);
        for group in ["acme", "everybody", "globex", "initech"] {
            double.add_group(group, false);
        }
        for (pk, _, _, groups) in USERS {
            double.set_user(pk, groups);
        }
        Ok(Self { double })
    }

    /// Its address and the token that it expects.
    pub(super) fn address(&self) -> (String, String) {
        (self.double.url().to_owned(), self.double.token())
    }

    /// Adds an event with the current time.
    pub(super) fn happen(&self, number: u64, now: Timestamp) {
        let (user, action, context) = FRESH[usize::try_from(number).unwrap_or(0) % FRESH.len()];
        // A version 4 key, like Authentik's, made from the time so that runs do not share keys.
        let pk = format!("{:08x}-0000-4000-8000-{:012x}", number & 0xffff_ffff, now.as_millis());
        self.double.insert(event(&pk, &now.to_string(), user, action, context));
    }
}

fn event(pk: &str, created: &str, user: usize, action: &str, context: &str) -> Value {
    let (user_pk, username, email, _) = USERS[user];
    let mut context: Value = serde_json::from_str(context).unwrap_or_default();
    context["http_request"] = json!({
        "args": {}, "path": "/api/v3/flows/executor/default-authentication-flow/",
        "method": "GET", "request_id": pk.replace('-', ""), "user_agent": "Mozilla/5.0",
    });
    json!({
        "pk": pk,
        "user": {"pk": user_pk, "email": email, "username": username},
        "action": action,
        "app": "authentik.events.signals",
        "context": context,
        "client_ip": "203.0.113.10",
        "created": created,
        "expires": "2027-11-22T00:00:00Z",
        "brand": {
            "pk": "0d7c1e0a9f4b4c1d8a2e3f4051627384", "app": "authentik_brands",
            "name": "authentik-default", "model_name": "brand",
        },
    })
}

//! The settings in a form that may be shown: without secrets, with warnings about weak ones.

use std::path::Path;

use super::files::{self, Holds};
use super::keys::{self, Kind};
use super::layers::{Setting, Value};
use super::settings::{Settings, read_secret};
use super::store;

/// Shorter secrets can be guessed; in bytes.
const WEAK_SECRET_BYTES: usize = 16;

/// A key that is set.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Described {
    /// Its name as in the file, with tables and key joined by dots.
    pub name: String,
    /// Its value.
    pub value: serde_json::Value,
    /// Its origin.
    pub from: String,
}

impl Settings {
    /// Every key that is set: its name, its value without secrets, and its origin.
    pub fn describe(&self) -> Vec<Described> {
        let described = |(name, Setting { value, origin }): (&str, &Setting)| Described {
            name: name.to_owned(),
            value: match (self.layers.keys().kind_of(name), value) {
                (Some(Kind::Secret), _) => "(secret)".into(),
                // The URL may contain a password.
                (_, Value::Text(text)) if name == store::URL => Self::shown_url(text).into(),
                (_, Value::Text(text)) => text.as_str().into(),
                (_, Value::List(list)) => list.clone().into(),
                (_, Value::Number(number)) => (*number).into(),
                (_, Value::Switch(on)) => (*on).into(),
                (_, Value::Table(table)) => table.clone(),
            },
            from: origin.to_string(),
        };
        self.layers.iter().map(described).collect()
    }

    /// Warnings about weak secrets, and about files that other users can read or replace. Shows no
    /// secret.
    pub(super) fn weaknesses(&self) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(path) = &self.file
            && let Some(weakness) = files::weakness(path, Holds::Settings)
        {
            found.push(format!("--config {}: {weakness}", path.display()));
        }
        for (name, Setting { value, origin }) in self.layers.iter() {
            let Some(holder) = self.layers.keys().holder_of_secret(name) else { continue };
            let texts: &[String] = match value {
                Value::Text(text) => std::slice::from_ref(text),
                Value::List(texts) => texts,
                _ => continue,
            };
            for text in texts {
                let mut weak = |at: String, secret: &str| {
                    // Databases and Authentik choose their own.
                    if keys::is_ours_to_choose(name) && key_bytes(secret) < WEAK_SECRET_BYTES {
                        found.push(format!(
                            "{at}: the secret is shorter than {WEAK_SECRET_BYTES} bytes and can be guessed: make one by openssl rand -hex 32"
                        ));
                    }
                };
                if holder == Kind::Secret {
                    weak(format!("{name} ({origin})"), text);
                    continue;
                }
                let at = || format!("{name} ({origin}): {text}");
                if let Ok(secret) = read_secret(name, origin, text) {
                    weak(at(), &secret);
                }
                if let Some(weakness) = files::weakness(Path::new(text), Holds::Secret) {
                    found.push(format!("{}: {weakness}", at()));
                }
            }
        }
        found
    }
}

/// The number of key bytes in a secret. After the prefix of Standard Webhooks it is base64.
fn key_bytes(secret: &str) -> usize {
    let Some(encoded) = secret.strip_prefix("whsec_") else { return secret.len() };
    let digits = encoded.trim_end_matches('=');
    let is_base64 =
        digits.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'-' | b'_'));
    if is_base64 { digits.len() * 3 / 4 } else { encoded.len() }
}

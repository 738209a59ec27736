//! `[stalwart]`: the webhooks of Stalwart.

use std::collections::BTreeMap;
use std::time::Duration;

use dezky_ingest::signature::{Secret, Secrets};

use super::keys::{self, Key, Kind, key};
use super::settings::{Settings, refused};
use crate::failure::Failure;

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("stalwart.secret", "STALWART_WEBHOOK_SECRET", Kind::Secret, "", "",
        "The secret that signs the webhook of Stalwart. Without any secret there is no endpoint."),
    key("stalwart.secret_files", "DEZKY_STALWART_SECRET_FILES", Kind::List, "[]", "",
        "Files with one secret each, in addition to or instead of the variable: a running\nStalwart signs with the old secret until it restarts, so keep both for a while."),
    key("stalwart.max_age_seconds", "DEZKY_STALWART_MAX_AGE_SECONDS", Kind::Number(0, 315_360_000), "0", "",
        "Older events go to the quarantine, up to {max}; 0: none. Use more than Stalwart's\ndiscardAfter, for which it keeps events that it could not send."),
    key("stalwart.max_body_events", "DEZKY_STALWART_MAX_BODY_EVENTS", Kind::Number(1, 10_000_000), "131072", "",
        "The maximum number of events in a body, {min} to {max}; a body with more gets 413, and no part of\nit is stored. 16 MiB hold about 110000 of Stalwart's smallest events."),
];

impl Settings {
    pub(super) fn stalwart_max_age(&self) -> Result<Option<Duration>, Failure> {
        let seconds = self.number("stalwart.max_age_seconds")?;
        Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
    }

    pub(super) fn stalwart(&self) -> Result<BTreeMap<String, Secrets>, Failure> {
        let mut endpoints = BTreeMap::new();
        let mut add = |source: String, secrets: Vec<Secret>| {
            // Without a secret there is no endpoint.
            if let Ok(secrets) = Secrets::new(secrets) {
                endpoints.insert(source, secrets);
            }
        };
        add("stalwart".into(), self.secrets("stalwart", &["secret", "secret_files"])?);
        for instance in self.instances()? {
            let prefix = format!("{}.{instance}", keys::INSTANCES);
            let secrets = self.secrets(&prefix, &["secret", "secret_file", "secret_files"])?;
            if secrets.is_empty() {
                return Err(Failure::usage(format!(
                    "{prefix}: has no secret: set {} or secret_file",
                    self.layers.keys().variable_of(&format!("{prefix}.secret"))
                )));
            }
            add(format!("stalwart:{instance}"), secrets);
        }
        Ok(endpoints)
    }

    /// The names of the further instances, by the keys that are set for them.
    fn instances(&self) -> Result<Vec<&str>, Failure> {
        let prefix = format!("{}.", keys::INSTANCES);
        let mut names: Vec<&str> = Vec::new();
        for (name, setting) in self.layers.iter() {
            let Some(instance) = name.strip_prefix(&prefix).and_then(|rest| rest.split('.').next())
            else {
                continue;
            };
            if instance == "webhook" {
                let problem = "is not a name for an instance: the secret of /ingest/stalwart/webhook is STALWART_WEBHOOK_SECRET";
                return Err(refused(name, &setting.origin, problem));
            }
            if !is_instance(instance) {
                let problem = "an instance has 1 to 40 lower-case letters, digits and -";
                return Err(refused(name, &setting.origin, problem));
            }
            if !names.contains(&instance) {
                names.push(instance);
            }
        }
        Ok(names)
    }

    /// The secrets of one endpoint, in the order of `leaves`.
    fn secrets(&self, prefix: &str, leaves: &[&str]) -> Result<Vec<Secret>, Failure> {
        self.secrets_of(prefix, leaves, |text| Secret::new(text))
    }
}

fn is_instance(name: &str) -> bool {
    (1..=40).contains(&name.len())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

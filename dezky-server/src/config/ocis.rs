//! `[ocis]`: the audit log of oCIS.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use dezky_core::directory::is_slug;

use super::keys::{Key, Kind, LINE_BYTES, SECONDS, key};
use super::settings::{Settings, refused};
use crate::failure::Failure;

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("ocis.log_path", "OCIS_AUDIT_LOG_PATH", Kind::Text, "", "\"/var/log/ocis/audit.log\"",
        "The audit log file of oCIS to follow."),
    key("ocis.poll_seconds", "DEZKY_OCIS_POLL_SECONDS", SECONDS, "5", "",
        "The interval between reads, {min} to {max}."),
    key("ocis.max_line_bytes", "DEZKY_OCIS_MAX_LINE_BYTES", LINE_BYTES, "1048576", "",
        "In longer lines the long values are cut, {min} to {max}. Lines that are not JSON objects\nor longer than {max} go to the quarantine."),
    key("ocis.service_accounts", "DEZKY_OCIS_SERVICE_ACCOUNTS", Kind::List, "[]", "",
        "The ids of oCIS' service accounts (OCIS_SERVICE_ACCOUNT_ID): their actions\nare recorded as the system's, not a person's."),
    key("ocis.spaces", "DEZKY_OCIS_SPACES", Kind::List, "[]", "",
        "Tenants of spaces: \"<space id>=<tenant's slug>\" each, the id with or without its\nstorage (<storage>$<space>). Overrides the names of spaces, which users can change."),
];

/// The audit log of oCIS.
#[derive(Debug, Clone)]
pub struct OcisLog {
    /// The live file.
    pub path: PathBuf,
    /// The interval between reads.
    pub poll: Duration,
    /// The bound of a line.
    pub max_line_bytes: usize,
    /// Tenants' slugs by the ids of spaces.
    pub spaces: BTreeMap<String, String>,
    /// The ids of the service accounts.
    pub service_accounts: BTreeSet<String>,
}

impl Settings {
    pub(super) fn ocis(&self) -> Result<Option<OcisLog>, Failure> {
        let poll = self.seconds("ocis.poll_seconds")?;
        let max_line_bytes = self.size("ocis.max_line_bytes")?;
        let spaces = self.ocis_spaces()?;
        let service_accounts = self.ocis_service_accounts()?;
        let Some(path) = self.path("ocis.log_path")? else { return Ok(None) };
        Ok(Some(OcisLog { path, poll, max_line_bytes, spaces, service_accounts }))
    }

    fn ocis_service_accounts(&self) -> Result<BTreeSet<String>, Failure> {
        let Some((list, origin)) = self.layers.list("ocis.service_accounts") else {
            return Ok(BTreeSet::new());
        };
        let ids: BTreeSet<String> = list.iter().map(|id| id.trim().to_owned()).collect();
        if ids.len() > 100 || !ids.iter().all(|id| (1..=512).contains(&id.len())) {
            let problem = "must be at most 100 ids of 1 to 512 bytes".to_owned();
            return Err(refused("ocis.service_accounts", origin, problem));
        }
        Ok(ids)
    }

    fn ocis_spaces(&self) -> Result<BTreeMap<String, String>, Failure> {
        let mut spaces = BTreeMap::new();
        let Some((list, origin)) = self.layers.list("ocis.spaces") else { return Ok(spaces) };
        for entry in list {
            let refused =
                |problem: &str| refused("ocis.spaces", origin, format!("\"{entry}\" {problem}"));
            let (space, slug) = entry
                .rsplit_once('=')
                .map(|(space, slug)| (space.trim(), slug.trim()))
                .filter(|(space, slug)| !space.is_empty() && is_slug(slug))
                .ok_or_else(|| {
                    refused("must be <space id>=<slug of a tenant>, such as 4c510ada=acme")
                })?;
            if spaces.insert(space.to_owned(), slug.to_owned()).is_some() {
                return Err(refused("names a space a second time: give each space one slug"));
            }
        }
        Ok(spaces)
    }
}

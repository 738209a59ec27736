//! `[auth]`: the issuers whose access tokens are accepted.

use std::collections::BTreeSet;

use dezky_core::directory::MAX_SUBJECT_BYTES;

use super::keys::{self, Key, Kind, key};
use super::layers::Origin;
use super::settings::{Settings, refused};
use crate::auth::jwt::{Algorithm, Preset, Profile};
use crate::auth::oidc::{IssuerConfig, check_url};
use crate::failure::Failure;

/// The maximum number of issuers.
const MAX_ISSUERS: usize = 32;
/// The maximum number of items of a list, and their maximum length in bytes.
const MAX_ITEMS: usize = 100;
const MAX_ITEM_BYTES: usize = 512;

const AUTHENTIK_ISSUERS: &str = "auth.authentik_issuers";
const AUTHENTIK_AUDIENCES: &str = "auth.authentik_audiences";
const OPERATOR_AUDIENCES: &str = "auth.operator_audiences";

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key(OPERATOR_AUDIENCES, "DEZKY_OPERATOR_AUDIENCES", Kind::List, "[\"dezky-operator\"]", "",
        "The audiences that make a token an operator's, where an issuer accepts them. The\nuser must be a platform administrator as well."),
    key(AUTHENTIK_ISSUERS, "AUTHENTIK_ISSUER", Kind::List, "[]", "",
        "Issuers of Authentik whose access tokens are accepted, each exactly as in their iss,\nwith the slash at the end. Short for [auth.issuers.NAME] with the preset authentik."),
    key(AUTHENTIK_AUDIENCES, "AUTHENTIK_AUDIENCE", Kind::List, "[]", "",
        "The audiences of which a token of these issuers must have one: the ids of their\nclients."),
];

impl Settings {
    /// The issuers, each `iss` once.
    pub(crate) fn issuers(&self) -> Result<Vec<IssuerConfig>, Failure> {
        let mut issuers = self.authentik_issuers()?;
        let mut names: BTreeSet<&str> = BTreeSet::new();
        for (name, _) in self.layers.iter() {
            let Some(rest) = name.strip_prefix(keys::ISSUERS).and_then(|r| r.strip_prefix('.'))
            else {
                continue;
            };
            if let Some((issuer, _)) = rest.split_once('.')
                && names.insert(issuer)
            {
                issuers.push(self.issuer(&format!("{}.{issuer}", keys::ISSUERS))?);
            }
        }
        if issuers.len() > MAX_ISSUERS {
            return Err(Failure::usage(format!(
                "{}: {} issuers are configured: configure at most {MAX_ISSUERS}",
                keys::ISSUERS,
                issuers.len()
            )));
        }
        let mut known = BTreeSet::new();
        for IssuerConfig { profile, .. } in &issuers {
            if !known.insert(&profile.issuer) {
                return Err(Failure::usage(format!(
                    "{}: the issuer \"{}\" is configured twice: remove one",
                    keys::ISSUERS,
                    profile.issuer
                )));
            }
        }
        Ok(issuers)
    }

    fn authentik_issuers(&self) -> Result<Vec<IssuerConfig>, Failure> {
        let issuers = self.layers.list(AUTHENTIK_ISSUERS).filter(|(list, _)| !list.is_empty());
        let audiences = self.layers.list(AUTHENTIK_AUDIENCES).filter(|(list, _)| !list.is_empty());
        let (issuers, origin) = match (issuers, audiences) {
            (None, None) => return Ok(Vec::new()),
            (Some((_, origin)), None) => {
                let problem = "has no audience: set AUTHENTIK_AUDIENCE to the ids of the clients";
                return Err(refused(AUTHENTIK_ISSUERS, origin, problem));
            }
            (None, Some((_, origin))) => {
                let problem = "has no effect without an issuer: set AUTHENTIK_ISSUER";
                return Err(refused(AUTHENTIK_AUDIENCES, origin, problem));
            }
            (Some(issuers), Some(_)) => issuers,
        };
        let audiences = self.items(AUTHENTIK_AUDIENCES)?;
        let operator_audiences = self.common_operator_audiences(&audiences)?;
        issuers
            .iter()
            .map(|issuer| {
                check_issuer(issuer, false)
                    .map_err(|problem| refused(AUTHENTIK_ISSUERS, origin, problem))?;
                let mut profile = Profile::new(Preset::Authentik, issuer, "");
                profile.audiences.clone_from(&audiences);
                profile.operator_audiences.clone_from(&operator_audiences);
                Ok(IssuerConfig::new(profile))
            })
            .collect()
    }

    /// `[auth.issuers.NAME]`, whose name is `prefix`.
    fn issuer(&self, prefix: &str) -> Result<IssuerConfig, Failure> {
        let key = |leaf: &str| format!("{prefix}.{leaf}");
        let address = |leaf: &str| {
            let Some((url, origin)) = self.layers.text(&key(leaf)) else { return Ok(None) };
            check_url(url)
                .map_err(|problem| refused(&key(leaf), origin, format!("\"{url}\" {problem}")))?;
            Ok(Some(url.to_owned()))
        };
        let (discovery_url, jwks_uri) = (address("discovery_url")?, address("jwks_uri")?);
        let issuer = key("issuer");
        let (iss, origin) = self.layers.text(&issuer).ok_or_else(|| {
            Failure::usage(format!("{issuer}: is not set: set it to the exact iss of the tokens"))
        })?;
        let has_address = discovery_url.is_some() || jwks_uri.is_some();
        check_issuer(iss, has_address).map_err(|problem| refused(&issuer, origin, problem))?;

        let Some((name, at)) = self.layers.text(&key("preset")) else {
            let problem = format!(
                "has no preset, by which access tokens are told from others: set preset to one of {}",
                Preset::names()
            );
            return Err(refused(prefix, origin, problem));
        };
        let preset: Preset = name
            .parse()
            .map_err(|problem| refused(&key("preset"), at, format!("\"{name}\" {problem}")))?;
        let audiences = self.items(&key("audiences"))?;
        if audiences.is_empty() {
            let problem = "has no audience: set audiences to those of the tokens for this server";
            return Err(refused(prefix, origin, problem));
        }
        let mut profile = Profile::new(preset, iss, "");
        profile.operator_audiences = match self.layers.list(&key("operator_audiences")) {
            Some((_, origin)) => {
                let operators = self.items(&key("operator_audiences"))?;
                if let Some(other) = operators.iter().find(|one| !audiences.contains(one)) {
                    let problem = format!("\"{other}\" is not among the audiences: add it to them");
                    return Err(refused(&key("operator_audiences"), origin, problem));
                }
                operators
            }
            None => self.common_operator_audiences(&audiences)?,
        };
        profile.audiences = audiences;
        profile.clients = self.items(&key("clients"))?;
        if let Some((names, origin)) = self.layers.list(&key("algorithms")) {
            profile.algorithms = algorithms(&key("algorithms"), names, origin)?;
        }
        if let Some((claim, origin)) = self.layers.text(&key("subject_claim")) {
            // Names and e-mail addresses change, and can be given to another user.
            if !matches!(claim, "sub" | "oid") {
                let problem = "must be sub or oid: other claims, such as an e-mail address, can pass to another user";
                return Err(refused(&key("subject_claim"), origin, problem));
            }
            claim.clone_into(&mut profile.subject_claim);
        }
        profile.requires_at_jwt = self.layers.switch(&key("require_at_jwt"));
        let mut config = IssuerConfig::new(profile);
        (config.discovery_url, config.jwks_uri) = (discovery_url, jwks_uri);
        Ok(config)
    }

    /// A list of texts within bounds; empty if it is not set.
    fn items(&self, key: &str) -> Result<Vec<String>, Failure> {
        let Some((list, origin)) = self.layers.list(key) else { return Ok(Vec::new()) };
        if list.len() > MAX_ITEMS {
            let problem = format!("has {} items: at most {MAX_ITEMS} are possible", list.len());
            return Err(refused(key, origin, problem));
        }
        if list.iter().any(|item| item.is_empty() || item.len() > MAX_ITEM_BYTES) {
            let problem = format!("each item must have 1 to {MAX_ITEM_BYTES} bytes");
            return Err(refused(key, origin, problem));
        }
        Ok(list.to_vec())
    }

    /// Those of `auth.operator_audiences` that an issuer accepts.
    fn common_operator_audiences(&self, audiences: &[String]) -> Result<Vec<String>, Failure> {
        let mut common = self.items(OPERATOR_AUDIENCES)?;
        common.retain(|audience| audiences.contains(audience));
        Ok(common)
    }
}

/// Checks an issuer; without another address its document is below it.
fn check_issuer(issuer: &str, has_address: bool) -> Result<(), String> {
    if issuer.is_empty() || issuer.len() > MAX_SUBJECT_BYTES {
        return Err(format!(
            "must have 1 to {MAX_SUBJECT_BYTES} bytes: the exact iss of the tokens"
        ));
    }
    if issuer.contains('{') {
        return Err("is a template: name the issuer of one tenant, with its id".to_owned());
    }
    if has_address {
        return Ok(());
    }
    check_url(issuer).map_err(|problem| {
        format!("\"{issuer}\" {problem}, or set discovery_url or jwks_uri as well")
    })
}

fn algorithms(key: &str, names: &[String], origin: &Origin) -> Result<Vec<Algorithm>, Failure> {
    if names.is_empty() {
        return Err(refused(key, origin, "is empty: name one, such as ES256, or leave it out"));
    }
    let algorithm = |name: &String| {
        name.parse().map_err(|problem| refused(key, origin, format!("\"{name}\" {problem}")))
    };
    names.iter().map(algorithm).collect()
}

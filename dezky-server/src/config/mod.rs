//! Configuration: defaults, then a TOML file, then the environment, then the command line.
//!
//! A section is one file: its keys, with each key's range, and how they are read.
//! [`Settings`] holds the effective values and their origins; [`Config`] is the checked
//! configuration of a server. Secrets come from the environment or from separate files.

mod auth;
mod authentik;
mod check;
mod describe;
mod files;
mod flags;
mod head;
mod http;
mod keys;
mod layers;
mod log;
mod ocis;
mod paths;
mod server;
mod settings;
mod sources;
mod spool;
mod stalwart;
mod store;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use dezky::{Access, StoreConfig};
use dezky_core::SpoolConfig;
use dezky_ingest::signature::Secrets;

pub use self::authentik::AuthentikApi;
pub use self::describe::Described;
pub(crate) use self::files::{folder_of, read as read_file, read_input, reason};
pub use self::flags::FlagsConfig;
pub(crate) use self::head::NOT_A_HEAD_FILE;
pub(crate) use self::keys::{CONFIG_VARIABLE, FROM_VARIABLE, TO_VARIABLE};
use self::keys::{Key, Keys};
use self::layers::{Layers, Origin, Value};
pub use self::log::LogConfig;
pub use self::ocis::OcisLog;
pub use self::settings::Settings;
pub use self::sources::{FollowedFile, SourceConfig};
use crate::auth::oidc::IssuerConfig;
use crate::auth::token::OperatorToken;
use crate::failure::Failure;
use crate::http::client_address::Network;
use crate::http::limits::HttpLimits;

/// The keys of all sections, in the order of the example: those of the root first.
fn all_keys() -> Keys {
    static OPTIONS: LazyLock<Vec<Key>> = LazyLock::new(store::option_keys);
    static ALL: LazyLock<[&[Key]; 12]> = LazyLock::new(|| {
        [
            server::KEYS,
            auth::KEYS,
            http::KEYS,
            store::KEYS,
            &OPTIONS,
            head::KEYS,
            log::KEYS,
            spool::KEYS,
            flags::KEYS,
            stalwart::KEYS,
            ocis::KEYS,
            authentik::KEYS,
        ]
    });
    Keys(&*ALL)
}

/// The maximum size of the configuration file, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The checked configuration of a server.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The store of the log, and how it is used.
    pub store: StoreConfig,
    /// [`Access::Migrate`], or [`Access::Write`] if the server must not change the schema.
    pub access: Access,
    /// The file with the log's head, outside of the database.
    pub head_path: PathBuf,
    /// The operators' token; without one and without issuers every request from this machine is
    /// admitted.
    pub operator_token: Option<OperatorToken>,
    /// The issuers whose access tokens are accepted.
    pub issuers: Vec<IssuerConfig>,
    /// The proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<Network>,
    /// Whether workers run.
    pub ingest_enabled: bool,
    /// The largest body of a webhook.
    pub max_body_bytes: usize,
    /// The bounds of connections.
    pub http: HttpLimits,
    /// The time that requests and workers have to finish.
    pub shutdown_timeout: Duration,
    /// How logs are written.
    pub log: LogConfig,
    /// The spool that keeps pushed events while the store is unavailable.
    pub spool: Option<SpoolConfig>,
    /// How flags follow the store.
    pub flags: FlagsConfig,
    /// The maximum age of an event of Stalwart.
    pub stalwart_max_age: Option<Duration>,
    /// The maximum number of events in a body of Stalwart.
    pub stalwart_max_events: usize,
    /// Stalwart's endpoints: the secrets by source name, `stalwart` or `stalwart:eu2`.
    pub stalwart: BTreeMap<String, Secrets>,
    /// The audit log of oCIS to follow.
    pub ocis: Option<OcisLog>,
    /// The Authentik to poll.
    pub authentik: Option<AuthentikApi>,
    /// The declared sources, by name.
    pub sources: BTreeMap<String, SourceConfig>,
    /// Warnings about weak secrets, and about files that other users can read or replace.
    pub weaknesses: Vec<String>,
}

/// A configuration file with every key, its default and its variable.
pub fn example() -> String {
    all_keys().example()
}

impl Settings {
    /// Reads the file, if one is named, and `environment`. `store`, the option of the command
    /// line, takes precedence over both.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        store: Option<&str>,
    ) -> Result<Self, Failure> {
        let mut layers = Layers::defaults(all_keys())?;
        if let Some(path) = file {
            let text = files::read(path, MAX_FILE_BYTES).map_err(|problem| {
                Failure::usage(format!("--config {}: {problem}", path.display()))
            })?;
            layers.add_file(path, &text)?;
        }
        layers.add_environment(environment)?;
        if let Some(url) = store {
            layers.set(keys::STORE_URL, Value::Text(url.to_owned()), Origin::Option("--store"));
        }
        Ok(Self { layers, file: file.map(Path::to_owned) })
    }

    /// [`Settings::load`] with the environment of the process.
    pub fn from_process(file: Option<&Path>, store: Option<&str>) -> Result<Self, Failure> {
        Self::load(file, environment(std::env::vars_os())?, store)
    }

    /// The checked configuration. Reads the files of secrets.
    pub fn config(&self) -> Result<Config, Failure> {
        let layers = &self.layers;
        let store = self.store()?;
        self.path("head.path")?;
        self.check_named_once(&store.url)?;
        Ok(Config {
            listen: self.listen()?,
            head_path: self.head_path(&store.url),
            store,
            access: if layers.switch("store.migrate") { Access::Migrate } else { Access::Write },
            operator_token: self.operator_token()?,
            issuers: self.issuers()?,
            trusted_proxies: self.trusted_proxies()?,
            ingest_enabled: layers.switch("ingest_enabled"),
            max_body_bytes: self.size("max_body_bytes")?,
            http: self.http()?,
            shutdown_timeout: self.seconds("shutdown_timeout_seconds")?,
            log: self.log()?,
            spool: self.spool()?,
            flags: self.flags()?,
            stalwart_max_age: self.stalwart_max_age()?,
            stalwart_max_events: self.size("stalwart.max_body_events")?,
            stalwart: self.stalwart()?,
            ocis: self.ocis()?,
            authentik: self.authentik()?,
            sources: self.sources()?,
            weaknesses: self.weaknesses(),
        })
    }
}

/// The variables whose names and values are UTF-8; those of this program must be.
fn environment(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, Failure> {
    let mut texts = Vec::new();
    for (name, value) in variables {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => texts.push((name, value)),
            Err(_) if all_keys().of_variable(&name).is_some() => {
                return Err(Failure::usage(format!("{name}: must be UTF-8 text")));
            }
            Err(_) => {}
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::keys::Kind;
    use super::*;

    /// The table of keys in the README is written by hand and must agree with this one.
    #[test]
    fn the_readme_has_every_key_with_its_range() {
        let readme = include_str!("../../README.md");
        for key in all_keys().iter() {
            let row = readme.lines().find(|line| line.contains(&format!("| `{}` |", key.variable)));
            let row = row.unwrap_or_else(|| panic!("{} is not in the README", key.variable));
            let name = if key.kind == Kind::Secret { "" } else { &*key.name };
            assert!(row.contains(name), "{name}: {row}");
            if let Kind::Number(min, max) = key.kind {
                let range =
                    if min == 0 { format!("up to {max}") } else { format!("{min} to {max}") };
                assert!(row.contains(&range), "{name}: {range}: {row}");
                assert!(row.contains(&format!("| {} |", key.default)), "{name}: {row}");
                assert!(key.about().replace('\n', " ").contains(&range), "{name}: {range}");
            }
        }
    }
}

//! Configuration: defaults, then a TOML file, then the environment.
//!
//! [`Settings`] says which value holds and where it comes from; [`Config`] is
//! what the server runs with, checked. Secrets come from the environment or from
//! files of their own.

mod files;
mod keys;
mod layers;
mod network;
mod sources;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dezky::{Access, StoreConfig};
use dezky_core::SpoolConfig;
use dezky_ingest::authentik::ApiToken;
use dezky_ingest::signature::{Secret, Secrets};
use tracing_subscriber::EnvFilter;

use self::keys::Kind;
pub use self::keys::example;
pub(crate) use self::keys::{CONFIG_VARIABLE, FROM_VARIABLE, TO_VARIABLE};
use self::layers::{Layers, Origin, Setting, Value};
pub use self::network::{Network, client_ip};
pub use self::sources::{FollowedFile, SourceConfig};
use crate::auth::OperatorToken;
use crate::error::Failure;

/// The most bytes of the configuration file.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// The most bytes of a file with a secret.
const MAX_SECRET_FILE_BYTES: u64 = 64 << 10;
/// A shorter secret can be guessed, in bytes.
const WEAK_SECRET_BYTES: usize = 16;

/// The longest that bodies may go on arriving when the server ends.
const MAX_ENDING: Duration = Duration::from_secs(2);

/// Every value that is set, and where it comes from; not yet checked.
#[derive(Debug)]
pub struct Settings {
    layers: Layers,
    file: Option<PathBuf>,
}

/// What the server runs with.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where the log is, and how it is used.
    pub store: StoreConfig,
    /// [`Access::Migrate`], or [`Access::Write`] if the server must not change the schema.
    pub access: Access,
    /// Where its head is kept, outside of the database.
    pub head_path: PathBuf,
    /// The operators' token; without one everybody is let in.
    pub operator_token: Option<OperatorToken>,
    /// Whose X-Forwarded-For is believed.
    pub trusted_proxies: Vec<Network>,
    /// Whether workers run.
    pub ingest_enabled: bool,
    /// The largest body of a webhook.
    pub max_body_bytes: usize,
    /// The bounds of connections.
    pub http: HttpConfig,
    /// How long requests and workers have to finish.
    pub shutdown_timeout: Duration,
    /// How logs are written.
    pub log: LogConfig,
    /// Where webhooks are kept while the store is away.
    pub spool: Option<SpoolConfig>,
    /// How flags follow the store.
    pub flags: FlagsConfig,
    /// How old an event of Stalwart may be.
    pub stalwart_max_age: Option<Duration>,
    /// The most events of one body of Stalwart.
    pub stalwart_max_events: usize,
    /// Stalwart's endpoints: the secrets by source name, `stalwart` or `stalwart:eu2`.
    pub stalwart: BTreeMap<String, Secrets>,
    /// The audit log of oCIS to follow.
    pub ocis: Option<OcisLog>,
    /// The Authentik to poll.
    pub authentik: Option<AuthentikApi>,
    /// Sources that are declared, by name.
    pub sources: BTreeMap<String, SourceConfig>,
    /// Secrets that can be guessed, and files that others can read or replace.
    pub weaknesses: Vec<String>,
}

/// The bounds of connections and of what is under way on them.
#[derive(Debug, Clone, Copy)]
pub struct HttpConfig {
    /// The most connections.
    pub max_connections: usize,
    /// How long one may be without a request.
    pub idle: Duration,
    /// How long a client may take nothing of an answer.
    pub write: Duration,
    /// How long a body may take.
    pub body: Duration,
    /// The steps in which a body's pace is looked at.
    pub body_stall: Duration,
    /// The memory of webhooks' bodies under way.
    pub body_memory: usize,
    /// How long bodies may go on arriving when the server ends; half as long again is for
    /// answers to leave.
    pub ending: Duration,
}

/// How the flags that decide follow the store.
#[derive(Debug, Clone)]
pub struct FlagsConfig {
    /// How often they are compared with it.
    pub poll: Duration,
    /// Where they are kept for a start without it.
    pub file: Option<PathBuf>,
}

/// An Authentik to poll.
#[derive(Debug, Clone)]
pub struct AuthentikApi {
    /// Its base URL.
    pub url: String,
    /// The key of the API token.
    pub token: ApiToken,
    /// How often it is polled.
    pub poll: Duration,
    /// Groups that never name a tenant.
    pub admin_groups: Vec<String>,
}

/// The audit log of oCIS.
#[derive(Debug, Clone)]
pub struct OcisLog {
    /// The live file.
    pub path: PathBuf,
    /// How often it is read.
    pub poll: Duration,
    /// The bound of a line.
    pub max_line_bytes: usize,
    /// Tenants' slugs by the ids of spaces.
    pub spaces: BTreeMap<String, String>,
    /// The ids of the service accounts.
    pub service_accounts: BTreeSet<String>,
}

/// How logs are written.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Directives as [`EnvFilter`] reads them.
    pub level: String,
    /// JSON, one object a line, instead of text.
    pub json: bool,
}

impl Settings {
    /// Reads the file, if one is named, and takes in `environment`; `store`, the
    /// option of the command line, beats both.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        store: Option<&str>,
    ) -> Result<Self, Failure> {
        let mut layers = Layers::defaults()?;
        if let Some(path) = file {
            let text = files::read(path, MAX_FILE_BYTES).map_err(|problem| {
                Failure::usage(format!("--config {}: {problem}", path.display()))
            })?;
            layers.add_file(path, &text)?;
        }
        layers.add_environment(environment)?;
        if let Some(url) = store {
            layers.set(store::URL, Value::Text(url.to_owned()), Origin::Option("--store"));
        }
        Ok(Self { layers, file: file.map(Path::to_owned) })
    }

    /// The same with the environment of the process.
    pub fn from_process(file: Option<&Path>, store: Option<&str>) -> Result<Self, Failure> {
        Self::load(file, environment(std::env::vars_os())?, store)
    }

    /// How logs are written; looks at no other key.
    pub fn log(&self) -> Result<LogConfig, Failure> {
        let (level, origin) = self.required("log.level")?;
        // A bare word that is no level would name a module, and silence the rest.
        let is_level = |word: &str| word.parse::<tracing::metadata::LevelFilter>().is_ok();
        let valid = level.split(',').all(|d| d.contains('=') || is_level(d.trim()))
            && EnvFilter::builder().parse(level).is_ok();
        if !valid {
            return Err(refused(
                "log.level",
                origin,
                "must be off, error, warn, info, debug or trace, or directives such as info,dezky_ingest=debug",
            ));
        }
        let (format, origin) = self.required("log.format")?;
        let json = match format {
            "text" => false,
            "json" => true,
            _ => return Err(refused("log.format", origin, "must be text or json")),
        };
        Ok(LogConfig { level: level.to_owned(), json })
    }

    /// Everything, checked. Reads the files of secrets.
    pub fn config(&self) -> Result<Config, Failure> {
        let layers = &self.layers;
        let store = self.store()?;
        Ok(Config {
            listen: self.listen()?,
            head_path: self.head_path(&store.url),
            store,
            access: if layers.switch("store.migrate") { Access::Migrate } else { Access::Write },
            operator_token: self.operator_token()?,
            trusted_proxies: self.trusted_proxies()?,
            ingest_enabled: layers.switch("ingest_enabled"),
            max_body_bytes: size(layers.number("max_body_bytes", 1, 1 << 30)?),
            http: self.http()?,
            shutdown_timeout: self.seconds("shutdown_timeout_seconds")?,
            log: self.log()?,
            spool: self.spool()?,
            flags: self.flags()?,
            stalwart_max_age: self.stalwart_max_age()?,
            stalwart_max_events: size(layers.number("stalwart.max_body_events", 1, 10_000_000)?),
            stalwart: self.stalwart()?,
            ocis: self.ocis()?,
            authentik: self.authentik()?,
            sources: self.sources()?,
            weaknesses: self.weaknesses(),
        })
    }

    /// Warnings about secrets that can be guessed, and about files that others can read or
    /// replace. Shows no secret.
    fn weaknesses(&self) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(path) = &self.file
            && let Some(weakness) = files::weakness(path, files::Holds::Settings)
        {
            found.push(format!("--config {}: {weakness}", path.display()));
        }
        for (name, Setting { value, origin }) in self.layers.iter() {
            let Some(holder) = keys::holder_of_secret(name) else { continue };
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
                if let Some(weakness) = files::weakness(Path::new(text), files::Holds::Secret) {
                    found.push(format!("{}: {weakness}", at()));
                }
            }
        }
        found
    }

    fn required(&self, name: &str) -> Result<(&str, &Origin), Failure> {
        self.layers.text(name).ok_or_else(|| Failure::usage(format!("{name}: is not set")))
    }

    /// A time of 1 s to an hour.
    fn seconds(&self, name: &str) -> Result<Duration, Failure> {
        self.layers.number(name, 1, 3_600).map(Duration::from_secs)
    }

    fn http(&self) -> Result<HttpConfig, Failure> {
        let number = |name, min, max| self.layers.number(name, min, max).map(size);
        Ok(HttpConfig {
            max_connections: number("http.max_connections", 1, 100_000)?,
            idle: self.seconds("http.idle_seconds")?,
            write: self.seconds("http.write_seconds")?,
            body: self.seconds("http.body_seconds")?,
            body_stall: self.seconds("http.body_stall_seconds")?,
            body_memory: number("http.body_memory_bytes", 1 << 20, 1 << 40)?,
            ending: MAX_ENDING.min(self.seconds("shutdown_timeout_seconds")? / 2),
        })
    }

    fn listen(&self) -> Result<SocketAddr, Failure> {
        let (text, origin) = self.required("listen")?;
        let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
        numeric.as_deref().unwrap_or(text).parse().map_err(|_| {
            refused("listen", origin, "must be an address and a port, such as 127.0.0.1:8080")
        })
    }

    fn operator_token(&self) -> Result<Option<OperatorToken>, Failure> {
        let Some((token, name, origin)) =
            self.secret_or_file("operator_token", "operator_token_file")?
        else {
            return Ok(None);
        };
        OperatorToken::new(&token).map(Some).map_err(|problem| refused(name, origin, problem))
    }

    /// A secret from its variable or from the file that a second key names, with
    /// the key that it came by.
    fn secret_or_file<'a>(
        &'a self,
        secret: &'a str,
        file: &'a str,
    ) -> Result<Option<(String, &'a str, &'a Origin)>, Failure> {
        let is_environment = |origin: &Origin| matches!(origin, Origin::Environment(_));
        match (self.layers.text(secret), self.layers.text(file)) {
            (Some(_), Some((_, origin))) if is_environment(origin) => {
                let problem = format!("{} is set as well: unset one", keys::variable_of(secret));
                Err(refused(file, origin, problem))
            }
            (Some((text, origin)), _) => Ok(Some((text.to_owned(), secret, origin))),
            (None, Some((path, origin))) => {
                Ok(Some((read_secret(file, origin, path)?, file, origin)))
            }
            (None, None) => Ok(None),
        }
    }

    fn trusted_proxies(&self) -> Result<Vec<Network>, Failure> {
        let Some((list, origin)) = self.layers.list("trusted_proxies") else {
            return Ok(Vec::new());
        };
        list.iter()
            .map(|text| text.parse().map_err(|problem| refused("trusted_proxies", origin, problem)))
            .collect()
    }

    fn stalwart(&self) -> Result<BTreeMap<String, Secrets>, Failure> {
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
                    keys::variable_of(&format!("{prefix}.secret"))
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
                let problem = "is no name for an instance: the secret of /ingest/stalwart/webhook is STALWART_WEBHOOK_SECRET";
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

    /// The same, each made of its text by `secret`.
    fn secrets_of(
        &self,
        prefix: &str,
        leaves: &[&str],
        secret: impl Fn(&str) -> dezky_core::Result<Secret>,
    ) -> Result<Vec<Secret>, Failure> {
        let mut secrets = Vec::new();
        for leaf in leaves {
            let name = format!("{prefix}.{leaf}");
            let Some(Setting { value, origin }) = self.layers.get(&name) else { continue };
            let texts = match (value, keys::kind_of(&name)) {
                (Value::Text(secret), Some(Kind::Secret)) => vec![secret.clone()],
                (Value::Text(path), _) => vec![read_secret(&name, origin, path)?],
                (Value::List(paths), _) => paths
                    .iter()
                    .map(|path| read_secret(&name, origin, path))
                    .collect::<Result<_, _>>()?,
                _ => Vec::new(),
            };
            for text in texts {
                if text.trim().is_empty() {
                    let problem =
                        "the secret is empty or blank: set the one that signs, or unset it";
                    return Err(refused(&name, origin, problem));
                }
                // Its text says nothing of the secret.
                secrets.push(secret(&text).map_err(|error| refused(&name, origin, error))?);
            }
        }
        Ok(secrets)
    }

    fn spool(&self) -> Result<Option<SpoolConfig>, Failure> {
        let max_bytes = self.layers.number("spool.max_bytes", 1 << 20, 1 << 40)?;
        let max_events = size(self.layers.number("spool.max_events", 1, 100_000_000)?);
        let path = self.layers.text("spool.path").filter(|(path, _)| !path.is_empty());
        Ok(path.map(|(path, _)| {
            let mut spool = SpoolConfig::new(path);
            (spool.max_bytes, spool.max_events) = (max_bytes, max_events);
            spool
        }))
    }

    fn flags(&self) -> Result<FlagsConfig, Failure> {
        let poll = Duration::from_millis(self.layers.number("flags.poll_ms", 10, 3_600_000)?);
        let file = self.layers.text("flags.file").filter(|(path, _)| !path.is_empty());
        Ok(FlagsConfig { poll, file: file.map(|(path, _)| path.into()) })
    }

    fn stalwart_max_age(&self) -> Result<Option<Duration>, Failure> {
        let seconds = self.layers.number("stalwart.max_age_seconds", 0, 315_360_000)?;
        Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
    }

    fn ocis(&self) -> Result<Option<OcisLog>, Failure> {
        let poll = Duration::from_secs(self.layers.number("ocis.poll_seconds", 1, 3_600)?);
        let max_line_bytes = size(self.layers.number("ocis.max_line_bytes", 1_024, 64 << 20)?);
        let Some((path, _)) =
            self.layers.text("ocis.log_path").filter(|(path, _)| !path.is_empty())
        else {
            return Ok(None);
        };
        let spaces = self.ocis_spaces()?;
        let service_accounts = self.ocis_service_accounts()?;
        Ok(Some(OcisLog { path: path.into(), poll, max_line_bytes, spaces, service_accounts }))
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
                .filter(|(space, slug)| !space.is_empty() && (1..=63).contains(&slug.len()))
                .ok_or_else(|| refused("must be <space id>=<slug of 1 to 63 bytes>"))?;
            if spaces.insert(space.to_owned(), slug.to_owned()).is_some() {
                return Err(refused("names a space that is there already: give it one slug"));
            }
        }
        Ok(spaces)
    }

    fn authentik(&self) -> Result<Option<AuthentikApi>, Failure> {
        let poll = Duration::from_secs(self.layers.number("authentik.poll_seconds", 1, 3_600)?);
        let token = self.secret_or_file("authentik.token", "authentik.token_file")?;
        let url = self.layers.text("authentik.url").filter(|(url, _)| !url.is_empty());
        let ((url, origin), (token, name, token_origin)) = match (url, token) {
            (Some(url), Some(token)) => (url, token),
            (None, None) => return Ok(None),
            (Some((_, origin)), None) => {
                return Err(refused(
                    "authentik.url",
                    origin,
                    "there is no token for it: set DEZKY_AUTHENTIK_TOKEN",
                ));
            }
            (None, Some((_, name, origin))) => {
                return Err(refused(
                    name,
                    origin,
                    "there is no URL to use it with: set DEZKY_AUTHENTIK_URL",
                ));
            }
        };
        let token =
            ApiToken::new(&token).map_err(|problem| refused(name, token_origin, problem))?;
        check_base_url(url).map_err(|problem| refused("authentik.url", origin, problem))?;
        let admin_groups =
            self.layers.list("authentik.admin_groups").map_or_else(Vec::new, |(l, _)| l.to_vec());
        Ok(Some(AuthentikApi { url: url.to_owned(), token, poll, admin_groups }))
    }

    /// Every key that is set: its name, its value with secrets left out, and
    /// where it comes from.
    pub fn describe(&self) -> Vec<Described> {
        let described = |(name, Setting { value, origin }): (&str, &Setting)| Described {
            name: name.to_owned(),
            value: match (keys::kind_of(name), value) {
                (Some(Kind::Secret), _) => "(secret)".into(),
                // There may be a password in it.
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
}

/// A key that is set.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Described {
    /// Its name as in the file, tables and key joined by dots.
    pub name: String,
    /// Its value.
    pub value: serde_json::Value,
    /// Where it comes from.
    pub from: String,
}

impl Config {
    /// Whether somebody else than this machine could ask, without being asked for
    /// a token.
    pub fn is_open_to_others(&self) -> bool {
        self.operator_token.is_none() && !self.listen.ip().to_canonical().is_loopback()
    }

    /// Warnings about data files of ours that others can write to.
    fn open_files(&self) -> impl Iterator<Item = String> {
        let store = self.store.url.file();
        let spool = self.spool.as_ref().map(|spool| spool.path.as_path());
        let files = [store, Some(self.head_path.as_path()), spool, self.flags.file.as_deref()];
        files.into_iter().flatten().filter_map(|path| {
            let weakness = files::weakness(path, files::Holds::Settings)?;
            Some(format!("{}: {weakness}", path.display()))
        })
    }

    /// Checks what lies outside the configuration: folders and files. Changes
    /// nothing. Returns warnings.
    pub fn check(&self) -> Result<Vec<String>, Failure> {
        if self.is_open_to_others() {
            return Err(Failure::usage(format!(
                "listen {}: others could read and change everything without a token: set DEZKY_OPERATOR_TOKEN, or listen on 127.0.0.1",
                self.listen
            )));
        }
        let mut warnings = self.weaknesses.clone();
        if self.operator_token.is_none() {
            warnings.push("no operator token: everybody on this machine can read the log and change tenants and flags; set DEZKY_OPERATOR_TOKEN".to_owned());
        }
        warnings.extend(self.open_files());
        store::check(&self.store.url)?;
        let folder = folder_of(&self.head_path);
        if !folder.is_dir() {
            return Err(Failure::usage(format!(
                "head.path {}: its folder does not exist: make it",
                self.head_path.display()
            )));
        }
        if self.head_path.exists() && !self.head_path.is_file() {
            return Err(Failure::usage(format!(
                "head.path {}: {}",
                self.head_path.display(),
                crate::witness::NOT_A_FILE
            )));
        }
        if let Some(file) = &self.flags.file {
            let refused =
                |problem| Err(Failure::usage(format!("flags.file {}: {problem}", file.display())));
            if !folder_of(file).is_dir() {
                return refused("its folder does not exist: make it");
            }
            if file.exists() && !file.is_file() {
                return refused("is no regular file: name one, such as flags.json");
            }
        }
        if self.ingest_enabled {
            if let Some(ocis) = &self.ocis {
                let key = "ocis.log_path (OCIS_AUDIT_LOG_PATH)";
                warnings.extend(check_file(key, "the oCIS audit log", &ocis.path)?);
            }
            for (name, file) in self.sources.iter().filter_map(|(n, s)| Some((n, s.file.as_ref()?)))
            {
                let (key, what) = (format!("sources.{name}.path"), format!("the file of {name}"));
                warnings.extend(check_file(&key, &what, &file.path)?);
            }
        }
        Ok(warnings)
    }
}

/// A missing file appears when its system writes the first line; one that is there and
/// can't be read never mends itself.
fn check_file(key: &str, what: &str, path: &Path) -> Result<Option<String>, Failure> {
    let refused = |problem: &str| Failure::usage(format!("{key} {}: {problem}", path.display()));
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            Err(refused("is a folder: name the file in it, such as audit.log"))
        }
        Ok(metadata) if !metadata.is_file() => Err(refused("is no regular file: name a log file")),
        Ok(_) => match std::fs::File::open(path) {
            Ok(_) => Ok(None),
            Err(error) => {
                Err(refused(&format!("can't be read ({}): let this user read it", reason(&error))))
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let missing = !folder_of(path).is_dir();
            Ok(missing.then(|| {
                format!(
                    "the folder of {what} {} does not exist: nothing is read until it appears",
                    path.display()
                )
            }))
        }
        Err(error) => {
            Err(refused(&format!("can't be reached ({}): let this user read it", reason(&error))))
        }
    }
}

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The variables whose names and values are text. Ours must be.
fn environment(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, Failure> {
    let mut texts = Vec::new();
    for (name, value) in variables {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => texts.push((name, value)),
            Err(_) if keys::KEYS.iter().any(|key| key.variable == name) => {
                return Err(Failure::usage(format!("{name}: must be UTF-8 text")));
            }
            Err(_) => {}
        }
    }
    Ok(texts)
}

fn read_secret(name: &str, origin: &Origin, path: &str) -> Result<String, Failure> {
    let problem = |what: &dyn fmt::Display| refused(name, origin, format!("{path}: {what}"));
    let text =
        files::read(Path::new(path), MAX_SECRET_FILE_BYTES).map_err(|what| problem(&what))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.trim().is_empty() {
        return Err(problem(&"the file holds no secret: write it into it"));
    }
    Ok(text.to_owned())
}

/// How many bytes of key there are in a secret: behind the prefix of Standard Webhooks stands
/// base64.
fn key_bytes(secret: &str) -> usize {
    let Some(encoded) = secret.strip_prefix("whsec_") else { return secret.len() };
    let digits = encoded.trim_end_matches('=');
    let is_base64 =
        digits.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'-' | b'_'));
    if is_base64 { digits.len() * 3 / 4 } else { encoded.len() }
}

fn refused(name: &str, origin: &Origin, problem: impl fmt::Display) -> Failure {
    Failure::usage(format!("{name} ({origin}): {problem}"))
}

/// A base URL as it is polled: no credentials, no query.
fn check_base_url(url: &str) -> Result<(), &'static str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let rest = rest.ok_or("must begin with https:// or http://")?;
    if rest.is_empty() || rest.starts_with('/') {
        return Err("names no host: write https:// and the host");
    }
    if rest.contains(['@', '?', '#']) {
        return Err("must be the base URL alone, without a user, ? or #");
    }
    let parsed = reqwest::Url::parse(url)
        .map_err(|_| "is no address: write it as in https://id.example.com")?;
    if parsed.path().trim_end_matches('/').ends_with("/api/v3") {
        return Err("must be Authentik's address without /api/v3, which is added");
    }
    Ok(())
}

fn is_instance(name: &str) -> bool {
    (1..=40).contains(&name.len())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// An I/O error in words, without its number.
pub(crate) fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}

//! Where the store is, and how it is used.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use dezky_core::store::postgres_options;
use mongodb::options::ConnectionString;

use super::layers::Origin;
use super::settings::{Settings, refused};
use crate::failure::Failure;

/// The key of the URL.
pub(super) const URL: &str = "store.url";

/// What stands in place of a URL that is not understood.
const URLS: &str = "sqlite:// and the path of a file, such as sqlite:///var/lib/dezky/audit.db, postgres://user@host/database or mongodb://user@host/database";

/// Where a log is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreUrl {
    /// `sqlite://` and the path of a file.
    Sqlite(PathBuf),
    /// `postgres://` or `postgresql://`.
    Postgres(RemoteUrl),
    /// `mongodb://` or `mongodb+srv://`.
    Mongodb(RemoteUrl),
}

/// The URL of a server. It may hold a password, which neither `Display` nor `Debug`
/// shows, and no option of the URL either.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteUrl {
    scheme: String,
    /// As it stands in the URL: `user` or `user:password`, percent-encoded.
    credentials: Option<String>,
    hosts: String,
    /// From the `/` on, with the options.
    path: String,
}

impl RemoteUrl {
    fn parse(scheme: &str, rest: &str) -> Result<Self, String> {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials.to_owned()), hosts),
            None => (None, authority),
        };
        // Else a part of a password would be taken for a host or a database.
        if path.contains(['@', '#']) || credentials.iter().any(|c| c.contains('@')) {
            return Err("has a character that must be percent-encoded in user and password: write @ as %40, / as %2F, ? as %3F, # as %23".into());
        }
        let names_host =
            !hosts.is_empty() || (scheme.starts_with("postgres") && path.contains('?'));
        if !names_host {
            return Err(format!("names no host: write {scheme}://user@host/database"));
        }
        Ok(Self {
            scheme: scheme.to_owned(),
            credentials,
            hosts: hosts.to_owned(),
            path: path.to_owned(),
        })
    }

    /// The whole URL, with what is secret in it.
    pub fn expose(&self) -> String {
        let Self { scheme, hosts, path, .. } = self;
        match &self.credentials {
            Some(credentials) => format!("{scheme}://{credentials}@{hosts}{path}"),
            None => format!("{scheme}://{hosts}{path}"),
        }
    }

    fn has_password(&self) -> bool {
        let options = self.path.split_once('?').map_or("", |(_, options)| options);
        self.credentials.as_ref().is_some_and(|credentials| credentials.contains(':'))
            || options.split('&').any(|option| {
                let name = option.split('=').next().unwrap_or_default().to_ascii_lowercase();
                name.contains("password")
            })
    }

    fn with_password(self, password: &str) -> Result<Self, &'static str> {
        if self.has_password() {
            return Err("the store's URL has a password already: take it out, or unset this");
        }
        let Some(user) = self.credentials else {
            return Err("the store's URL names no user: write it as in postgres://user@host/…");
        };
        let mut credentials = user + ":";
        for byte in password.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                credentials.push(byte.into());
            } else {
                let _ = write!(credentials, "%{byte:02X}");
            }
        }
        Ok(Self { credentials: Some(credentials), ..self })
    }

    /// The first host, without its port.
    pub fn host(&self) -> &str {
        let host = self.hosts.split(',').next().unwrap_or_default();
        match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => host.rsplit_once(':').map_or(host, |(host, _)| host),
        }
    }
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        if let Some(credentials) = &self.credentials {
            write!(f, "{}@", credentials.split(':').next().unwrap_or_default())?;
        }
        let database = self.path.split('?').next().unwrap_or_default();
        write!(f, "{}{database}", self.hosts)
    }
}

impl fmt::Debug for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl StoreUrl {
    /// Reads a store's URL. What is refused is not repeated: there may be a
    /// password in it.
    pub fn parse(url: &str) -> Result<Self, String> {
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| format!("must be a URL: {URLS}"))?;
        match scheme {
            "sqlite" if rest.is_empty() || rest.ends_with('/') => {
                Err("names no file: write sqlite:// and the path of one".into())
            }
            "sqlite" if rest.contains('?') => {
                Err("takes no options: write sqlite:// and the path alone".into())
            }
            "sqlite" if rest == ":memory:" => {
                Err("must outlive the process: write sqlite:// and the path of a file".into())
            }
            "sqlite" => Ok(Self::Sqlite(rest.into())),
            "postgres" | "postgresql" => {
                let remote = RemoteUrl::parse(scheme, rest)?;
                postgres_options(url).map_err(|error| error.to_string())?;
                Ok(Self::Postgres(remote))
            }
            "mongodb" | "mongodb+srv" => {
                let remote = RemoteUrl::parse(scheme, rest)?;
                ConnectionString::parse(url).map_err(
                    |_| "can't be read: write mongodb://user@host:27017/database?replicaSet=rs0",
                )?;
                Ok(Self::Mongodb(remote))
            }
            _ => Err(format!("has an unknown scheme: use {URLS}")),
        }
    }

    fn has_password(&self) -> bool {
        match self {
            Self::Sqlite(_) => false,
            Self::Postgres(remote) | Self::Mongodb(remote) => remote.has_password(),
        }
    }

    fn with_password(self, password: &str) -> Result<Self, &'static str> {
        match self {
            Self::Sqlite(_) => Err("a file takes no password: unset this"),
            Self::Postgres(remote) => remote.with_password(password).map(Self::Postgres),
            Self::Mongodb(remote) => remote.with_password(password).map(Self::Mongodb),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::Postgres(remote) | Self::Mongodb(remote) => write!(f, "{remote}"),
        }
    }
}

/// Where the store is, and how it is used.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoreConfig {
    /// Where it is.
    pub url: StoreUrl,
    /// Whether the server makes what is missing and brings the schema up to date.
    pub migrate: bool,
    /// Whether a pooler gives each transaction another connection (PostgreSQL).
    pub transaction_pooler: bool,
    /// The most connections to a server.
    pub max_connections: u32,
    /// How long to wait for a connection.
    pub acquire_timeout: Duration,
    /// How long a writer waits for another one.
    pub lock_timeout: Duration,
    /// How long a statement may take.
    pub statement_timeout: Duration,
    /// How long a transaction may wait for its next statement (PostgreSQL).
    pub idle_timeout: Duration,
}

impl Settings {
    /// Where the store is, and how it is used; looks at no other key.
    pub fn store(&self) -> Result<StoreConfig, Failure> {
        let (text, origin) = self.required(URL)?;
        let url = StoreUrl::parse(text).map_err(|problem| refused(URL, origin, problem))?;
        if url.has_password() && matches!(origin, Origin::File { .. }) {
            return Err(refused(
                URL,
                origin,
                "a password does not belong here: set DEZKY_STORE_PASSWORD, or name a file by password_file",
            ));
        }
        let url = match self.secret_or_file("store.password", "store.password_file")? {
            Some((password, name, origin)) => {
                url.with_password(&password).map_err(|problem| refused(name, origin, problem))?
            }
            None => url,
        };
        self.store_with(url)
    }

    /// The same for a store that a command names by `option`: how stores are used is
    /// as configured, the password is the URL's own.
    pub fn store_at(&self, option: &'static str, url: &str) -> Result<StoreConfig, Failure> {
        let url = StoreUrl::parse(url)
            .map_err(|problem| Failure::usage(format!("{option}: {problem}")))?;
        self.store_with(url)
    }

    fn store_with(&self, url: StoreUrl) -> Result<StoreConfig, Failure> {
        let layers = &self.layers;
        let seconds = |name, max| layers.number(name, 1, max).map(Duration::from_secs);
        let transaction_pooler = match self.required("store.pooler")? {
            ("none", _) => false,
            ("transaction", _) => true,
            (_, origin) => {
                return Err(refused("store.pooler", origin, "must be none or transaction"));
            }
        };
        let max_connections = layers.number("store.max_connections", 1, 1_000)?;
        Ok(StoreConfig {
            url,
            migrate: layers.switch("store.migrate"),
            transaction_pooler,
            max_connections: u32::try_from(max_connections).unwrap_or(u32::MAX),
            acquire_timeout: seconds("store.acquire_timeout_seconds", 300)?,
            lock_timeout: seconds("store.lock_timeout_seconds", 300)?,
            statement_timeout: seconds("store.statement_timeout_seconds", 3_600)?,
            idle_timeout: seconds("store.idle_timeout_seconds", 300)?,
        })
    }

    /// Where the head that the log has come to is kept, outside of the database:
    /// beside an SQLite file unless it is set, else in the working folder.
    pub fn head_path(&self, url: &StoreUrl) -> PathBuf {
        match (self.layers.text("head.path").filter(|(path, _)| !path.is_empty()), url) {
            (Some((path, _)), _) => path.into(),
            (None, StoreUrl::Sqlite(path)) => {
                let mut name = path.clone().into_os_string();
                name.push(".head");
                name.into()
            }
            (None, _) => PathBuf::from("dezky.head"),
        }
    }

    /// The store's URL as it may be shown.
    pub(super) fn shown_url(text: &str) -> String {
        StoreUrl::parse(text).map_or_else(|_| "(refused)".into(), |url| url.to_string())
    }
}

impl StoreConfig {
    /// Checks the folder of a file. Changes nothing.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let StoreUrl::Sqlite(path) = &self.url else { return Ok(()) };
        let refused = |problem| Err(Failure::usage(format!("store {}: {problem}", self.url)));
        if !super::folder_of(path).is_dir() {
            return refused("its folder does not exist: make it");
        }
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => refused("it is a folder: name a file"),
            Ok(found) if !found.is_file() => refused("it is not a regular file: name a file"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> StoreUrl {
        StoreUrl::parse(url).unwrap()
    }

    #[test]
    fn a_password_is_never_shown() {
        for (url, shown) in [
            (
                "postgres://dezky:p4ss@db:5432/platform?sslmode=require",
                "postgres://dezky@db:5432/platform",
            ),
            ("postgresql://:p4ss@db/x", "postgresql://@db/x"),
            ("postgres://db/x?user=u&password=p4ss", "postgres://db/x"),
            ("mongodb://u:p4ss@a:1,b:2/x?replicaSet=rs0", "mongodb://u@a:1,b:2/x"),
        ] {
            let parsed = parsed(url);
            assert_eq!(parsed.to_string(), shown);
            assert!(!format!("{parsed:?}").contains("p4ss"));
            assert!(parsed.has_password(), "{url}");
            let (StoreUrl::Postgres(remote) | StoreUrl::Mongodb(remote)) = parsed else { panic!() };
            assert_eq!(remote.expose(), url);
        }
    }

    #[test]
    fn a_password_that_is_not_encoded_is_refused_rather_than_shown() {
        for url in [
            "postgres://u:p4/ss@db/x",
            "postgres://u:p4?ss@db/x",
            "postgres://u:p4#ss@db/x",
            "postgres://u:p4@ss@db/x",
            "mongodb://u:p4/ss@db/x",
            "mongodb:///x",
            "postgres://",
            "mysql://u:p4ss@db/x",
            "postgres://u@db/x?pasword=p4ss",
            "postgres://u@db:p4ss/x",
        ] {
            let said = StoreUrl::parse(url).unwrap_err();
            assert!(!said.contains("p4"), "{said}");
        }
    }

    #[test]
    fn a_mistyped_option_is_named_rather_than_left_out() {
        for url in ["postgres://u@db/x?ssl_mode=require", "mongodb://u@db/x?ssl_mode=require"] {
            assert!(StoreUrl::parse(url).is_err(), "{url}");
        }
        let said = StoreUrl::parse("postgres://u@db/x?sslrootcert=a&ssl_mode=require").unwrap_err();
        assert!(said.contains("unknown option ssl_mode:"), "{said}");
        assert!(StoreUrl::parse("postgres://db/x?user=u&options[search_path]=a").is_ok());
    }

    #[test]
    fn a_password_of_its_own_goes_into_the_url() {
        let with = |url: &str, password| parsed(url).with_password(password);
        let StoreUrl::Postgres(remote) = with("postgres://u@db/x", "a b@/%é").unwrap() else {
            panic!()
        };
        assert_eq!(remote.expose(), "postgres://u:a%20b%40%2F%25%C3%A9@db/x");
        assert!(with("postgres://u:p@db/x", "p").unwrap_err().contains("already"));
        assert!(with("mongodb://db/x", "p").unwrap_err().contains("user"));
        assert!(with("sqlite://x.db", "p").is_err());
    }

    #[test]
    fn the_host_is_the_first_one() {
        for (url, host) in [
            ("postgres://u@db:5432/x", "db"),
            ("postgres://[::1]:5432/x", "::1"),
            ("mongodb://a:1,b:2/x", "a"),
            ("postgres:///x?host=/run/postgresql", ""),
        ] {
            let (StoreUrl::Postgres(remote) | StoreUrl::Mongodb(remote)) = parsed(url) else {
                panic!()
            };
            assert_eq!(remote.host(), host);
        }
    }
}

//! The URL of a store, and the options of its connections.

mod options;

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use dezky_core::{Error, ErrorKind, Result};

pub use self::options::{OPTIONS, StoreConfig, StoreOption};

/// The URLs that are understood, for errors.
const URLS: &str = "sqlite:// and the path of a file, such as sqlite:///var/lib/dezky/audit.db, postgres://user@host/database or mongodb://user@host/database";

/// The location of a platform's database.
///
/// `Display` and `Debug` show neither a password nor a URL's options.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreUrl {
    /// `memory://` or `memory:`: in this process, lost when it ends.
    Memory,
    /// `sqlite://` and the path of a file, taken literally.
    Sqlite(PathBuf),
    /// `postgres://` or `postgresql://`.
    Postgres(RemoteUrl),
    /// `mongodb://` or `mongodb+srv://`.
    Mongodb(RemoteUrl),
}

impl StoreUrl {
    /// Parses a URL with the options of the engine's driver, such as `sslmode`. For dezky's own
    /// options see [`StoreConfig::parse`].
    ///
    /// # Errors
    /// `config_invalid`. The message completes a sentence that begins with the name of
    /// the setting; it never quotes the URL, which may hold a password.
    pub fn parse(url: &str) -> Result<Self> {
        if url == "memory:" {
            return Ok(Self::Memory);
        }
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| invalid(format!("must be a URL: {URLS}")))?;
        match scheme {
            "memory" if rest.is_empty() => Ok(Self::Memory),
            "memory" => Err(invalid("has no path: write memory:// alone")),
            "sqlite" if rest.is_empty() || rest.ends_with('/') => {
                Err(invalid("names no file: write sqlite:// and the path of one"))
            }
            "sqlite" if rest.contains('?') => {
                Err(invalid("takes no options: write sqlite:// and the path alone"))
            }
            "sqlite" if rest == ":memory:" => {
                Err(invalid("must outlive the process: write sqlite:// and the path of a file"))
            }
            "sqlite" => Ok(Self::Sqlite(rest.into())),
            "postgres" | "postgresql" => {
                let remote = RemoteUrl::parse(scheme, rest)?;
                check_postgres(url)?;
                Ok(Self::Postgres(remote))
            }
            "mongodb" | "mongodb+srv" => {
                let remote = RemoteUrl::parse(scheme, rest)?;
                check_mongodb(url)?;
                Ok(Self::Mongodb(remote))
            }
            _ => Err(invalid(format!("has an unknown scheme: use {URLS}"))),
        }
    }

    /// The engine's name: `memory`, `sqlite`, `postgres` or `mongodb`.
    pub fn engine(&self) -> &'static str {
        match self {
            Self::Memory => MEMORY,
            Self::Sqlite(_) => SQLITE,
            Self::Postgres(_) => POSTGRES,
            Self::Mongodb(_) => MONGODB,
        }
    }

    /// The database's file, for an engine that has one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(path) => Some(path),
            _ => None,
        }
    }

    /// The address of the server, for an engine that has one.
    pub fn remote(&self) -> Option<&RemoteUrl> {
        match self {
            Self::Memory | Self::Sqlite(_) => None,
            Self::Postgres(remote) | Self::Mongodb(remote) => Some(remote),
        }
    }

    /// Whether the URL contains a password.
    pub fn has_password(&self) -> bool {
        self.remote().is_some_and(RemoteUrl::has_password)
    }

    /// Adds the password, unencoded, of the user that the URL names.
    ///
    /// # Errors
    /// `config_invalid` if the URL has a password, names no user, or is not a server's.
    pub fn with_password(self, password: &str) -> Result<Self> {
        match self {
            Self::Memory => Err(invalid("memory takes no password: unset this")),
            Self::Sqlite(_) => Err(invalid("a file takes no password: unset this")),
            Self::Postgres(remote) => remote.with_password(password).map(Self::Postgres),
            Self::Mongodb(remote) => remote.with_password(password).map(Self::Mongodb),
        }
    }

    /// Whether both URLs name the same store, as far as URLs show: user, password and options make
    /// no difference, but two names of one server are not recognized.
    pub fn is_same_store(&self, other: &Self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        match (self, other) {
            (Self::Sqlite(one), Self::Sqlite(other)) => {
                let of = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino()));
                one == other || matches!((of(one), of(other)), (Ok(one), Ok(other)) if one == other)
            }
            (Self::Postgres(one), Self::Postgres(other)) => one.is_same_database(other, ":5432"),
            (Self::Mongodb(one), Self::Mongodb(other)) => one.is_same_database(other, ":27017"),
            // Other engines, or two of memory: each opening creates a new one.
            _ => false,
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory://"),
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::Postgres(remote) | Self::Mongodb(remote) => write!(f, "{remote}"),
        }
    }
}

impl FromStr for StoreUrl {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self> {
        Self::parse(url)
    }
}

/// The URL of a database server.
///
/// `Display` and `Debug` show neither a password nor the options.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteUrl {
    scheme: String,
    /// `user` or `user:password`, percent-encoded as in the URL.
    credentials: Option<String>,
    hosts: String,
    /// From the first `/` to the end, options included.
    path: String,
}

impl RemoteUrl {
    fn parse(scheme: &str, rest: &str) -> Result<Self> {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials.to_owned()), hosts),
            None => (None, authority),
        };
        // Otherwise part of a password would be read as a host or a database.
        if path.contains(['@', '#']) || credentials.iter().any(|c| c.contains('@')) {
            return Err(invalid(
                "has a character that must be percent-encoded in user and password: write @ as %40, / as %2F, ? as %3F, # as %23",
            ));
        }
        let names_host =
            !hosts.is_empty() || (scheme.starts_with("postgres") && path.contains('?'));
        if !names_host {
            return Err(invalid(format!("names no host: write {scheme}://user@host/database")));
        }
        Ok(Self {
            scheme: scheme.to_owned(),
            credentials,
            hosts: hosts.to_owned(),
            path: path.to_owned(),
        })
    }

    /// The whole URL, with its password and options.
    pub fn expose(&self) -> String {
        let Self { scheme, hosts, path, .. } = self;
        match &self.credentials {
            Some(credentials) => format!("{scheme}://{credentials}@{hosts}{path}"),
            None => format!("{scheme}://{hosts}{path}"),
        }
    }

    /// The first host, without its port; empty if the options name it.
    pub fn host(&self) -> &str {
        let host = self.hosts.split(',').next().unwrap_or_default();
        match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => host.rsplit_once(':').map_or(host, |(host, _)| host),
        }
    }

    /// Whether both name one database on a host that both name. `port` applies to hosts without one.
    fn is_same_database(&self, other: &Self, port: &str) -> bool {
        if self.hosts.is_empty() || other.hosts.is_empty() {
            // The options name the host.
            return self.path == other.path;
        }
        let hosts = |url: &Self| -> Vec<String> {
            let has_port =
                |host: &str| host.rsplit_once(':').is_some_and(|(_, p)| !p.contains(']'));
            let with_port = |host: &str| {
                let port = if has_port(host) { "" } else { port };
                host.to_ascii_lowercase() + port
            };
            url.hosts.split(',').map(with_port).collect()
        };
        let theirs = hosts(other);
        self.database() == other.database() && hosts(self).iter().any(|host| theirs.contains(host))
    }

    /// The path's database, else the user, as PostgreSQL takes it.
    fn database(&self) -> &str {
        let path = self.path.split('?').next().unwrap_or_default().trim_start_matches('/');
        let user = self.credentials.as_deref().unwrap_or_default();
        if path.is_empty() { user.split(':').next().unwrap_or_default() } else { path }
    }

    fn has_password(&self) -> bool {
        let options = self.path.split_once('?').map_or("", |(_, options)| options);
        self.credentials.as_ref().is_some_and(|credentials| credentials.contains(':'))
            || options.split('&').any(|option| {
                let name = option.split('=').next().unwrap_or_default().to_ascii_lowercase();
                name.contains("password")
            })
    }

    fn with_password(self, password: &str) -> Result<Self> {
        if self.has_password() {
            return Err(invalid(
                "the store's URL has a password already: take it out, or unset this",
            ));
        }
        let Some(user) = self.credentials else {
            return Err(invalid(
                "the store's URL names no user: write it as in postgres://user@host/…",
            ));
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

/// Checks a URL with the driver's options.
#[cfg(feature = "postgres")]
fn check_postgres(url: &str) -> Result<()> {
    dezky_core::store::postgres_options(url).map(drop)
}

#[cfg(not(feature = "postgres"))]
fn check_postgres(_url: &str) -> Result<()> {
    Err(lacking(POSTGRES))
}

/// Checks a URL with the driver's options.
#[cfg(feature = "mongodb")]
fn check_mongodb(url: &str) -> Result<()> {
    // The parser's message may quote a part of the password.
    mongodb::options::ConnectionString::parse(url).map(drop).map_err(|_| {
        invalid("can't be read: write mongodb://user@host:27017/database?replicaSet=rs0")
    })
}

#[cfg(not(feature = "mongodb"))]
fn check_mongodb(_url: &str) -> Result<()> {
    Err(lacking(MONGODB))
}

/// The error of a build without an engine's feature. Completes a sentence that begins with the URL.
#[cfg(not(all(feature = "sqlite", feature = "postgres", feature = "mongodb")))]
pub(crate) fn lacking(engine: &str) -> Error {
    invalid(format!("needs the feature {engine} of the crate dezky, which is not enabled"))
}

fn invalid(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::ConfigInvalid, problem.into())
}

const MEMORY: &str = "memory";
const SQLITE: &str = "sqlite";
const POSTGRES: &str = "postgres";
const MONGODB: &str = "mongodb";

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> StoreUrl {
        StoreUrl::parse(url).unwrap()
    }

    #[test]
    fn memory_needs_no_slashes() {
        assert_eq!(parsed("memory:"), StoreUrl::Memory);
        assert_eq!(StoreConfig::parse("memory:").unwrap(), StoreConfig::new(StoreUrl::Memory));
        for url in ["memory", "memory:x", "memory:?x=1", "memory:/", "Memory:"] {
            assert!(StoreUrl::parse(url).is_err() && StoreConfig::parse(url).is_err(), "{url}");
        }
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
            assert_eq!(parsed.remote().unwrap().expose(), url);
        }
    }

    #[test]
    fn one_store_is_recognized_by_host_and_database() {
        for (one, other, is_same) in [
            ("postgres://u@h/d?sslmode=disable", "postgresql://u:p%21w@H:5432/d", true),
            ("postgres://u@h/d", "postgres://u@h:5433/d", false),
            ("postgres://u@h/d", "postgres://u@h/e", false),
            ("postgres://d@h", "postgres://u@h/d", true),
            ("postgres://u@[::1]/d", "postgres://u@[::1]:5432/d", true),
            ("postgres:///d?host=/a", "postgres:///d?host=/b", false),
            ("mongodb://a,b:27018/d?replicaSet=r", "mongodb://u:p@b:27018,c/d", true),
            ("mongodb://a/d", "mongodb://b/d", false),
            ("mongodb://h/d", "postgres://h/d", false),
            ("memory://", "memory://", false),
        ] {
            let (one, other) = (parsed(one), parsed(other));
            assert_eq!(one.is_same_store(&other), is_same, "{one} {other}");
            assert_eq!(other.is_same_store(&one), is_same, "{other} {one}");
        }
    }

    #[test]
    fn an_unencoded_password_is_refused_rather_than_shown() {
        for url in [
            "postgres://u:p4/ss@db/x",
            "postgres://u:p4?ss@db/x",
            "postgres://u:p4#ss@db/x",
            "postgres://u:p4@ss@db/x",
            "postgres://u:s?max_connections=p4@db/x",
            "postgres://u:s?pooler=p4@db/x",
            "mongodb://u:p4/ss@db/x",
            "mongodb:///x",
            "postgres://",
            "mysql://u:p4ss@db/x",
            "postgres://u@db/x?pasword=p4ss",
            "postgres://u@db:p4ss/x",
        ] {
            for said in [
                StoreUrl::parse(url).unwrap_err().to_string(),
                StoreConfig::parse(url).unwrap_err().to_string(),
            ] {
                assert!(!said.contains("p4"), "{said}");
            }
        }
    }

    #[test]
    fn a_separate_password_goes_into_the_url() {
        let with = |url: &str, password| parsed(url).with_password(password);
        let added = with("postgres://u@db/x", "a b@/%é").unwrap();
        assert_eq!(added.remote().unwrap().expose(), "postgres://u:a%20b%40%2F%25%C3%A9@db/x");
        let said = |url, password| with(url, password).unwrap_err().to_string();
        assert!(said("postgres://u:p@db/x", "p").contains("already"));
        assert!(said("mongodb://db/x", "p").contains("user"));
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
            assert_eq!(parsed(url).remote().unwrap().host(), host);
        }
    }
}

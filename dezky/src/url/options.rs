//! The options of a store: parsing, checks, errors, defaults and the documentation all use the
//! table [`OPTIONS`].

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use dezky_core::{Error, Result};

use super::{MEMORY, MONGODB, POSTGRES, SQLITE, StoreUrl, invalid};

/// A store's URL with the options of its connections.
///
/// ```
/// use dezky::StoreConfig;
///
/// let config = StoreConfig::parse("sqlite://audit.db?lock_timeout_seconds=20")?;
/// assert_eq!(config.lock_timeout.as_secs(), 20);
///
/// let refused = StoreConfig::parse("sqlite://audit.db?lock_timeout_seconds=900").unwrap_err();
/// assert_eq!(refused.to_string(), "lock_timeout_seconds: is 900: it must be 1 to 300");
/// # Ok::<_, dezky::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreConfig {
    /// The store's URL.
    pub url: StoreUrl,
    /// The maximum number of connections to a server.
    pub max_connections: u32,
    /// The maximum time to wait for a connection to a server.
    pub acquire_timeout: Duration,
    /// The maximum time that a writer waits for another one.
    pub lock_timeout: Duration,
    /// The maximum time of a statement on a server.
    pub statement_timeout: Duration,
    /// The maximum time between two statements of a transaction on PostgreSQL.
    pub idle_timeout: Duration,
    /// Whether a pooler gives each transaction of PostgreSQL another connection.
    pub transaction_pooler: bool,
    /// Whether the database may contain tables or collections of other programs.
    pub shared: bool,
}

impl StoreConfig {
    /// The defaults for a store.
    pub fn new(url: StoreUrl) -> Self {
        let mut config = Self {
            url,
            max_connections: 0,
            acquire_timeout: Duration::ZERO,
            lock_timeout: Duration::ZERO,
            statement_timeout: Duration::ZERO,
            idle_timeout: Duration::ZERO,
            transaction_pooler: false,
            shared: false,
        };
        for option in OPTIONS {
            option.values.set_default(&mut config);
        }
        config
    }

    /// Parses a URL with dezky's [options](OPTIONS), such as
    /// `postgres://dezky@db/platform?sslmode=verify-full&max_connections=20`. All other options are
    /// passed to the driver.
    ///
    /// # Errors
    /// `config_invalid`; the message names the option, its bounds and the fix, and quotes no other
    /// part of the URL.
    pub fn parse(url: &str) -> Result<Self> {
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        let is_ours = |part: &&str| option(name_of(part)).is_some();
        let (ours, others): (Vec<&str>, Vec<&str>) =
            query.split('&').filter(|part| !part.is_empty()).partition(is_ours);
        let rest = if others.is_empty() {
            address.to_owned()
        } else {
            refuse_unknown(address, &others)?;
            format!("{address}?{}", others.join("&"))
        };
        let url = StoreUrl::parse(&rest).map_err(|error| error.context("the store's URL"))?;
        let mut config = Self::new(url);
        for part in ours {
            let value = part.split_once('=').map_or("", |(_, value)| value);
            config.set(name_of(part), value)?;
        }
        Ok(config)
    }

    /// Sets an option by its name.
    ///
    /// # Errors
    /// `config_invalid` if there is no such option, it has no effect on this engine, or
    /// the value is out of its bounds.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let engine = self.url.engine();
        let option = option(name)
            .ok_or_else(|| invalid(format!("no such option: {}", known_options(engine))))
            .map_err(|error| error.context(name))?;
        if !option.engines.contains(&engine) {
            return Err(invalid(format!("{name}: has no effect on {engine}: leave it out")));
        }
        option.set(self, value).map_err(|error| error.context(name))
    }

    /// Checks that every option is within its bounds.
    ///
    /// # Errors
    /// `config_invalid`; the message names the first option that is not.
    pub fn check(&self) -> Result<()> {
        let mut config = self.clone();
        for option in OPTIONS {
            option.values.check(&mut config).map_err(|error| error.context(option.name))?;
        }
        Ok(())
    }
}

impl FromStr for StoreConfig {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self> {
        Self::parse(url)
    }
}

fn name_of(part: &str) -> &str {
    part.split('=').next().unwrap_or_default()
}

/// Rejects options that dezky does not know, for engines without driver options (SQLite, memory).
/// Their URLs contain no password that the error could reveal.
fn refuse_unknown(address: &str, others: &[&str]) -> Result<()> {
    let engine = address.split("://").next().unwrap_or_default();
    if ![SQLITE, MEMORY].contains(&engine) {
        return Ok(());
    }
    let problem = format!("no such option: {}", known_options(engine));
    Err(invalid(problem).context(name_of(others[0])))
}

fn known_options(engine: &str) -> String {
    let known = OPTIONS.iter().filter(|option| option.engines.contains(&engine));
    let names: Vec<_> = known.map(|option| option.name).collect();
    match &*names {
        [] => format!("{engine} has none"),
        names => format!("{engine} has {}", names.join(", ")),
    }
}

/// An option of a store: its name, values and effect.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct StoreOption {
    /// The name in a URL.
    pub name: &'static str,
    /// The engines on which it has an effect.
    pub engines: &'static [&'static str],
    /// The effect, as one sentence.
    pub about: &'static str,
    values: Values,
}

/// The values of an option, and its field.
#[derive(Debug, Clone, Copy)]
enum Values {
    /// The minimum, the maximum and the default.
    Number([u32; 3], fn(&mut StoreConfig) -> &mut u32),
    /// The same in seconds.
    Seconds([u32; 3], fn(&mut StoreConfig) -> &mut Duration),
    /// The words for off (the default) and on.
    Switch([&'static str; 2], fn(&mut StoreConfig) -> &mut bool),
}

/// Every option of a store.
pub const OPTIONS: &[StoreOption] = &[
    StoreOption {
        name: "max_connections",
        engines: &[POSTGRES, MONGODB],
        about: "The maximum number of connections to a server; PostgreSQL has one more, to listen for changes.",
        values: Values::Number([1, 1_000, 10], |config| &mut config.max_connections),
    },
    StoreOption {
        name: "acquire_timeout_seconds",
        engines: &[POSTGRES, MONGODB],
        about: "How long to wait for a connection to a server.",
        values: Values::Seconds([1, 300, 5], |config| &mut config.acquire_timeout),
    },
    StoreOption {
        name: "lock_timeout_seconds",
        engines: &[SQLITE, POSTGRES, MONGODB],
        about: "How long a writer waits for another one.",
        values: Values::Seconds([1, 300, 5], |config| &mut config.lock_timeout),
    },
    StoreOption {
        name: "statement_timeout_seconds",
        engines: &[POSTGRES, MONGODB],
        about: "How long a statement on a server may take.",
        values: Values::Seconds([1, 3_600, 30], |config| &mut config.statement_timeout),
    },
    StoreOption {
        name: "idle_timeout_seconds",
        engines: &[POSTGRES],
        about: "How long a transaction may wait for its next statement before the server ends it.",
        values: Values::Seconds([1, 300, 5], |config| &mut config.idle_timeout),
    },
    StoreOption {
        name: "pooler",
        engines: &[POSTGRES],
        about: "Whether a pooler gives each transaction another connection.",
        values: Values::Switch(["none", "transaction"], |config| &mut config.transaction_pooler),
    },
    StoreOption {
        name: "shared",
        engines: &[SQLITE, POSTGRES, MONGODB],
        about: "Whether the database may contain tables or collections of other programs.",
        values: Values::Switch(["false", "true"], |config| &mut config.shared),
    },
];

fn option(name: &str) -> Option<&'static StoreOption> {
    OPTIONS.iter().find(|option| option.name == name)
}

impl StoreOption {
    /// The bounds of a number.
    pub fn range(&self) -> Option<RangeInclusive<u32>> {
        match self.values {
            Values::Number([min, max, _], _) | Values::Seconds([min, max, _], _) => Some(min..=max),
            Values::Switch(..) => None,
        }
    }

    /// The default, as written in a URL.
    pub fn default_value(&self) -> String {
        match self.values {
            Values::Number([.., default], _) | Values::Seconds([.., default], _) => {
                default.to_string()
            }
            Values::Switch([off, _], _) => off.to_owned(),
        }
    }

    /// The allowed values, such as `1 to 300`.
    pub fn allowed(&self) -> String {
        match self.values {
            Values::Number([min, max, _], _) | Values::Seconds([min, max, _], _) => {
                format!("{min} to {max}")
            }
            Values::Switch([off, on], _) => format!("{off} or {on}"),
        }
    }

    /// Sets the option without checking that it has an effect on the engine.
    ///
    /// # Errors
    /// `config_invalid` if the value is out of its bounds. The message does not name the
    /// option.
    pub fn set(&self, config: &mut StoreConfig, value: &str) -> Result<()> {
        let allowed = self.allowed();
        let number = || {
            let number = value
                .parse::<u64>()
                .map_err(|_| invalid(format!("must be a whole number from {allowed}")))?;
            let within = u32::try_from(number).ok();
            within
                .filter(|number| self.range().is_some_and(|range| range.contains(number)))
                .ok_or_else(|| invalid(format!("is {number}: it must be {allowed}")))
        };
        match self.values {
            Values::Number(_, field) => *field(config) = number()?,
            Values::Seconds(_, field) => *field(config) = Duration::from_secs(number()?.into()),
            Values::Switch([off, on], field) => {
                if ![off, on].contains(&value) {
                    return Err(invalid(format!("must be {allowed}")));
                }
                *field(config) = value == on;
            }
        }
        Ok(())
    }
}

impl Values {
    fn set_default(self, config: &mut StoreConfig) {
        match self {
            Self::Number([.., default], field) => *field(config) = default,
            Self::Seconds([.., default], field) => {
                *field(config) = Duration::from_secs(default.into());
            }
            Self::Switch(_, field) => *field(config) = false,
        }
    }

    fn check(self, config: &mut StoreConfig) -> Result<()> {
        let (is_within, [min, max, _], shown) = match self {
            Self::Number(bounds @ [min, max, _], field) => {
                let number = *field(config);
                ((min..=max).contains(&number), bounds, number.to_string())
            }
            Self::Seconds(bounds @ [min, max, _], field) => {
                let [least, most] = [min, max].map(|bound| Duration::from_secs(bound.into()));
                let duration = *field(config);
                ((least..=most).contains(&duration), bounds, format!("{duration:?}"))
            }
            Self::Switch(..) => return Ok(()),
        };
        if is_within {
            return Ok(());
        }
        Err(invalid(format!("is {shown}: it must be {min} to {max}")))
    }
}

#[cfg(test)]
mod tests {
    use dezky_core::ErrorKind;

    use super::*;

    fn parsed(url: &str) -> StoreUrl {
        StoreUrl::parse(url).unwrap()
    }

    fn refused(url: &str) -> String {
        let error = StoreConfig::parse(url).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        error.to_string()
    }

    #[test]
    fn a_mistyped_option_is_named_rather_than_ignored() {
        for url in ["postgres://u@db/x?ssl_mode=require", "mongodb://u@db/x?ssl_mode=require"] {
            assert!(StoreUrl::parse(url).is_err(), "{url}");
        }
        let said = refused("postgres://u@db/x?sslrootcert=a&ssl_mode=require");
        assert!(said.contains("unknown option ssl_mode:"), "{said}");
        assert!(StoreUrl::parse("postgres://db/x?user=u&options[search_path]=a").is_ok());
        assert_eq!(
            refused("sqlite://x.db?lock_timeout=9"),
            "lock_timeout: no such option: sqlite has lock_timeout_seconds, shared"
        );
        assert_eq!(
            refused("memory://?shared=true"),
            "shared: has no effect on memory: leave it out"
        );
    }

    #[test]
    fn options_leave_the_drivers_to_the_driver() {
        let config = StoreConfig::parse(
            "postgres://u@db/x?max_connections=20&sslmode=require&pooler=transaction&idle_timeout_seconds=7",
        )
        .unwrap();
        assert_eq!(config.url.remote().unwrap().expose(), "postgres://u@db/x?sslmode=require");
        assert_eq!((config.max_connections, config.transaction_pooler), (20, true));
        assert_eq!(config.idle_timeout, Duration::from_secs(7));
        let rest = StoreConfig { url: config.url.clone(), ..StoreConfig::new(config.url.clone()) };
        assert_eq!(config.lock_timeout, rest.lock_timeout);
    }

    #[test]
    fn every_option_states_its_bounds() {
        for option in OPTIONS {
            let url = match option.engines[0] {
                SQLITE => "sqlite://x.db",
                engine => &format!("{engine}://u@db/x"),
            };
            let mut config = StoreConfig::new(parsed(url));
            config.check().unwrap();
            config.set(option.name, &option.default_value()).unwrap();
            assert_eq!(config, StoreConfig::new(parsed(url)), "{}", option.name);
            let wrong = match option.range() {
                Some(range) => vec!["0".to_owned(), (range.end() + 1).to_string(), "-1".to_owned()],
                None => vec![String::new(), "1".to_owned()],
            };
            for value in wrong {
                let said = refused(&format!("{url}?{}={value}", option.name));
                assert!(said.starts_with(&format!("{}: ", option.name)), "{said}");
                assert!(said.contains(&option.allowed()), "{said}");
            }
        }
        let mut config = StoreConfig::new(parsed("sqlite://x.db"));
        config.lock_timeout = Duration::from_millis(10);
        let said = config.check().unwrap_err().to_string();
        assert_eq!(said, "lock_timeout_seconds: is 10ms: it must be 1 to 300");
    }

    #[test]
    fn the_readme_documents_every_option() {
        let readme = include_str!("../../README.md");
        for option in OPTIONS {
            let row = format!(
                "| `{}` | {} | {} | {} | {} |\n",
                option.name,
                option.engines.join(", "),
                option.allowed(),
                option.default_value(),
                option.about
            );
            assert!(readme.contains(&row), "README.md lacks: {row}");
        }
    }
}

//! The layers of settings (defaults, file, environment, command line): the effective values and
//! their origins.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{self, Keys, Kind};
use crate::failure::Failure;

/// The maximum number of declared sources.
const MAX_SOURCES: usize = 1_000;

/// A value of its key's [`Kind`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    List(Vec<String>),
    Number(u64),
    Switch(bool),
    Table(serde_json::Value),
}

/// The origin of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    Default,
    File { path: PathBuf, line: usize },
    Environment(String),
    Option(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{} line {line}", path.display()),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::Option(option) => write!(f, "option {option}"),
        }
    }
}

/// A value and its origin.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// The settings, by the key's name.
#[derive(Debug)]
pub(super) struct Layers {
    keys: Keys,
    settings: BTreeMap<String, Setting>,
    /// The place of each declared source, by its name.
    sources: BTreeMap<String, Origin>,
    /// The places of the keys inside of tables that are read as a whole.
    places: BTreeMap<String, Origin>,
}

impl Layers {
    /// The defaults of every key that has one.
    pub(super) fn defaults(keys: Keys) -> Result<Self, Failure> {
        let (settings, sources, places) = Default::default();
        let mut layers = Self { keys, settings, sources, places };
        for key in keys.iter().filter(|key| !key.default.is_empty()) {
            let text = format!("value = {}", key.default);
            let table = DeTable::parse(&text).map_err(|e| Failure::usage(e.message()))?;
            let value = table
                .get_ref()
                .iter()
                .find_map(|(_, value)| typed(value.get_ref(), key.kind))
                .ok_or_else(|| Failure::usage(format!("{}: no default", key.name)))?;
            layers.set(&key.name, value, Origin::Default);
        }
        Ok(layers)
    }

    /// Adds the settings of a file.
    pub(super) fn add_file(&mut self, path: &Path, text: &str) -> Result<(), Failure> {
        let file = File::new(path, text);
        let table = DeTable::parse(text).map_err(|error| {
            let place = file.origin(error.span().map_or(0, |span| span.start));
            Failure::usage(format!("{place}: {}: fix the TOML", first_line(error.message())))
        })?;
        self.add_table(&file, table.get_ref(), "")
    }

    fn add_table(
        &mut self,
        file: &File<'_>,
        table: &DeTable<'_>,
        prefix: &str,
    ) -> Result<(), Failure> {
        for (key, value) in table {
            let name = match (format!("{prefix}{}", key.get_ref()), value.get_ref()) {
                // `store = "…"` is short for a table with the URL only.
                (name, value) if name == keys::STORE && !matches!(value, DeValue::Table(_)) => {
                    keys::STORE_URL.to_owned()
                }
                (name, _) => name,
            };
            let origin = file.origin(key.span().start);
            if name == keys::SOURCES {
                self.add_sources(file, value.get_ref(), &origin)?;
                continue;
            }
            match (value.get_ref(), self.keys.kind_of(&name)) {
                (DeValue::Table(inner), None)
                    if inner.is_empty() && keys::is_instance_table(&name) =>
                {
                    return Err(Failure::usage(format!(
                        "{name} ({origin}): has no secret: name a file by secret_file"
                    )));
                }
                (DeValue::Table(inner), None)
                    if inner.is_empty() && keys::is_issuer_table(&name) =>
                {
                    return Err(Failure::usage(format!(
                        "{name} ({origin}): is empty: set issuer and audiences"
                    )));
                }
                (DeValue::Table(inner), None) if self.keys.is_table(&name) => {
                    self.add_table(file, inner, &format!("{name}."))?;
                }
                (_, None) => return Err(self.unknown_key(&name, &origin)),
                (_, Some(Kind::Secret)) => return Err(self.secret_in_file(&name, &origin)),
                (value, Some(kind)) => {
                    let value = typed(value, kind).ok_or_else(|| {
                        Failure::usage(format!("{name} ({origin}): must be {}", kind.expected()))
                    })?;
                    self.set(&name, value, origin);
                }
            }
        }
        Ok(())
    }

    /// Adds the declared sources. Their names may have dots, and their maps are read as a
    /// whole.
    fn add_sources(
        &mut self,
        file: &File<'_>,
        sources: &DeValue<'_>,
        origin: &Origin,
    ) -> Result<(), Failure> {
        let no_table = |name: &str, origin: &Origin| {
            Failure::usage(format!("{name} ({origin}): must be a table, such as [sources.shop]"))
        };
        let DeValue::Table(sources) = sources else {
            return Err(no_table(keys::SOURCES, origin));
        };
        if sources.len() > MAX_SOURCES {
            return Err(Failure::usage(format!(
                "{} ({origin}): declares {} sources: declare at most {MAX_SOURCES}",
                keys::SOURCES,
                sources.len()
            )));
        }
        for (source, leaves) in sources {
            let prefix = format!("{}.{}", keys::SOURCES, source.get_ref());
            let origin = file.origin(source.span().start);
            let DeValue::Table(leaves) = leaves.get_ref() else {
                return Err(no_table(&prefix, &origin));
            };
            self.sources.insert(source.get_ref().to_string(), origin);
            for (leaf, value) in leaves {
                let name = format!("{prefix}.{}", leaf.get_ref());
                let origin = file.origin(leaf.span().start);
                let known = keys::SOURCE_LEAVES.iter().find(|(known, _)| known == leaf.get_ref());
                let Some((_, kind)) = known else {
                    let known = keys::SOURCE_LEAVES.iter().map(|(known, _)| *known);
                    let hint = keys::hint(leaf.get_ref(), known, "docs/sources.md lists the keys");
                    return Err(Failure::usage(format!(
                        "{name} ({origin}): is not a key of a source: {hint}"
                    )));
                };
                let value = match (value.get_ref(), kind) {
                    (_, Kind::Secret) => return Err(self.secret_in_file(&name, &origin)),
                    (DeValue::Table(_), Kind::Table) => {
                        Value::Table(self.json(file, value.get_ref(), &name, &origin)?)
                    }
                    (value, kind) => typed(value, *kind).ok_or_else(|| {
                        Failure::usage(format!("{name} ({origin}): must be {}", kind.expected()))
                    })?,
                };
                self.set(&name, value, origin);
            }
        }
        Ok(())
    }

    /// Converts a table as a whole and notes the places of its keys.
    fn json(
        &mut self,
        file: &File<'_>,
        value: &DeValue<'_>,
        name: &str,
        origin: &Origin,
    ) -> Result<serde_json::Value, Failure> {
        self.places.insert(name.to_owned(), origin.clone());
        Ok(match value {
            DeValue::String(text) => text.as_ref().into(),
            DeValue::Boolean(on) => (*on).into(),
            DeValue::Integer(number) => {
                i64::from_str_radix(number.as_str(), number.radix()).unwrap_or(i64::MAX).into()
            }
            DeValue::Array(items) => {
                let mut values = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    let origin = file.origin(item.span().start);
                    let name = format!("{name}[{index}]");
                    values.push(self.json(file, item.get_ref(), &name, &origin)?);
                }
                values.into()
            }
            DeValue::Table(table) => {
                let mut members = serde_json::Map::new();
                for (key, value) in table {
                    let origin = file.origin(key.span().start);
                    let name = format!("{name}.{}", key.get_ref());
                    let value = self.json(file, value.get_ref(), &name, &origin)?;
                    members.insert(key.get_ref().to_string(), value);
                }
                members.into()
            }
            DeValue::Float(_) | DeValue::Datetime(_) => {
                let expected = Kind::Text.expected();
                return Err(Failure::usage(format!("{name} ({origin}): must be {expected}")));
            }
        })
    }

    /// The places of the declared sources, by name.
    pub(super) fn sources(&self) -> &BTreeMap<String, Origin> {
        &self.sources
    }

    /// The place of a key inside of a table, or of the nearest enclosing key.
    pub(super) fn place(&self, name: &str) -> Option<&Origin> {
        let mut name = name;
        loop {
            if let Some(origin) = self.places.get(name) {
                return Some(origin);
            }
            name = &name[..name.rfind(['.', '['])?];
        }
    }

    /// Adds the variables of the environment, after the file.
    pub(super) fn add_environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), Failure> {
        for (variable, text) in variables {
            let key = self.keys.of_variable(&variable);
            let (name, kind) = match (key, keys::instance_of_variable(&variable)) {
                (Some(key), _) => (key.name.clone().into_owned(), key.kind),
                (None, Some(instance)) => {
                    (format!("{}.{instance}.secret", keys::INSTANCES), Kind::Secret)
                }
                (None, None) if keys::source_of_variable(&variable).is_some() => {
                    (self.secret_of_source(&variable)?, Kind::Secret)
                }
                (None, None) => {
                    self.check_unknown_variable(&variable, &text)?;
                    continue;
                }
            };
            let origin = Origin::Environment(variable);
            if text.is_empty() && kind != Kind::Secret {
                continue;
            }
            let value = from_text(&text, kind).ok_or_else(|| {
                Failure::usage(format!("{name} ({origin}): must be {}", kind.expected()))
            })?;
            self.set(&name, value, origin);
        }
        Ok(())
    }

    /// The key of the declared source whose secret is in `variable`.
    fn secret_of_source(&self, variable: &str) -> Result<String, Failure> {
        let mut sources =
            self.sources.keys().filter(|name| keys::source_variable(name) == variable);
        match (sources.next(), sources.next()) {
            (Some(source), None) => Ok(format!("{}.{source}.secret", keys::SOURCES)),
            (Some(one), Some(other)) => Err(Failure::usage(format!(
                "{variable}: is the variable of both sources {one} and {other}: unset it, and name a secret_file for each"
            ))),
            (None, _) => {
                let source = keys::source_of_variable(variable).unwrap_or_default();
                Err(Failure::usage(format!(
                    "{variable}: no such source is declared: add [sources.{source}] to the file, or unset it"
                )))
            }
        }
    }

    fn unknown_key(&self, name: &str, origin: &Origin) -> Failure {
        let leaf = name.rsplit('.').next().unwrap_or(name);
        let hint = if leaf.starts_with("DEZKY_") || self.keys.of_variable(leaf).is_some() {
            "a variable does not belong in the file: set it in the environment".to_owned()
        } else {
            let names = || self.keys.iter().map(|key| &*key.name);
            let tables = names().filter_map(|name| Some(name.rsplit_once('.')?.0));
            if let Some((table, leaf)) = name.rsplit_once('.')
                && keys::is_issuer_table(table)
            {
                let known = keys::ISSUER_LEAVES.iter().map(|(known, _)| *known);
                let hint = keys::hint(leaf, known, "docs/authentication.md lists the keys");
                return Failure::usage(format!(
                    "{name} ({origin}): is not a key of an issuer: {hint}"
                ));
            }
            keys::hint(name, names().chain(tables), "dezky-server config example lists the keys")
        };
        Failure::usage(format!("{name} ({origin}): is not a key of this file: {hint}"))
    }

    fn secret_in_file(&self, name: &str, origin: &Origin) -> Failure {
        let variable = self.keys.variable_of(name);
        let file = match name {
            "operator_token" => "operator_token_file",
            "authentik.token" => "token_file",
            "store.password" => "password_file",
            _ => "secret_files",
        };
        Failure::usage(format!(
            "{name} ({origin}): a secret must not be in this file: set {variable}, or name a separate file by {file}"
        ))
    }

    /// Refuses unknown variables that begin with `DEZKY_`, except those that Kubernetes sets for a
    /// service called dezky…, and those that name the servers of the tests.
    fn check_unknown_variable(&self, variable: &str, text: &str) -> Result<(), Failure> {
        if !variable.starts_with("DEZKY_")
            || [keys::CONFIG_VARIABLE, keys::FROM_VARIABLE, keys::TO_VARIABLE].contains(&variable)
            || variable.starts_with("DEZKY_TEST_")
            || is_service_link(variable, text)
        {
            return Ok(());
        }
        let known = self.keys.iter().map(|key| &*key.variable).chain([keys::CONFIG_VARIABLE]);
        let hint = keys::hint(variable, known, "dezky-server config example lists them");
        Err(Failure::usage(format!("{variable}: is not a variable of this program: {hint}")))
    }

    /// The table of keys.
    pub(super) fn keys(&self) -> Keys {
        self.keys
    }

    pub(super) fn set(&mut self, name: &str, value: Value, origin: Origin) {
        self.settings.insert(name.to_owned(), Setting { value, origin });
    }

    pub(super) fn get(&self, name: &str) -> Option<&Setting> {
        self.settings.get(name)
    }

    pub(super) fn text(&self, name: &str) -> Option<(&str, &Origin)> {
        match self.get(name)? {
            Setting { value: Value::Text(text), origin } => Some((text, origin)),
            _ => None,
        }
    }

    pub(super) fn list(&self, name: &str) -> Option<(&[String], &Origin)> {
        match self.get(name)? {
            Setting { value: Value::List(list), origin } => Some((list, origin)),
            _ => None,
        }
    }

    /// A number within the bounds of its key.
    pub(super) fn number(&self, name: &str) -> Result<u64, Failure> {
        let Some(Kind::Number(min, max)) = self.keys.kind_of(name) else {
            return Err(Failure::usage(format!("{name}: is not a number")));
        };
        match self.get(name) {
            Some(Setting { value: Value::Number(number), origin })
                if !(min..=max).contains(number) =>
            {
                Err(Failure::usage(format!(
                    "{name} ({origin}): is {number}: it must be {min} to {max}"
                )))
            }
            Some(Setting { value: Value::Number(number), .. }) => Ok(*number),
            _ => Err(Failure::usage(format!("{name}: is not set"))),
        }
    }

    pub(super) fn switch(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Setting { value: Value::Switch(true), .. }))
    }

    /// Every name and setting, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Setting)> {
        self.settings.iter().map(|(name, setting)| (name.as_str(), setting))
    }
}

/// A configuration file, which maps offsets to lines.
struct File<'a> {
    path: &'a Path,
    /// The offsets of the line feeds.
    line_feeds: Vec<usize>,
}

impl<'a> File<'a> {
    fn new(path: &'a Path, text: &str) -> Self {
        Self { path, line_feeds: text.match_indices('\n').map(|(at, _)| at).collect() }
    }

    fn origin(&self, offset: usize) -> Origin {
        let line = 1 + self.line_feeds.partition_point(|at| *at < offset);
        Origin::File { path: self.path.to_owned(), line }
    }
}

fn is_service_link(variable: &str, text: &str) -> bool {
    let is_url = text.starts_with("tcp://") || text.starts_with("udp://");
    variable.ends_with("_SERVICE_HOST")
        || variable.contains("_SERVICE_PORT")
        || (variable.ends_with("_PORT") && is_url)
        || variable.split("_PORT_").nth(1).is_some_and(|rest| {
            let mut words = rest.split('_');
            words.next().is_some_and(|port| port.parse::<u16>().is_ok())
                && words.next().is_some_and(|protocol| matches!(protocol, "TCP" | "UDP" | "SCTP"))
        })
}

fn typed(value: &DeValue<'_>, kind: Kind) -> Option<Value> {
    match (value, kind) {
        (DeValue::String(text), Kind::Text) => Some(Value::Text(text.to_string())),
        (DeValue::Boolean(on), Kind::Switch) => Some(Value::Switch(*on)),
        (DeValue::Integer(number), Kind::Number(..)) => {
            u64::from_str_radix(number.as_str(), number.radix()).ok().map(Value::Number)
        }
        (DeValue::Array(items), Kind::List) => items
            .iter()
            .map(|item| match item.get_ref() {
                DeValue::String(text) => Some(text.to_string()),
                _ => None,
            })
            .collect::<Option<_>>()
            .map(Value::List),
        _ => None,
    }
}

fn from_text(text: &str, kind: Kind) -> Option<Value> {
    Some(match kind {
        Kind::Text | Kind::Secret => Value::Text(text.to_owned()),
        Kind::List => Value::List(
            text.split(',')
                .map(|item| item.trim().to_owned())
                .filter(|item| !item.is_empty())
                .collect(),
        ),
        Kind::Number(..) => Value::Number(text.trim().parse().ok()?),
        Kind::Table => return None,
        Kind::Switch => Value::Switch(match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => true,
            "false" | "0" | "no" | "off" => false,
            _ => return None,
        }),
    })
}

fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or_default()
}

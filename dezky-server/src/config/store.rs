//! `[store]`: the store and the options of its connections.

use std::path::PathBuf;

use dezky::url::{OPTIONS, StoreOption};
use dezky::{StoreConfig, StoreUrl};

use super::keys::{Key, Kind, key};
use super::layers::{Origin, Setting, Value};
use super::paths::is_same_file;
use super::settings::{Settings, refused};
use crate::failure::Failure;

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("store.url", "DEZKY_STORE", Kind::Text, "\"sqlite://dezky.db\"", "",
        "The store of the log: sqlite:// and the path of a file, literally; with three\nslashes it is absolute (sqlite:///var/lib/dezky/audit.db). Or the URL of a server:\npostgres://dezky@db.example.com/platform?sslmode=verify-full or\nmongodb://dezky@db.example.com/platform?replicaSet=rs0&tls=true, in the environment\nwith a password. A URL as the key store at the root of the file does the same."),
    key("store.password", "DEZKY_STORE_PASSWORD", Kind::Secret, "", "",
        "The password of the user in the URL, literally."),
    key("store.password_file", "DEZKY_STORE_PASSWORD_FILE", Kind::Text, "", "\"/run/secrets/dezky-store-password\"",
        "A file with that password; a newline at its end is ignored."),
    key("store.migrate", "DEZKY_STORE_MIGRATE", Kind::Switch, "true", "",
        "With false a schema that is not up to date stops the start; `dezky-server migrate`\nupdates it."),
];

/// The key of the URL.
pub(super) const URL: &str = "store.url";

/// The options that are keys: their names, ranges, defaults and descriptions are the library's.
/// Whether other programs share the database is for embedders to say.
fn options() -> impl Iterator<Item = (String, &'static StoreOption)> {
    let options = OPTIONS.iter().filter(|option| option.name != "shared");
    options.map(|option| (format!("store.{}", option.name), option))
}

/// The keys of the options.
pub(super) fn option_keys() -> Vec<Key> {
    let key = |(name, option): (String, &StoreOption)| {
        let variable = format!("DEZKY_STORE_{}", option.name.to_uppercase());
        let default = option.default_value();
        let (kind, default) = match option.range() {
            Some(range) => (Kind::Number((*range.start()).into(), (*range.end()).into()), default),
            None => (Kind::Text, format!("\"{default}\"")),
        };
        let about = option.about.trim_end_matches('.');
        let about = format!("{about}:\n{}; for {}.", option.allowed(), option.engines.join(", "));
        Key::new(name, variable, kind, default, about)
    };
    options().map(key).collect()
}

/// Reads a store's URL. Errors do not repeat it, because it may contain a password.
fn parse(url: &str) -> Result<StoreUrl, String> {
    match StoreUrl::parse(url) {
        Ok(StoreUrl::Memory) => {
            Err("must outlive the process: write sqlite:// and the path of a file".into())
        }
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

impl Settings {
    /// The configured store. Reads no other section.
    pub fn store(&self) -> Result<StoreConfig, Failure> {
        let (text, origin) = self.required(URL)?;
        let url = parse(text).map_err(|problem| refused(URL, origin, problem))?;
        if url.has_password() && matches!(origin, Origin::File { .. }) {
            return Err(refused(
                URL,
                origin,
                "a password must not be in this file: set DEZKY_STORE_PASSWORD, or name a file by password_file",
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

    /// A store that a command names by `option`: with the configured options, and the password of
    /// its own URL.
    pub fn store_at(&self, option: &'static str, url: &str) -> Result<StoreConfig, Failure> {
        let url = parse(url).map_err(|problem| Failure::usage(format!("{option}: {problem}")))?;
        self.store_with(url)
    }

    fn store_with(&self, url: StoreUrl) -> Result<StoreConfig, Failure> {
        let mut config = StoreConfig::new(url);
        for (name, option) in options() {
            let Some(Setting { value, origin }) = self.layers.get(&name) else { continue };
            let text = match value {
                Value::Number(number) => &number.to_string(),
                Value::Text(text) => text,
                _ => continue,
            };
            option.set(&mut config, text).map_err(|problem| refused(&name, origin, problem))?;
        }
        Ok(config)
    }

    /// The head file of the configured store, outside of the database: `head.path` if it is set,
    /// else next to an SQLite file or in the working folder.
    pub fn head_path(&self, url: &StoreUrl) -> PathBuf {
        match self.layers.text("head.path") {
            Some((path, _)) if !path.is_empty() => path.into(),
            _ => head_next_to(url).unwrap_or_else(|| PathBuf::from("dezky.head")),
        }
    }

    /// The head file of a store that a command names. `head.path` and the file in the working
    /// folder are the configured store's; another one has a head file only next to its own file.
    pub(crate) fn head_path_of(&self, url: &StoreUrl) -> Option<PathBuf> {
        // Without a readable configuration it could be that one.
        let is_configured =
            self.store().map_or(true, |config| match (config.url.file(), url.file()) {
                // Also if neither is there yet.
                (Some(one), Some(other)) => is_same_file(one, other),
                _ => config.url.is_same_store(url),
            });
        if is_configured { Some(self.head_path(url)) } else { head_next_to(url) }
    }

    /// The store's URL as it may be shown.
    pub(super) fn shown_url(text: &str) -> String {
        parse(text).map_or_else(|_| "(refused)".into(), |url| url.to_string())
    }
}

/// The head file next to the file of an SQLite store.
fn head_next_to(url: &StoreUrl) -> Option<PathBuf> {
    let mut name = url.file()?.as_os_str().to_owned();
    name.push(".head");
    Some(name.into())
}

/// Checks the file of a store, and its folder. Changes nothing.
pub(super) fn check(url: &StoreUrl) -> Result<(), Failure> {
    let Some(path) = url.file() else { return Ok(()) };
    let refused = |problem| Err(Failure::usage(format!("store {url}: {problem}")));
    if !super::files::folder_of(path).is_dir() {
        return refused("its folder does not exist: create it");
    }
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => refused("it is a folder: name a file"),
        Ok(found) if !found.is_file() => refused("it is not a regular file: name a file"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_in_memory_is_for_embedders() {
        assert!(parse("memory://").unwrap_err().contains("must outlive the process"));
    }
}

//! Where the store is, and how it is used.

use std::path::PathBuf;

use dezky::url::OPTIONS;
use dezky::{StoreConfig, StoreUrl};

use super::layers::{Origin, Setting, Value};
use super::settings::{Settings, refused};
use crate::failure::Failure;

/// The key of the URL.
pub(super) const URL: &str = "store.url";

/// Reads a store's URL. An error does not repeat it: there may be a password in it.
fn parse(url: &str) -> Result<StoreUrl, String> {
    match StoreUrl::parse(url) {
        Ok(StoreUrl::Memory) => {
            Err("must outlive the process: write sqlite:// and the path of a file".into())
        }
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

impl Settings {
    /// Where the store is, and how it is used; looks at no other key.
    pub fn store(&self) -> Result<StoreConfig, Failure> {
        let (text, origin) = self.required(URL)?;
        let url = parse(text).map_err(|problem| refused(URL, origin, problem))?;
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
        let url = parse(url).map_err(|problem| Failure::usage(format!("{option}: {problem}")))?;
        self.store_with(url)
    }

    fn store_with(&self, url: StoreUrl) -> Result<StoreConfig, Failure> {
        let mut config = StoreConfig::new(url);
        for option in OPTIONS {
            let name = format!("store.{}", option.name);
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

    /// Where the head that the log has come to is kept, outside of the database:
    /// next to an SQLite file unless it is set, else in the working folder.
    pub fn head_path(&self, url: &StoreUrl) -> PathBuf {
        let set = self.layers.text("head.path").filter(|(path, _)| !path.is_empty());
        match (set, url.file()) {
            (Some((path, _)), _) => path.into(),
            (None, Some(file)) => {
                let mut name = file.as_os_str().to_owned();
                name.push(".head");
                name.into()
            }
            (None, None) => PathBuf::from("dezky.head"),
        }
    }

    /// The store's URL as it may be shown.
    pub(super) fn shown_url(text: &str) -> String {
        parse(text).map_or_else(|_| "(refused)".into(), |url| url.to_string())
    }
}

/// Checks the file of a store, and its folder. Changes nothing.
pub(super) fn check(url: &StoreUrl) -> Result<(), Failure> {
    let Some(path) = url.file() else { return Ok(()) };
    let refused = |problem| Err(Failure::usage(format!("store {url}: {problem}")));
    if !super::files::folder_of(path).is_dir() {
        return refused("its folder does not exist: make it");
    }
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => refused("it is a folder: name a file"),
        Ok(found) if !found.is_file() => refused("it is not a regular file: name a file"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::KEYS;
    use super::*;

    /// The table of keys states defaults and ranges for the example; the library has them too.
    #[test]
    fn the_keys_of_options_say_what_the_library_does() {
        let keys = KEYS.iter().filter(|key| key.name.starts_with("store."));
        let mut compared = 0;
        for key in keys {
            let option = OPTIONS.iter().find(|option| key.name == format!("store.{}", option.name));
            let Some(option) = option else { continue };
            assert_eq!(key.default.trim_matches('"'), option.default_value(), "{}", key.name);
            if option.range().is_some() {
                let about = key.about().replace('\n', " ");
                assert!(about.contains(&option.allowed()), "{}: {about}", key.name);
            }
            compared += 1;
        }
        // Whether other programs share the database is for embedders to say.
        assert_eq!(compared, OPTIONS.len() - 1);
    }

    #[test]
    fn a_store_in_memory_is_for_embedders() {
        assert!(parse("memory://").unwrap_err().contains("must outlive the process"));
    }
}

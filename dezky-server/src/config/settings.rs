//! The settings, and how sections read them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dezky_ingest::signature::Secret;

use super::files;
use super::keys::Kind;
use super::layers::{Layers, Origin, Setting, Value};
use crate::failure::Failure;

/// The maximum size of a file with a secret, in bytes.
const MAX_SECRET_FILE_BYTES: u64 = 64 << 10;

/// All values that are set, with their origins; unchecked.
#[derive(Debug)]
pub struct Settings {
    pub(super) layers: Layers,
    /// The configuration file.
    pub(super) file: Option<PathBuf>,
}

impl Settings {
    pub(super) fn required(&self, name: &str) -> Result<(&str, &Origin), Failure> {
        self.layers.text(name).ok_or_else(|| Failure::usage(format!("{name}: is not set")))
    }

    /// A number within the bounds of its key.
    pub(super) fn number(&self, name: &str) -> Result<u64, Failure> {
        self.layers.number(name)
    }

    /// A number of bytes, events or the like.
    pub(super) fn size(&self, name: &str) -> Result<usize, Failure> {
        self.number(name).map(size)
    }

    /// A number of seconds.
    pub(super) fn seconds(&self, name: &str) -> Result<Duration, Failure> {
        self.number(name).map(Duration::from_secs)
    }

    /// The path of a file; `None` if it is not set. (An empty variable is not.)
    pub(super) fn path(&self, name: &str) -> Result<Option<PathBuf>, Failure> {
        match self.layers.text(name) {
            Some(("", origin)) => {
                Err(refused(name, origin, "is empty: name a file, or leave it out"))
            }
            path => Ok(path.map(|(path, _)| path.into())),
        }
    }

    /// A secret from its variable or from the file that a second key names, with the key that
    /// gave it.
    pub(super) fn secret_or_file<'a>(
        &'a self,
        secret: &'a str,
        file: &'a str,
    ) -> Result<Option<(String, &'a str, &'a Origin)>, Failure> {
        let is_environment = |origin: &Origin| matches!(origin, Origin::Environment(_));
        match (self.layers.text(secret), self.layers.text(file)) {
            (Some(_), Some((_, origin))) if is_environment(origin) => {
                let problem =
                    format!("{} is set as well: unset one", self.layers.keys().variable_of(secret));
                Err(refused(file, origin, problem))
            }
            (Some((text, origin)), _) => Ok(Some((text.to_owned(), secret, origin))),
            (None, Some((path, origin))) => {
                Ok(Some((read_secret(file, origin, path)?, file, origin)))
            }
            (None, None) => Ok(None),
        }
    }

    /// The secrets that the keys `leaves` give below `prefix`, in this order, each built from its
    /// text by `secret`.
    pub(super) fn secrets_of(
        &self,
        prefix: &str,
        leaves: &[&str],
        secret: impl Fn(&str) -> dezky_core::Result<Secret>,
    ) -> Result<Vec<Secret>, Failure> {
        let mut secrets = Vec::new();
        for leaf in leaves {
            let name = format!("{prefix}.{leaf}");
            let Some(Setting { value, origin }) = self.layers.get(&name) else { continue };
            let texts = match (value, self.layers.keys().kind_of(&name)) {
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
                // The error's text does not contain the secret.
                secrets.push(secret(&text).map_err(|error| refused(&name, origin, error))?);
            }
        }
        Ok(secrets)
    }
}

pub(super) fn read_secret(name: &str, origin: &Origin, path: &str) -> Result<String, Failure> {
    let problem = |what: &dyn fmt::Display| refused(name, origin, format!("{path}: {what}"));
    let text =
        files::read(Path::new(path), MAX_SECRET_FILE_BYTES).map_err(|what| problem(&what))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.trim().is_empty() {
        return Err(problem(&"the file is empty or blank: write the secret into it"));
    }
    Ok(text.to_owned())
}

pub(super) fn refused(name: &str, origin: &Origin, problem: impl fmt::Display) -> Failure {
    Failure::usage(format!("{name} ({origin}): {problem}"))
}

pub(super) fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

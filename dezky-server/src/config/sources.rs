//! `[sources.<name>]`: declared sources.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use dezky_ingest::generic::{Mapping, MappingConfig};
use dezky_ingest::signature::{Scheme, SchemeConfig, Secrets};
use serde::de::DeserializeOwned;

use super::keys;
use super::layers::{Origin, Setting, Value};
use super::settings::{Settings, refused, size};
use crate::failure::Failure;

/// A declared source.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// The map from its objects to events.
    pub mapping: Mapping,
    /// The secrets that sign its posts; none if it may not post.
    pub secrets: Option<Secrets>,
    /// The scheme of the signatures.
    pub scheme: Scheme,
    /// The file that it writes, if any.
    pub file: Option<FollowedFile>,
}

/// A file of JSON lines.
#[derive(Debug, Clone)]
pub struct FollowedFile {
    /// The live file.
    pub path: PathBuf,
    /// The interval between reads.
    pub poll: Duration,
    /// The bound of a line.
    pub max_line_bytes: usize,
}

impl Settings {
    pub(super) fn sources(&self) -> Result<BTreeMap<String, SourceConfig>, Failure> {
        let sources = self.layers.sources().iter();
        sources.map(|(name, origin)| Ok((name.clone(), self.source(name, origin)?))).collect()
    }

    /// The maps of the declared sources. Reads no other section.
    pub fn mappings(&self) -> Result<Vec<Mapping>, Failure> {
        let sources = self.layers.sources().iter();
        sources
            .map(|(name, origin)| self.mapping(name, &format!("{}.{name}", keys::SOURCES), origin))
            .collect()
    }

    fn source(&self, name: &str, origin: &Origin) -> Result<SourceConfig, Failure> {
        let prefix = format!("{}.{name}", keys::SOURCES);
        let mapping = self.mapping(name, &prefix, origin)?;
        let scheme = self.scheme(&prefix, origin)?;
        let leaves = ["secret", "secret_file", "secret_files"];
        let secrets = self.secrets_of(&prefix, &leaves, |text| scheme.secret(text))?;
        let file = self.followed_file(&prefix)?;
        if secrets.is_empty() && file.is_none() {
            let variable = keys::source_variable(name);
            let problem = format!(
                "has neither a secret nor a path: set {variable} or secret_file for signed posts, path for a file"
            );
            return Err(refused(&prefix, origin, problem));
        }
        Ok(SourceConfig { mapping, secrets: Secrets::new(secrets).ok(), scheme, file })
    }

    fn scheme(&self, prefix: &str, origin: &Origin) -> Result<Scheme, Failure> {
        let key = format!("{prefix}.signature");
        let config: SchemeConfig = self.table(&key, origin)?;
        Scheme::compile(&config).map_err(|problem| {
            let key = format!("{key}.{}", problem.field);
            refused(&key, self.layers.place(&key).unwrap_or(origin), problem.problem)
        })
    }

    /// A table that is read as a whole, or the default without it.
    fn table<T: DeserializeOwned + Default>(
        &self,
        key: &str,
        origin: &Origin,
    ) -> Result<T, Failure> {
        let Some(Setting { value: Value::Table(table), .. }) = self.layers.get(key) else {
            return Ok(T::default());
        };
        serde_path_to_error::deserialize(table).map_err(|error| {
            let path = error.path().to_string();
            let key = if path == "." { key.to_owned() } else { format!("{key}.{path}") };
            refused(&key, self.layers.place(&key).unwrap_or(origin), error.inner())
        })
    }

    fn mapping(&self, source: &str, prefix: &str, origin: &Origin) -> Result<Mapping, Failure> {
        let key = format!("{prefix}.map");
        let config: MappingConfig = self.table(&key, origin)?;
        Mapping::compile(source, &config).map_err(|problem| {
            if problem.field.is_empty() {
                return refused(prefix, origin, problem);
            }
            let key = format!("{key}.{}", problem.field);
            refused(&key, self.layers.place(&key).unwrap_or(origin), problem.problem)
        })
    }

    fn followed_file(&self, prefix: &str) -> Result<Option<FollowedFile>, Failure> {
        let key = |leaf: &str| format!("{prefix}.{leaf}");
        let path = key("path");
        let number = |leaf: &str, default: u64| {
            let key = key(leaf);
            let Some(Setting { origin, .. }) = self.layers.get(&key) else { return Ok(default) };
            if self.layers.get(&path).is_none() {
                return Err(refused(
                    &key,
                    origin,
                    "has no effect without a file: set path, or leave it out",
                ));
            }
            self.number(&key)
        };
        let poll = Duration::from_secs(number("poll_seconds", 5)?);
        let max_line_bytes = size(number("max_line_bytes", 1 << 20)?);
        let path = self.path(&path)?;
        Ok(path.map(|path| FollowedFile { path, poll, max_line_bytes }))
    }
}

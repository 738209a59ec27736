//! `[log]`: how logs are written.

use tracing_subscriber::EnvFilter;

use super::keys::{Key, Kind, key};
use super::settings::{Settings, refused};
use crate::failure::Failure;

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("log.level", "DEZKY_LOG", Kind::Text, "\"info\"", "",
        "error, warn, info, debug or trace, or by module: \"info,dezky_ingest=debug\"."),
    key("log.format", "DEZKY_LOG_FORMAT", Kind::Text, "\"text\"", "",
        "text or json, on the standard error."),
];

/// How logs are written.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Directives in the syntax of [`EnvFilter`].
    pub level: String,
    /// Whether to log JSON, one object a line, instead of text.
    pub json: bool,
}

impl Settings {
    /// How logs are written; looks at no other key.
    pub fn log(&self) -> Result<LogConfig, Failure> {
        let (level, origin) = self.required("log.level")?;
        // A word that is not a level would name a module and silence the rest.
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
}

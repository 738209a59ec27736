//! Checks of the folders and files that the configuration names.

use std::path::Path;

use super::files::{self, Holds, folder_of, reason};
use super::head::NOT_A_HEAD_FILE;
use super::{Config, store};
use crate::failure::Failure;

impl Config {
    /// Whether other machines could send requests without a token.
    pub fn is_open_to_others(&self) -> bool {
        self.needs_no_token() && !self.listen.ip().to_canonical().is_loopback()
    }

    /// Whether callers need no token, neither the operators' nor an issuer's.
    fn needs_no_token(&self) -> bool {
        self.operator_token.is_none() && self.issuers.is_empty()
    }

    /// Warnings about data files that other users can write to.
    fn open_files(&self) -> impl Iterator<Item = String> {
        let store = self.store.url.file();
        let spool = self.spool.as_ref().map(|spool| spool.path.as_path());
        let files = [store, Some(self.head_path.as_path()), spool, self.flags.file.as_deref()];
        files.into_iter().flatten().filter_map(|path| {
            let weakness = files::weakness(path, Holds::Settings)?;
            Some(format!("{}: {weakness}", path.display()))
        })
    }

    /// Checks the folders and files that the configuration names. Changes nothing. Returns
    /// warnings.
    pub fn check(&self) -> Result<Vec<String>, Failure> {
        if self.is_open_to_others() {
            return Err(Failure::usage(format!(
                "listen {}: others could read and change everything without a token: set DEZKY_OPERATOR_TOKEN, configure an issuer (auth.issuers), or listen on 127.0.0.1",
                self.listen
            )));
        }
        let mut warnings = self.weaknesses.clone();
        let mut profiles = self.issuers.iter().map(|issuer| &issuer.profile);
        if self.operator_token.is_none()
            && !self.issuers.is_empty()
            && profiles.all(|profile| profile.operator_audiences.is_empty())
        {
            warnings.push("no operator can sign in: no issuer accepts an audience for operators; add one of auth.operator_audiences to its audiences, or set DEZKY_OPERATOR_TOKEN".to_owned());
        }
        if self.needs_no_token() {
            warnings.push("no operator token: everybody on this machine can read the log and change tenants and flags; set DEZKY_OPERATOR_TOKEN, or configure an issuer (auth.issuers)".to_owned());
        }
        warnings.extend(self.open_files());
        store::check(&self.store.url)?;
        let folder = folder_of(&self.head_path);
        if !folder.is_dir() {
            return Err(Failure::usage(format!(
                "head.path {}: its folder does not exist: create it",
                self.head_path.display()
            )));
        }
        if self.head_path.exists() && !self.head_path.is_file() {
            return Err(Failure::usage(format!(
                "head.path {}: {}",
                self.head_path.display(),
                NOT_A_HEAD_FILE
            )));
        }
        if let Some(spool) = &self.spool {
            spool.check().map_err(|error| {
                Failure::usage(format!("spool.path {}: {error}", spool.path.display()))
            })?;
        }
        if let Some(file) = &self.flags.file {
            let refused =
                |problem| Err(Failure::usage(format!("flags.file {}: {problem}", file.display())));
            if !folder_of(file).is_dir() {
                return refused("its folder does not exist: create it");
            }
            if file.exists() && !file.is_file() {
                return refused("is not a regular file: name one, such as flags.json");
            }
            dezky_flags::live::check_file(file)
                .map_err(|error| Failure::usage(format!("flags.file {error}")))?;
        }
        if self.ingest_enabled {
            if let Some(ocis) = &self.ocis {
                let key = "ocis.log_path";
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

/// Checks a file to follow. A missing file is not an error, because its system creates it with
/// the first line; an unreadable one is.
fn check_file(key: &str, what: &str, path: &Path) -> Result<Option<String>, Failure> {
    let refused = |problem: &str| Failure::usage(format!("{key} {}: {problem}", path.display()));
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            Err(refused("is a folder: name the file in it, such as audit.log"))
        }
        Ok(metadata) if !metadata.is_file() => {
            Err(refused("is not a regular file: name a log file"))
        }
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

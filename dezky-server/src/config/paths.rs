//! Checks that two keys never name the same file if this program writes it: one use would destroy
//! the other, as when the flags replace the log.

use std::path::{Path, PathBuf};

use dezky::StoreUrl;

use super::files::folder_of;
use super::keys::STORE_URL;
use super::layers::{Setting, Value};
use super::settings::Settings;
use crate::failure::Failure;

/// The endings of the files that SQLite and its store keep next to a database.
const BESIDE_STORE: &[&str] = &["-wal", "-shm", "-journal", ".probe"];
/// The ending of a file that replaces another once it is complete.
const BESIDE_REPLACED: &[&str] = &[".new"];

/// A file that the configuration or an option names.
struct Named {
    /// The key and where its value comes from, or the option.
    by: String,
    path: PathBuf,
    is_written: bool,
    /// The endings of the files that are created next to it.
    siblings: &'static [&'static str],
}

impl Named {
    fn written(by: String, path: PathBuf, siblings: &'static [&'static str]) -> Self {
        Self { by, path, is_written: true, siblings }
    }

    /// The file that both would use, if one of them writes it.
    fn shared_with(&self, other: &Self) -> Option<PathBuf> {
        if !self.is_written && !other.is_written {
            return None;
        }
        let of = |one: &Self, other: &Self| {
            let endings = [""].into_iter().chain(one.siblings.iter().copied());
            endings
                .map(|ending| with_ending(&one.path, ending))
                .find(|path| is_same_file(path, &other.path))
        };
        of(self, other).or_else(|| of(other, self))
    }
}

impl Settings {
    /// Refuses two keys that name one file, unless both only read it.
    pub(super) fn check_named_once(&self, url: &StoreUrl) -> Result<(), Failure> {
        let all = self.named_files(url);
        for (at, one) in all.iter().enumerate() {
            if let Some(problem) = all[..at].iter().find_map(|other| clash(one, other)) {
                return Err(problem);
            }
        }
        Ok(())
    }

    /// Refuses to write a file that the configuration names, or one next to it.
    pub(crate) fn check_output(&self, option: &str, path: &Path) -> Result<(), Failure> {
        let written = Named::written(option.to_owned(), path.to_owned(), BESIDE_REPLACED);
        let all = self.named_files(&self.store()?.url);
        all.iter().find_map(|other| clash(&written, other)).map_or(Ok(()), Err)
    }

    /// Refuses a store that a command would create at a file that the configuration names for
    /// another purpose.
    pub(crate) fn check_other_store(&self, option: &str, url: &StoreUrl) -> Result<(), Failure> {
        let StoreUrl::Sqlite(path) = url else { return Ok(()) };
        let written = Named::written(option.to_owned(), path.clone(), BESIDE_STORE);
        let all = self.named_files(url);
        // The first is the store itself.
        all[1..].iter().find_map(|other| clash(&written, other)).map_or(Ok(()), Err)
    }

    /// The store's file first.
    fn named_files(&self, url: &StoreUrl) -> Vec<Named> {
        let by = |name: &str| match self.layers.get(name) {
            Some(Setting { origin, .. }) => format!("{name} ({origin})"),
            None => format!("{name} (default)"),
        };
        let mut all = Vec::new();
        if let StoreUrl::Sqlite(path) = url {
            all.push(Named::written(by(STORE_URL), path.clone(), BESIDE_STORE));
        }
        all.push(Named::written(by("head.path"), self.head_path(url), &[]));
        for name in ["spool.path", "flags.file"] {
            // An empty one is refused where it is read.
            let path = self.path(name).ok().flatten();
            all.extend(path.map(|path| Named::written(by(name), path, BESIDE_REPLACED)));
        }
        let mut read = |by: String, path: &Path| {
            all.push(Named { by, path: path.to_owned(), is_written: false, siblings: &[] });
        };
        if let Some(path) = &self.file {
            read("--config".into(), path);
        }
        for (name, Setting { value, .. }) in self.layers.iter() {
            if !self.layers.keys().is_read_file(name) {
                continue;
            }
            let paths: &[String] = match value {
                Value::Text(path) => std::slice::from_ref(path),
                Value::List(paths) => paths,
                _ => continue,
            };
            for path in paths.iter().filter(|path| !path.is_empty()) {
                read(by(name), Path::new(path));
            }
        }
        all
    }
}

/// The refusal of a file that both name.
fn clash(one: &Named, other: &Named) -> Option<Failure> {
    let shared = one.shared_with(other)?;
    Some(Failure::usage(format!(
        "{} {}: {} is the file of {}: name another one",
        one.by,
        one.path.display(),
        shared.display(),
        other.by
    )))
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Whether both paths lead to the same file, links included. A file that does not exist yet is
/// identified by its folder and its name.
pub(super) fn is_same_file(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        (Err(_), Err(_)) => place(one) == place(other),
        _ => false,
    }
}

/// The place of a file that does not exist.
fn place(path: &Path) -> PathBuf {
    // A link that leads nowhere yet: the file will be made where it points.
    if let Ok(target) = path.read_link() {
        return place_of_file(&folder_of(path).join(target));
    }
    place_of_file(path)
}

fn place_of_file(path: &Path) -> PathBuf {
    let folder = folder_of(path);
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    path.file_name().map_or_else(|| folder.clone(), |name| folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_any_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "x").unwrap();
        std::fs::hard_link(at("file"), at("hard")).unwrap();
        std::os::unix::fs::symlink("file", at("soft")).unwrap();
        std::os::unix::fs::symlink("missing", at("dangling")).unwrap();
        std::fs::create_dir(at("sub")).unwrap();
        for (one, other, same) in [
            ("file", "hard", true),
            ("file", "soft", true),
            ("file", "sub/../file", true),
            ("missing", "sub/../missing", true),
            ("missing", "dangling", true),
            ("missing", "file", false),
            ("missing", "sub/missing", false),
            ("file", "sub", false),
        ] {
            assert_eq!(is_same_file(&at(one), &at(other)), same, "{one} {other}");
            assert_eq!(is_same_file(&at(other), &at(one)), same, "{other} {one}");
        }
    }
}

//! Files alongside the live one: listed, opened, and without copies.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dezky_core::{Error, Result};

use super::{Job, SCANS, unreadable};
use crate::tail::opened::{Opened, Seen, identity, mtime_ns};
use crate::tail::{Age, Place, Rotated};

/// Content of the directory.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) siblings: Vec<Seen>,
    /// Inodes and names, to detect changes meanwhile.
    pub(super) listing: Vec<(u64, String)>,
    /// The modification times of files beyond `max_siblings`.
    pub(super) left_out: Vec<i64>,
}

/// A file in the directory.
struct Entry {
    /// Includes its name if that marks a rotated file.
    age: Age,
    path: PathBuf,
    name: String,
    inode: u64,
}

impl Job {
    /// Opens the file of a generation, with its cached state from earlier pulls.
    pub(super) fn open(&self, path: &Path, name: Option<Rotated>) -> io::Result<Option<Seen>> {
        let Some((opened, metadata)) = Opened::open(path, &self.budget)? else { return Ok(None) };
        let known = self.cache.opened.iter().chain(&self.cache.twins);
        let known = known.into_iter().find(|known| known.serves(&opened)).cloned();
        let opened = known.unwrap_or_else(|| Arc::new(opened));
        if opened.is_compressed() {
            let mut decoders = self.decoders.borrow_mut();
            if !decoders.iter().any(|known| Arc::ptr_eq(known, &opened)) {
                decoders.push(Arc::clone(&opened));
            }
        }
        Seen::new(opened, &metadata, name).map(Some)
    }

    pub(super) fn live(&self) -> Result<Option<Seen>> {
        let seen = self.open(&self.config.path, None).map_err(unreadable)?;
        Ok(seen.map(|seen| Seen { is_live: true, ..seen }))
    }

    /// Files that contain `at` although their names do not mark them as rotated; they are
    /// recognized by their content.
    pub(super) fn strays(&self, at: &Place, live: Option<&Seen>) -> Result<Vec<Seen>> {
        let mut strays = self.list(Kind::Stray { inode: at.inode })?;
        strays.drain(..strays.len().saturating_sub(self.config.max_siblings));
        let mut holding = Vec::new();
        for entry in strays {
            // An unreadable file does not count.
            let Ok(Some(seen)) = self.open(&entry.path, None) else { continue };
            let is_live = live.is_some_and(|live| live.opened.is(&seen.opened));
            if !is_live && seen.holds(at).unwrap_or(false) {
                holding.push(seen);
            }
        }
        Ok(holding)
    }

    /// The rotated files, the oldest first, without the live one. If the directory changes
    /// meanwhile, it is listed again.
    pub(super) fn scan(&self, live: Option<&Seen>) -> Result<Scan> {
        let mut scan = Scan::default();
        let mut entries = self.list(Kind::Rotated)?;
        for _ in 0..SCANS {
            scan = self.open_all(live, &mut entries);
            without_copies(&mut scan.siblings, None)?;
            *self.siblings.borrow_mut() = Some(scan.siblings.clone());
            let again = self.list(Kind::Rotated)?;
            let listing = |entries: &[Entry]| -> Vec<_> {
                entries.iter().map(|entry| (entry.inode, entry.name.clone())).collect()
            };
            if listing(&again) == scan.listing {
                return Ok(scan);
            }
            entries = again;
        }
        // Endless renaming must not block the pull.
        tracing::warn!(source = self.config.source, "the rotated files keep changing");
        Ok(scan)
    }

    /// The rotated files in the directory, or other files that may be rotated ones, the oldest
    /// first.
    fn list(&self, kind: Kind) -> Result<Vec<Entry>> {
        let path = &self.config.path;
        let base = path.file_name().and_then(|name| name.to_str());
        let (Some(base), Some(directory)) = (base, path.parent()) else { return Ok(Vec::new()) };
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let mut found = Vec::new();
        list_in(directory, &mut found, &|name, inode| {
            kind.takes(Rotated::parse(base, name), base, name, inode)
        })?;
        // The live path may be a link to a file that is rotated in its own directory.
        if let Some((directory, target)) = self.linked() {
            list_in(&directory, &mut found, &|name, inode| {
                let by_name = Rotated::parse_dated(&target, name);
                let by_name = by_name.or_else(|| Rotated::parse(&target, name));
                kind.takes(by_name.filter(|_| name != target), &target, name, inode)
            })?;
        }
        found.sort_by(|a, b| (&a.age, &a.name).cmp(&(&b.age, &b.name)));
        found.dedup_by(|a, b| a.inode != 0 && (a.inode, &a.name) == (b.inode, &b.name));
        Ok(found)
    }

    /// The folder and name of the file that the live path links to.
    fn linked(&self) -> Option<(PathBuf, String)> {
        let path = &self.config.path;
        if !std::fs::symlink_metadata(path).ok()?.is_symlink() {
            return None;
        }
        let target = std::fs::canonicalize(path).ok()?;
        let name = target.file_name()?.to_str()?.to_owned();
        Some((target.parent()?.to_owned(), name))
    }

    fn open_all(&self, live: Option<&Seen>, entries: &mut Vec<Entry>) -> Scan {
        let mut scan = Scan {
            listing: entries.iter().map(|entry| (entry.inode, entry.name.clone())).collect(),
            ..Scan::default()
        };
        let source = &self.config.source;
        // A file that is being compressed exists twice until that is done.
        let names = entries.iter().filter_map(|entry| entry.age.name.clone());
        let plain: Vec<Rotated> = names.filter(|name| !name.is_compressed).collect();
        if entries.len() > self.config.max_siblings {
            let left_out = entries.drain(..entries.len() - self.config.max_siblings);
            scan.left_out = left_out.map(|entry| entry.age.mtime_ns).collect();
        }
        for entry in entries.drain(..) {
            let name = entry.age.name.as_ref();
            let is_being_made =
                name.is_some_and(|name| plain.iter().any(|plain| plain.is_place_of(name)));
            match self.open(&entry.path, entry.age.name) {
                Ok(None) => {}
                Ok(Some(seen)) if live.is_some_and(|live| live.opened.is(&seen.opened)) => {}
                Ok(Some(seen)) if seen.generation.is_none() && is_being_made => {}
                Ok(Some(seen)) => {
                    if seen.opened.is_compressed()
                        && !self
                            .cache
                            .opened
                            .iter()
                            .chain(&self.cache.twins)
                            .any(|kept| Arc::ptr_eq(kept, &seen.opened))
                    {
                        seen.opened.rest();
                    }
                    scan.siblings.push(seen);
                }
                Err(e) => tracing::warn!(source, error = %e, "a rotated file can't be read"),
            }
        }
        scan
    }
}

/// Which files are listed.
#[derive(Clone, Copy)]
enum Kind {
    /// Files whose names mark them as rotated.
    Rotated,
    /// Files whose content may prove it: they have the inode or the beginning of the name.
    Stray { inode: u64 },
}

impl Kind {
    /// Why a file is listed; `None` if it is not.
    fn takes(self, rotated: Option<Rotated>, base: &str, name: &str, inode: u64) -> Option<Listed> {
        match (self, rotated) {
            (Self::Rotated, Some(rotated)) => Some(Listed::ByName(rotated)),
            (Self::Stray { inode: known }, None) => {
                let stem = base.rsplit_once('.').map_or(base, |(stem, _)| stem);
                let is_alike = name != base && !stem.is_empty() && name.starts_with(stem);
                (is_alike || (inode != 0 && inode == known)).then_some(Listed::ByContent)
            }
            _ => None,
        }
    }
}

/// Why a file is listed.
enum Listed {
    /// Its name marks it as rotated.
    ByName(Rotated),
    /// Its content may prove it.
    ByContent,
}

/// Adds the regular files of `directory` that `takes` accepts, by name and inode.
fn list_in(
    directory: &Path,
    found: &mut Vec<Entry>,
    takes: &dyn Fn(&str, u64) -> Option<Listed>,
) -> Result<()> {
    let failed = |e: io::Error| Error::from(e).context("the file's directory can't be read");
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(());
        }
        Err(e) => return Err(failed(e)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let Some(listed) = takes(&name, inode_of(&entry)) else { continue };
        let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
        if metadata.is_file() {
            let by_name = match listed {
                Listed::ByName(rotated) => Some(rotated),
                Listed::ByContent => None,
            };
            let age = Age { mtime_ns: mtime_ns(&metadata), name: by_name };
            let (_, inode) = identity(&metadata);
            found.push(Entry { age, path: entry.path(), name, inode });
        }
    }
    Ok(())
}

#[cfg(unix)]
fn inode_of(entry: &std::fs::DirEntry) -> u64 {
    std::os::unix::fs::DirEntryExt::ino(entry)
}

#[cfg(not(unix))]
fn inode_of(_: &std::fs::DirEntry) -> u64 {
    0
}

/// Removes files that are copies of another one or of its beginning, for example while the live
/// file is being copied. The one at `keep` stays.
pub(super) fn without_copies(order: &mut Vec<Seen>, keep: Option<usize>) -> Result<()> {
    let mut copies = vec![false; order.len()];
    for i in 0..order.len() {
        for j in 0..order.len() {
            if i != j && !copies[i] && !copies[j] && keep != Some(i) {
                copies[i] = order[i].is_copy_of(&order[j])?;
            }
        }
    }
    let mut copies = copies.into_iter();
    order.retain(|_| !copies.next().unwrap_or(false));
    Ok(())
}

//! The files of a database by device and inode: whether those that are open are still
//! those at the path.
//!
//! SQLite goes on in files that were removed or replaced: every commit succeeds, and all
//! of it is gone with the process.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::{Error, ErrorKind, Result};

/// The suffixes of the files beside a database that is open.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// The suffix of a file that is written to see whether that is possible.
pub(super) const PROBE: &str = ".probe";

/// What there must be room for.
const ROOM_BYTES: usize = 128 << 10;

/// The identity of a file, which tells it from another one at the same path.
type Identity = (u64, u64);

/// The files of a database as they were when they were opened.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    database: Option<Identity>,
    /// Those that the connection for writing has open. They stay while it does.
    beside: Mutex<[Option<Identity>; 2]>,
}

impl Files {
    /// The file at `path`, which is about to be opened.
    pub(super) fn of(path: &Path) -> Self {
        let database = identity(path).ok();
        Self { path: path.to_owned(), database, beside: Mutex::default() }
    }

    /// Remembers the files beside the database that a connection has just opened.
    pub(super) fn note_beside(&self) {
        let opened = BESIDE.map(|suffix| identity(&beside(&self.path, suffix)).ok());
        *self.beside.lock().unwrap_or_else(PoisonError::into_inner) = opened;
    }

    /// Forgets them, before that connection is closed.
    pub(super) fn forget_beside(&self) {
        *self.beside.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }

    /// Refuses to go on in a database that is no longer the one at its path.
    pub(super) fn check_database(&self) -> Result<()> {
        check(&self.path, self.database)
    }

    /// The same of all its files.
    pub(super) fn check(&self) -> Result<()> {
        self.check_database()?;
        // Held until the last of them is looked at: nobody closes that connection meanwhile.
        let opened = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
        for (suffix, identity) in BESIDE.into_iter().zip(*opened) {
            check(&beside(&self.path, suffix), identity)?;
        }
        Ok(())
    }

    /// Whether the disk has room for what is usually written at once. A transaction says
    /// little: the log before the database may have room for a small one in itself.
    pub(super) fn check_room(&self) -> Result<()> {
        let probe = beside(&self.path, PROBE);
        let written = File::create(&probe).and_then(|mut file| {
            // At once: whatever ends the process now, nothing of it is left.
            std::fs::remove_file(&probe)?;
            file.write_all(&vec![0; ROOM_BYTES])?;
            file.sync_all()
        });
        written.map_err(|error| {
            Error::new(
                ErrorKind::StoreUnavailable,
                format!("the disk has no room for {ROOM_BYTES} bytes ({error}): make room"),
            )
        })
    }

    /// Whether everything is in the database's own file, and nothing in the log before it.
    pub(super) fn has_no_wal(&self) -> bool {
        has_no_wal(&self.path)
    }
}

/// See [`Files::has_no_wal`].
pub(super) fn has_no_wal(path: &Path) -> bool {
    match std::fs::metadata(beside(path, BESIDE[0])) {
        Ok(wal) => wal.len() == 0,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// The path of a file beside the database.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn check(path: &Path, opened: Option<Identity>) -> Result<()> {
    let Some(opened) = opened else { return Ok(()) };
    match identity(path) {
        Ok(now) if now == opened => Ok(()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::new(
            ErrorKind::StoreUnavailable,
            format!("{} can't be looked at ({error}): check its folder", path.display()),
        )),
        _ => Err(Error::new(
            ErrorKind::StoreReplaced,
            format!(
                "{} was removed or replaced while it was open, so what is written now would be lost: end the program, put the file back or restore a backup, and start again",
                path.display()
            ),
        )),
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> std::io::Result<Identity> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Only whether it is there.
#[cfg(not(unix))]
fn identity(path: &Path) -> std::io::Result<Identity> {
    std::fs::metadata(path).map(|_| (0, 0))
}

#[cfg(all(test, unix))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_look_while_the_last_connection_ends_finds_nothing_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.db");
        File::create(&path).unwrap();
        let paths = BESIDE.map(|suffix| beside(&path, suffix));
        let files = Files::of(&path);
        let is_over = AtomicBool::new(false);
        let found = std::thread::scope(|scope| {
            let looks = scope.spawn(|| {
                let mut found = Ok(());
                while found.is_ok() && !is_over.load(Ordering::Relaxed) {
                    found = files.check();
                }
                found
            });
            for _ in 0..3_000 {
                // As a connection is opened and closed.
                for path in &paths {
                    File::create(path).unwrap();
                }
                files.note_beside();
                std::thread::yield_now();
                files.forget_beside();
                for path in &paths {
                    std::fs::remove_file(path).unwrap();
                }
            }
            is_over.store(true, Ordering::Relaxed);
            looks.join().unwrap()
        });
        found.unwrap();
    }
}

//! Detects by device and inode whether the open files of a database are still those at its path.
//!
//! SQLite continues to work on files that were removed or replaced: every commit succeeds, and all
//! of them are lost when the process ends.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::{Error, ErrorKind, Result};

/// The suffixes of an open database's sidecar files.
const SIDECARS: [&str; 2] = ["-wal", "-shm"];

/// The suffix of a file that is written to check whether that is possible.
pub(super) const PROBE: &str = ".probe";

/// The room that a writable database needs on its disk, in bytes.
const ROOM_BYTES: usize = 128 << 10;

/// The identity of a file, which distinguishes it from another file at the same path.
type Identity = (u64, u64);

/// The identities of a database's files when they were opened.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    database: Option<Identity>,
    /// The sidecar files of the writer's connection. They exist as long as it is open.
    sidecars: Mutex<[Option<Identity>; 2]>,
}

impl Files {
    /// Notes the file at `path`, which is about to be opened.
    pub(super) fn of(path: &Path) -> Self {
        let database = identity(path).ok();
        Self { path: path.to_owned(), database, sidecars: Mutex::default() }
    }

    /// Notes the sidecar files that a connection has just opened.
    pub(super) fn note_sidecars(&self) {
        let opened = SIDECARS.map(|suffix| identity(&sidecar(&self.path, suffix)).ok());
        *self.sidecars.lock().unwrap_or_else(PoisonError::into_inner) = opened;
    }

    /// Forgets the sidecar files, before that connection is closed.
    pub(super) fn forget_sidecars(&self) {
        *self.sidecars.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }

    /// Fails if the open database is no longer the file at its path.
    pub(super) fn check_database(&self) -> Result<()> {
        check(&self.path, self.database)
    }

    /// Fails if any of the open files is no longer at its path.
    pub(super) fn check(&self) -> Result<()> {
        self.check_database()?;
        // The lock is held until all are checked, so that the connection is not closed meanwhile.
        let opened = self.sidecars.lock().unwrap_or_else(PoisonError::into_inner);
        for (suffix, identity) in SIDECARS.into_iter().zip(*opened) {
            check(&sidecar(&self.path, suffix), identity)?;
        }
        Ok(())
    }

    /// Fails unless the disk has room for a typical write. A transaction would prove little,
    /// because a small one may fit into free space within the write-ahead log.
    pub(super) fn check_room(&self) -> Result<()> {
        let probe = sidecar(&self.path, PROBE);
        let written = File::create(&probe).and_then(|mut file| {
            // Removed at once, so that nothing is left even if the process is killed now.
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

    /// Whether the write-ahead log is empty, so that the database file has all data.
    pub(super) fn has_no_wal(&self) -> bool {
        has_no_wal(&self.path)
    }
}

/// See [`Files::has_no_wal`].
pub(super) fn has_no_wal(path: &Path) -> bool {
    match std::fs::metadata(sidecar(path, SIDECARS[0])) {
        Ok(wal) => wal.len() == 0,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// The path of a sidecar file.
pub(super) fn sidecar(path: &Path, suffix: &str) -> PathBuf {
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
            format!("{} can't be examined ({error}): check its folder", path.display()),
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

/// Without inodes, checks only that the file exists.
#[cfg(not(unix))]
fn identity(path: &Path) -> std::io::Result<Identity> {
    std::fs::metadata(path).map(|_| (0, 0))
}

#[cfg(all(test, unix))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_check_while_the_last_connection_closes_finds_nothing_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.db");
        File::create(&path).unwrap();
        let paths = SIDECARS.map(|suffix| sidecar(&path, suffix));
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
                // As opening and closing a connection does.
                for path in &paths {
                    File::create(path).unwrap();
                }
                files.note_sidecars();
                std::thread::yield_now();
                files.forget_sidecars();
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

//! The file with the flags for a start without the store.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read as _, Write};
use std::path::Path;
use std::time::UNIX_EPOCH;

use dezky_core::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::Flag;
use crate::store::Snapshot;

/// Maximum size of a snapshot file in bytes.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

/// Reads the flags and the time at which they were written. Blocks.
pub(super) fn read(path: &Path) -> Result<(Snapshot, Timestamp), String> {
    let said = |error: io::Error| error.to_string();
    let metadata = std::fs::metadata(path).map_err(said)?;
    // Anything but a regular file may block forever or never end.
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(too_large().to_string());
    }
    let file = File::open(path).map_err(said)?;
    let written = file.metadata().and_then(|data| data.modified()).map_err(said)?;
    let mut text = String::new();
    // The file may have grown meanwhile; a truncated text fails to parse.
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(said)?;
    let snapshot = Snapshot::from_json(&text).map_err(|error| error.to_string())?;
    let since_1970 = written.duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX);
    Ok((snapshot, Timestamp::from_millis_clamped(millis)))
}

/// A file of kept flags, as far as needed to recognize one.
#[derive(Deserialize)]
struct Kept {
    #[serde(rename = "revision")]
    _revision: u64,
    flags: Vec<KeptFlag>,
}

#[derive(Deserialize)]
struct KeptFlag {
    #[serde(rename = "key")]
    _key: String,
    #[serde(default)]
    history: Vec<IgnoredAny>,
}

/// Refuses a file that is not one of kept flags, because it would be replaced. An export is
/// refused too: it contains histories, which would be lost. Blocks.
pub(super) fn check(path: &Path) -> Result<(), String> {
    // `write` never replaces anything but a regular file.
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(()) };
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok(());
    }
    let text = if metadata.len() > MAX_FILE_BYTES {
        Err(too_large())
    } else {
        std::fs::read_to_string(path)
    };
    let fix = "name another path, or move the file away";
    let text = text.map_err(|error| format!("the file can't be read ({error}): {fix}"))?;
    match serde_json::from_str::<Kept>(&text) {
        Ok(kept) if kept.flags.iter().all(|flag| flag.history.is_empty()) => Ok(()),
        Ok(_) => Err(format!("the file is an export of flags with their histories: {fix}")),
        Err(_) => Err(format!("the file holds something other than kept flags: {fix}")),
    }
}

/// Replaces the file atomically: readers find either the old flags or the new ones. Blocks.
pub(super) fn write(path: &Path, snapshot: &Snapshot) -> io::Result<()> {
    // Renaming over a device would replace it with a file.
    if path.metadata().is_ok_and(|there| !there.is_file()) {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    // Remove a leftover of a crash; a link planted here is not followed.
    match std::fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = write_new(temporary, snapshot).and_then(|()| std::fs::rename(temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(temporary);
        return written;
    }
    sync_folder(path)
}

fn write_new(path: &Path, snapshot: &Snapshot) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    let mut writer = BufWriter::new(Bounded { file, left: MAX_FILE_BYTES });
    serde_json::to_writer(&mut writer, &without_history(snapshot))?;
    writer.flush()?;
    writer.get_ref().file.sync_all()
}

/// Histories are left out: they name people, and are the largest part.
fn without_history(snapshot: &Snapshot) -> Snapshot {
    let flags = snapshot.flags.iter();
    let flags = flags.map(|flag| Flag { history: Vec::new(), ..flag.clone() });
    Snapshot {
        revision: snapshot.revision,
        flags: flags.collect(),
        invalid: snapshot.invalid.clone(),
    }
}

/// Syncs the folder so that the rename survives a power failure.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn too_large() -> io::Error {
    let problem = format!("a flags' file has at most {MAX_FILE_BYTES} bytes");
    io::Error::new(io::ErrorKind::FileTooLarge, problem)
}

/// A writer that fails beyond a number of bytes.
struct Bounded {
    file: File,
    left: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(too_large)?;
        self.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

//! Files that the configuration names: bounded reads, and checks of their modes.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// The text of a regular file of at most `max_bytes`, or a problem with its fix.
///
/// Devices and pipes are refused before they are opened: one may have no end, and another
/// may never begin.
pub(crate) fn read(path: &Path, max_bytes: u64) -> Result<String, String> {
    let unreadable = |error: std::io::Error| {
        format!("the file can't be read ({}): name another one", reason(&error))
    };
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err("is not a regular file: name a file".into());
    }
    File::open(path)
        .and_then(|file| bytes(file, max_bytes))
        .map_err(unreadable)
        .and_then(|bytes| text(bytes, max_bytes, "the file"))
}

/// The text of the standard input, of at most `max_bytes`, or a problem with its fix.
pub(crate) fn read_input(max_bytes: u64) -> Result<String, String> {
    let bytes = bytes(std::io::stdin().lock(), max_bytes)
        .map_err(|error| format!("the standard input can't be read ({})", reason(&error)))?;
    text(bytes, max_bytes, "the standard input")
}

/// At most one byte more than `max_bytes`.
fn bytes(source: impl Read, max_bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(max_bytes + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text(bytes: Vec<u8>, max_bytes: u64, source: &str) -> Result<String, String> {
    if bytes.len() as u64 > max_bytes {
        return Err(format!("{source} has more than {max_bytes} bytes: make it smaller"));
    }
    String::from_utf8(bytes).map_err(|_| format!("{source} is not UTF-8 text: convert it"))
}

/// The content of a file, which decides who may reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// Others must not read it, and neither they nor its group replace it.
    Secret,
    /// Others must not replace it.
    Settings,
}

/// A problem of the file's mode, with the fix. `None` if there is none or the file does not
/// exist.
pub(super) fn weakness(path: &Path, holds: Holds) -> Option<String> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    let who = match holds {
        Holds::Secret if mode & 0o022 != 0 => "others can replace it",
        Holds::Settings if mode & 0o002 != 0 => "others can replace it",
        Holds::Secret if mode & 0o004 != 0 => "everybody on this machine can read it",
        _ => return None,
    };
    let fix = if holds == Holds::Secret { "chmod go-w,o-r" } else { "chmod o-w" };
    Some(format!("the file has mode {mode:04o}, so that {who}: {fix}"))
}

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The text of an I/O error, without its number.
pub(crate) fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}

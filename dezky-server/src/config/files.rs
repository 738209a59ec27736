//! Files that the configuration names: read within bounds, and who else can reach them.

use std::fs::{self, File};
use std::io::Read as _;
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
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(max_bytes + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > max_bytes {
        return Err(format!("the file has more than {max_bytes} bytes: name a smaller one"));
    }
    String::from_utf8(bytes).map_err(|_| "the file is not UTF-8 text: convert it".into())
}

/// The content of a file, which decides who may reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// Neither others may read it nor they or its group replace it.
    Secret,
    /// Others may not replace it.
    Settings,
}

/// What the file's mode lets others do, with the fix. `None` if nothing, or if there is no
/// such file.
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

/// An I/O error in words, without its number.
pub(crate) fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}

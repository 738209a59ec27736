//! Flags in files, and the tenants that they are decided for.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::Path;

use dezky::{Platform, Subject};
use dezky_flags::FlagFile;
use dezky_flags::live::MAX_FILE_BYTES;
use dezky_flags::store::Snapshot;
use serde_json::json;

use crate::commands::{failed, print};
use crate::config::{Settings, read_file, read_input};
use crate::failure::Failure;
use crate::render::table::printable;
use crate::telemetry::logging;

/// Reads the flags of a file.
pub(super) fn read(path: &Path) -> Result<FlagFile, Failure> {
    parse(path, read_file(path, MAX_FILE_BYTES))
}

/// Reads the flags of a file, or of the standard input for `-`.
pub(super) fn read_or_input(path: &Path) -> Result<FlagFile, Failure> {
    if path == Path::new("-") { parse(path, read_input(MAX_FILE_BYTES)) } else { read(path) }
}

fn parse(path: &Path, text: Result<String, String>) -> Result<FlagFile, Failure> {
    let text = text.map_err(|problem| refused(path, &problem))?;
    FlagFile::from_json(&text).map_err(|error| refused(path, &error))
}

/// The failure of a file.
pub(super) fn refused(path: &Path, problem: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!("{}: {problem}", path.display()))
}

/// Refuses a file that holds anything but an earlier export, because it would be replaced.
pub(super) fn check_out(settings: &Settings, path: &Path) -> Result<(), Failure> {
    settings.check_output("--out", path)?;
    let problem = match std::fs::metadata(path) {
        // If the file is unreachable, writing it reports why.
        Err(_) => return Ok(()),
        Ok(there) if !there.is_file() => "is not a regular file: name one, such as flags.json",
        Ok(there) if there.len() == 0 => return Ok(()),
        Ok(_) => match read_file(path, MAX_FILE_BYTES).map(|text| Snapshot::from_json(&text)) {
            Ok(Ok(_)) => return Ok(()),
            _ => "is not an earlier export, and would be replaced: name another file, or remove it",
        },
    };
    Err(Failure::usage(format!("--out {}: {problem}", path.display())))
}

/// Writes the flags into a file, or to the standard output.
pub(super) fn export(
    snapshot: &Snapshot,
    out: Option<&Path>,
    as_json: bool,
) -> Result<(), Failure> {
    for flag in &snapshot.invalid {
        logging::tell(&format!(
            "{}: the flag can't be read, and its definition is left out: {}",
            printable(&flag.key),
            flag.problem
        ));
    }
    let text = snapshot.to_json();
    let Some(path) = out else { return print(&format!("{text}\n")) };
    write(path, &text).map_err(|error| {
        Failure::failed(format!("{}: the file can't be written: {error}", path.display()))
    })?;
    let (flags, revision) = (snapshot.flags.len(), snapshot.revision);
    print(&if as_json {
        format!("{}\n", json!({ "flags": flags, "revision": revision, "out": path }))
    } else {
        format!("{flags} flags of revision {revision} are in {}\n", path.display())
    })
}

/// Replaces the file atomically. Only its owner may read it, because it holds customers' slugs
/// and the names of those who changed flags.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    // An existing file may be a link, or readable by others.
    match std::fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(temporary)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(temporary);
    }
    written
}

/// The tenant with this slug.
pub(super) async fn subject(platform: &Platform, tenant: &str) -> Result<Subject, Failure> {
    let subject = platform.subject(tenant).await.map_err(failed)?;
    subject.ok_or_else(|| Failure::failed(format!("--tenant {tenant}: there is no such tenant")))
}

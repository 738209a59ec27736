//! The commands except the demo and `import-origin`, one file each, and what they share.

pub(crate) mod audit;
pub(crate) mod config;
pub(crate) mod copy;
pub(crate) mod doctor;
pub(crate) mod flags;
mod flags_stale;
pub(crate) mod migrate;
pub(crate) mod progress;
pub(crate) mod quarantine;
pub(crate) mod serve;
pub(crate) mod signals;
pub(crate) mod users;
pub(crate) mod verify;

use std::io::Write as _;

use dezky::{Access, Platform};
use dezky_core::{Actor, ActorType, ErrorKind};

use crate::config::Settings;
use crate::failure::Failure;
use crate::render::table::harmless;
use crate::store;

/// Runs `work` on the store itself; a server on it sees changes at once. The database must exist and
/// be up to date: a mistyped path must not create an empty one.
async fn on_platform(
    settings: &Settings,
    work: impl AsyncFnOnce(&Platform) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let platform = store::open(&settings.store()?, Access::Use).await?;
    let done = work(&platform).await;
    platform.close().await;
    done
}

/// The actor of changes by a command: the user who is logged in to this machine.
pub(crate) fn operator() -> Actor {
    let user = std::env::var("USER").ok().filter(|user| !user.is_empty());
    let id = user.map_or_else(|| "cli".to_owned(), |user| format!("cli:{user}"));
    Actor { id: Some(id), ..Actor::of(ActorType::Operator) }
}

/// A store's error as the command's failure.
#[expect(clippy::needless_pass_by_value, reason = "map_err passes it by value")]
pub(crate) fn failed(error: dezky_core::Error) -> Failure {
    match error.kind() {
        ErrorKind::FieldInvalid => Failure::usage(error.to_string()),
        _ => Failure::failed(error.to_string()),
    }
}

/// Prints to the standard output, and escapes terminal control characters. A closed pipe is not
/// a failure of the command.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(harmless(text).as_bytes())
}

/// Prints bytes that need not be text, unescaped.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("the output can't be written: {error}")))
        }
        _ => Ok(()),
    }
}

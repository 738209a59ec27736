//! The commands but the demo.

mod config;
pub(crate) mod copy;
pub(crate) mod doctor;
pub(crate) mod flags;
mod flags_stale;
pub(crate) mod import_origin;
pub(crate) mod migrate;
mod progress;
pub(crate) mod quarantine;
mod serve;
pub(crate) mod users;
mod verify;

use std::io::Write as _;

pub(crate) use self::config::{check as config_check, example as config_example};
pub(crate) use self::serve::{Signals, serve};
pub(crate) use self::verify::{last_of, verify};
use dezky::{Access, Platform};
use dezky_core::{Actor, ActorType, ErrorKind};

use crate::config::Settings;
use crate::error::Failure;
use crate::store;
use crate::table::harmless;

/// Does something on the store itself; a server on it sees the change at once. The
/// database must be there and up to date: a mistyped path must not leave an empty one.
async fn on_platform(
    settings: &Settings,
    work: impl AsyncFnOnce(&Platform) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let platform = store::open(&settings.store()?, Access::Use).await?;
    let done = work(&platform).await;
    platform.close().await;
    done
}

/// Who changes something by a command: whoever is logged in to this machine.
pub(crate) fn operator() -> Actor {
    let user = std::env::var("USER").ok().filter(|user| !user.is_empty());
    let id = user.map_or_else(|| "cli".to_owned(), |user| format!("cli:{user}"));
    Actor { id: Some(id), ..Actor::of(ActorType::Operator) }
}

/// The answer of a store as that of a command.
#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
pub(crate) fn no(error: dezky_core::Error) -> Failure {
    match error.kind() {
        ErrorKind::FieldInvalid => Failure::usage(error.to_string()),
        _ => Failure::no(error.to_string()),
    }
}

/// Prints to the standard output, with escapes for what would steer a terminal. A reader
/// that has gone away is not a failure of the command.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(harmless(text).as_bytes())
}

/// The same of bytes that may be no text.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::no(format!("the output can't be written: {error}")))
        }
        _ => Ok(()),
    }
}

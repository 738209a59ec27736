//! The commands but the demo.

mod config;
mod serve;
mod verify;

use std::io::Write as _;

pub(crate) use self::config::{check as config_check, example as config_example};
pub(crate) use self::serve::{Signals, serve};
pub(crate) use self::verify::{last_of, verify};
use crate::error::Failure;

/// Prints to the standard output. A reader that has gone away is no failure of
/// the command.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::no(format!("the output can't be written: {error}")))
        }
        _ => Ok(()),
    }
}

//! Lines on the standard output, with colours on a terminal.

use std::io::{self, IsTerminal as _, Write as _};

use dezky_core::{Outcome, StoredEvent};

use super::{actor, resource};
use crate::failure::Failure;
use crate::render::table::{harmless, printable};

/// The standard output.
pub(super) struct Output {
    has_colours: bool,
    is_open: bool,
}

impl Output {
    /// With colours on a terminal, unless `NO_COLOR` is set.
    pub(super) fn stdout() -> Self {
        let refuses = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { has_colours: io::stdout().is_terminal() && !refuses && !is_dumb, is_open: true }
    }

    /// Prints a line, coloured by the outcome of its event.
    pub(super) fn line(&mut self, text: &str, outcome: Option<Outcome>) -> Result<(), Failure> {
        let colour = match outcome {
            Some(Outcome::Denied) => "\u{1b}[31m",
            Some(Outcome::Failure) => "\u{1b}[33m",
            _ => "",
        };
        let text = harmless(text);
        if self.has_colours && !colour.is_empty() {
            self.write(format!("{colour}{text}\u{1b}[0m\n").as_bytes())
        } else {
            self.write(format!("{text}\n").as_bytes())
        }
    }

    /// Writes bytes as they are. A closed pipe is not a failure.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if !self.is_open {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.is_open = false,
            Err(error) => {
                return Err(Failure::failed(format!("the output can't be written: {error}")));
            }
            Ok(()) => {}
        }
        Ok(())
    }

    /// Whether somebody reads the output.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }
}

/// An event on one line.
pub(super) fn line(stored: &StoredEvent) -> String {
    let e = &stored.event;
    let (at, seq, outcome) = (e.at.to_string(), stored.seq, e.outcome.as_str());
    let tenant = printable(e.tenant_slug.as_deref().unwrap_or("-"));
    let (action, actor) = (printable(&e.action), printable(actor(stored)));
    let resource = printable(&resource(stored));
    format!("{at}  {seq:>7}  {outcome:7}  {action:28}  {tenant:16}  {actor:28}  {resource}")
}

//! Errors that persist until an operator changes something on a server: a missing permission, a
//! changed password, a dropped database.
//!
//! While a store is opened, they are configuration errors. In a running program, the same error
//! means that the store is unavailable: events go to the spool, senders retry, and everything
//! continues once the operator has fixed it.

use std::fmt;

use crate::{Error, ErrorKind};

/// Marks such an error, as its source.
#[derive(Debug)]
struct NeedsOperator {
    at_start: ErrorKind,
}

impl fmt::Display for NeedsOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("retries fail until an operator changes this on the server")
    }
}

impl std::error::Error for NeedsOperator {}

/// Creates such an error; `at_start` is its kind while a store is opened.
pub(super) fn needs_operator(at_start: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(at_start, message.into()).with_source(NeedsOperator { at_start })
}

fn kind_at_start(error: &Error) -> Option<ErrorKind> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<NeedsOperator>().map(|marked| marked.at_start)
}

/// The error with its kind for a running program.
pub(super) fn while_running(error: Error) -> Error {
    match kind_at_start(&error) {
        Some(_) => error.with_kind(ErrorKind::StoreUnavailable),
        None => error,
    }
}

/// The error with its kind while a store is opened.
pub(super) fn at_start(error: Error) -> Error {
    match kind_at_start(&error) {
        Some(kind) => error.with_kind(kind),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_errors_change_their_kind() {
        let marked = needs_operator(ErrorKind::ConfigInvalid, "the role lacks a right");
        let running = while_running(marked.context("append"));
        assert!(running.is_retryable());
        assert_eq!(running.to_string(), "append: the role lacks a right");
        assert_eq!(at_start(running).kind(), ErrorKind::ConfigInvalid);
        for kind in [ErrorKind::StoreCorrupt, ErrorKind::ConfigInvalid, ErrorKind::StoreBusy] {
            let error = Error::new(kind, "other");
            assert_eq!(while_running(error.clone()).kind(), kind);
            assert_eq!(at_start(error).kind(), kind);
        }
    }
}

//! Failures that end the program: one line, and an exit status.

use std::fmt;

/// A failure that ends the program: one line that names the problem and the fix, and the exit
/// status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    message: String,
    status: u8,
}

impl Failure {
    /// The use or the configuration is wrong: exit status 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into().replace(['\n', '\r'], " "), status: 2 }
    }

    /// The check failed or the operation did not complete: exit status 1.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { status: 1, ..Self::usage(message) }
    }

    /// Prefixes the message with its subject.
    #[must_use]
    pub fn context(self, about: &str) -> Self {
        Self { message: format!("{about}: {}", self.message), ..self }
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        self.status
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

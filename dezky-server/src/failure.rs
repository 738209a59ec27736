//! Failures that end the program: one line, and an exit status.

use std::fmt;

/// Why the program ends: one line that names the thing and the fix, and the exit
/// status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    message: String,
    status: u8,
}

impl Failure {
    /// Wrong use or configuration: exit status 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into().replace(['\n', '\r'], " "), status: 2 }
    }

    /// The answer is no, or the work did not come to its end: exit status 1.
    pub fn no(message: impl Into<String>) -> Self {
        Self { status: 1, ..Self::usage(message) }
    }

    /// The same, its message preceded by what it is about.
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

//! The error type of this crate.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The result of this crate's fallible operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of an error, by which a caller can act on it.
///
/// [`ErrorKind::code`] is stable: it is the `code` of HTTP problems and the `.code` of errors in
/// the scripting languages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An event violates a bound of the contract; nothing of its batch was stored.
    EventInvalid,
    /// A filter or option of a query is out of its bounds.
    QueryInvalid,
    /// A page cursor was not issued by this log for these filters.
    CursorInvalid,
    /// An ingest cursor is not at the position that the advance expected.
    CursorMoved,
    /// The writer's lease was taken over by another holder.
    Fenced,
    /// The requested part of the log was archived and is no longer stored here.
    Pruned,
    /// The request exceeds the bound for one call.
    TooLarge,
    /// The store cannot be reached or does not answer in time.
    StoreUnavailable,
    /// Another writer has held the store for longer than the bound.
    StoreBusy,
    /// The stored data can't be read as data written by this crate.
    StoreCorrupt,
    /// The database's files were removed or replaced while they were open. Further writes are lost,
    /// so the process must end.
    StoreReplaced,
    /// The database belongs to another application.
    StoreForeign,
    /// The database was written by a newer version of this crate.
    SchemaNewer,
    /// A configuration value is missing or out of its bounds.
    ConfigInvalid,
    /// A file or socket operation failed.
    Io,
    /// A source of events could not be read.
    SourceUnavailable,
    /// A source of events rejects the credentials, or they lack a permission.
    AuthFailed,
    /// A signature is missing or wrong.
    SignatureInvalid,
    /// The body of a request can't be parsed; nothing was stored.
    BodyInvalid,
    /// The body of a request has an unsupported type or encoding; nothing was stored.
    MediaUnsupported,
    /// A field of a document is out of bounds; nothing was changed.
    FieldInvalid,
    /// The object to be created already exists, or its name is taken.
    AlreadyExists,
    /// The document was changed since it was read; nothing was changed.
    VersionMismatch,
    /// The operation is not allowed in the resource's current state.
    StateConflict,
    /// The object to be changed, or one that a change refers to, does not exist.
    NotFound,
    /// A bug in this crate; please report it.
    Internal,
}

impl ErrorKind {
    /// The stable code.
    ///
    /// ```
    /// assert_eq!(dezky_core::ErrorKind::CursorInvalid.code(), "cursor_invalid");
    /// ```
    pub const fn code(self) -> &'static str {
        match self {
            Self::EventInvalid => "event_invalid",
            Self::QueryInvalid => "query_invalid",
            Self::CursorInvalid => "cursor_invalid",
            Self::CursorMoved => "cursor_moved",
            Self::Fenced => "fenced",
            Self::Pruned => "pruned",
            Self::TooLarge => "too_large",
            Self::StoreUnavailable => "store_unavailable",
            Self::StoreBusy => "store_busy",
            Self::StoreCorrupt => "store_corrupt",
            Self::StoreReplaced => "store_replaced",
            Self::StoreForeign => "store_foreign",
            Self::SchemaNewer => "schema_newer",
            Self::ConfigInvalid => "config_invalid",
            Self::Io => "io",
            Self::SourceUnavailable => "source_unavailable",
            Self::AuthFailed => "auth_failed",
            Self::SignatureInvalid => "signature_invalid",
            Self::BodyInvalid => "body_invalid",
            Self::MediaUnsupported => "media_type",
            Self::FieldInvalid => "field_invalid",
            Self::AlreadyExists => "already_exists",
            Self::VersionMismatch => "version_mismatch",
            Self::StateConflict => "state_conflict",
            Self::NotFound => "not_found",
            Self::Internal => "internal",
        }
    }

    /// Whether the same call may succeed later without anyone intervening.
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::StoreUnavailable | Self::StoreBusy | Self::Io | Self::SourceUnavailable
        )
    }
}

/// An error: its kind, a message and its cause.
///
/// `Display` prints one line without the cause; follow [`source`](std::error::Error::source) for
/// the cause. Clones share their content, so that one failed commit can answer many callers.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Creates an error. `message` names the object, the bound and the fix.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), source: None }))
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn with_source(self, source: impl StdError + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner {
            kind: self.0.kind,
            message: self.0.message.clone(),
            source: Some(Arc::new(source)),
        }))
    }

    /// Prefixes the message with the operation that failed.
    #[must_use]
    pub fn context(self, doing: impl fmt::Display) -> Self {
        Self(Arc::new(Inner {
            kind: self.0.kind,
            message: format!("{doing}: {}", self.0.message).into(),
            source: self.0.source.clone(),
        }))
    }

    /// Replaces the kind.
    #[cfg(any(feature = "postgres", feature = "mongodb"))]
    pub(crate) fn with_kind(self, kind: ErrorKind) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: self.0.message.clone(),
            source: self.0.source.clone(),
        }))
    }

    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// [`ErrorKind::code`] of the kind.
    pub fn code(&self) -> &'static str {
        self.0.kind.code()
    }

    /// [`ErrorKind::is_retryable`] of the kind.
    pub fn is_retryable(&self) -> bool {
        self.0.kind.is_retryable()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

impl From<std::io::Error> for Error {
    fn from(source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, source.to_string())
    }
}

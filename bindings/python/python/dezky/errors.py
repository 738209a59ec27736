"""The exceptions that dezky raises, one class for each kind of failure.

Each has a stable `code`, the same as in HTTP problems and in Rust, and derives from
the built-in exception that fits, so that `except ConnectionError` works too.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AlreadyExistsError",
    "AuthFailedError",
    "BodyInvalidError",
    "ConfigInvalidError",
    "CursorInvalidError",
    "CursorMovedError",
    "Error",
    "EventInvalidError",
    "FencedError",
    "FieldInvalidError",
    "ForkedError",
    "InternalError",
    "IoError",
    "MediaUnsupportedError",
    "NotFoundError",
    "PrunedError",
    "QueryInvalidError",
    "SchemaNewerError",
    "SignatureInvalidError",
    "SourceUnavailableError",
    "StateConflictError",
    "StoreBusyError",
    "StoreCorruptError",
    "StoreForeignError",
    "StoreReplacedError",
    "StoreUnavailableError",
    "TooLargeError",
    "VersionMismatchError",
    "by_code",
]


class Error(Exception):
    """The base of all exceptions of dezky.

    Attributes:
        code: The stable code of the kind, such as `store_busy`.
        retryable: Whether the same call may succeed later without anyone intervening.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False


class EventInvalidError(Error, ValueError):
    """An event violates a bound; nothing of its batch was stored."""

    code = "event_invalid"


class QueryInvalidError(Error, ValueError):
    """A filter or option of a query is out of its bounds."""

    code = "query_invalid"


class CursorInvalidError(Error, ValueError):
    """A page cursor was not issued by this log for these filters."""

    code = "cursor_invalid"


class CursorMovedError(Error):
    """An ingest cursor is not at the expected position."""

    code = "cursor_moved"


class FencedError(Error):
    """The writer's lease was taken over by another holder."""

    code = "fenced"


class PrunedError(Error, LookupError):
    """The requested part of the log was archived: the store no longer has it."""

    code = "pruned"


class TooLargeError(Error, ValueError):
    """The request exceeds the bound for one call."""

    code = "too_large"


class StoreUnavailableError(Error, ConnectionError):
    """The store cannot be reached or does not answer in time."""

    code = "store_unavailable"
    retryable = True


class StoreBusyError(Error, TimeoutError):
    """Another writer has held the store for longer than the bound."""

    code = "store_busy"
    retryable = True


class StoreCorruptError(Error):
    """The stored data can't be read as data written by dezky."""

    code = "store_corrupt"


class StoreReplacedError(Error):
    """The database's files were removed or replaced while they were open."""

    code = "store_replaced"


class StoreForeignError(Error):
    """The database belongs to another application, or has no schema yet."""

    code = "store_foreign"


class SchemaNewerError(Error):
    """The database was written by a newer version of dezky."""

    code = "schema_newer"


class ConfigInvalidError(Error, ValueError):
    """A URL or option is missing or out of its bounds."""

    code = "config_invalid"


class IoError(Error, OSError):
    """A file or socket operation failed."""

    code = "io"
    retryable = True


class SourceUnavailableError(Error, ConnectionError):
    """A source of events could not be read."""

    code = "source_unavailable"
    retryable = True


class AuthFailedError(Error, PermissionError):
    """The credentials are rejected, or they lack a permission."""

    code = "auth_failed"


class SignatureInvalidError(Error, PermissionError):
    """A signature is missing or wrong."""

    code = "signature_invalid"


class BodyInvalidError(Error, ValueError):
    """A body can't be parsed; nothing was stored."""

    code = "body_invalid"


class MediaUnsupportedError(Error, ValueError):
    """A body has an unsupported type or encoding; nothing was stored."""

    code = "media_type"


class FieldInvalidError(Error, ValueError):
    """A field of a document is out of bounds; nothing was changed."""

    code = "field_invalid"


class AlreadyExistsError(Error):
    """The object to be created already exists, or its name is taken."""

    code = "already_exists"


class VersionMismatchError(Error):
    """The document was changed since it was read; nothing was changed."""

    code = "version_mismatch"


class StateConflictError(Error):
    """The operation is not allowed in the object's current state."""

    code = "state_conflict"


class NotFoundError(Error, LookupError):
    """The object does not exist."""

    code = "not_found"


class InternalError(Error):
    """A bug in dezky; please report it."""

    code = "internal"


class ForkedError(Error, RuntimeError):
    """The process was forked after it used dezky, whose threads do not survive a fork."""

    code = "forked"


_BY_CODE: dict[str, type[Error]] = {
    kind.code: kind for kind in list(globals().values()) if isinstance(kind, type) and issubclass(kind, Error)
}
# `Error` has the code of a bug until a subclass names its own.
_BY_CODE["internal"] = InternalError


def by_code(code: str) -> type[Error]:
    """Returns the class with this code; `Error` itself for an unknown code.

    >>> by_code("store_busy")
    <class 'dezky.errors.StoreBusyError'>
    """
    if not isinstance(code, str):
        raise TypeError(f"code must be a str, not {type(code).__name__}")
    return _BY_CODE.get(code, Error)

"""The hashes of the log's tamper evidence, written in Python alone.

It is a second implementation of what the log computes, so that its evidence can be checked
without trusting dezky: `docs/integrity.md` defines every byte.

>>> chain_hash(GENESIS, bytes(32)).hex()
'a23e5f69838866a9db9388cf5aba4ac5d71ad351d5d01d079ccf3f7c37c7dbb0'
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import uuid
from collections.abc import Mapping
from typing import Final

from dezky._dezky import Event

__all__ = ["COMMITTED", "FIELDS", "GENESIS", "chain_hash", "commitment", "field_salt", "leaf", "leaf_hash"]

GENESIS: Final = bytes(32)
"""The `prev_hash` of the first event."""

FIELDS: Final = (
    "id",
    "at",
    "received_at",
    "actor_type",
    "action",
    "outcome",
    "source",
    "external_id",
    "resource_type",
    "tenant_slug",
    "partner_slug",
    "actor_id",
    "actor_email",
    "actor_ip",
    "resource_id",
    "resource_name",
    "metadata",
)
"""The fields of a leaf. A field's tag is its position, from 1."""

COMMITTED: Final = frozenset(
    {
        "external_id",
        "tenant_slug",
        "partner_slug",
        "actor_id",
        "actor_email",
        "actor_ip",
        "resource_id",
        "resource_name",
        "metadata",
    }
)
"""The fields of which a leaf holds a salted commitment, so that their values can be erased."""

_LEAF = b"dezky.audit.leaf\0\x01"
_CHAIN = b"dezky.audit.chain.v1\0"
_SALT = b"dezky.audit.salt.v1\0"
_FIELD = b"dezky.audit.field.v1\0"
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_MILLISECOND = datetime.timedelta(milliseconds=1)


def chain_hash(prev_hash: bytes, leaf_hash: bytes) -> bytes:
    """Returns an event's hash in the chain, from the previous event's and its own leaf's.

    Raises:
        TypeError: A hash is not `bytes`.
        ValueError: A hash is not 32 bytes long.
    """
    return hashlib.sha256(_CHAIN + _bytes32(prev_hash, "prev_hash") + _bytes32(leaf_hash, "leaf_hash")).digest()


def field_salt(salt: bytes, field: str) -> bytes:
    """Returns the salt of one field, from the event's.

    Whoever has it and the field's value can check the value against the leaf, and learns nothing
    about other fields.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The field is unknown, or the salt is not 32 bytes long.
    """
    return hmac.digest(_bytes32(salt, "salt"), _SALT + _tag(field), "sha256")


def commitment(salt: bytes, field: str, value: bytes) -> bytes:
    """Returns the commitment to a field's value, under the salt of that field.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The field is unknown, or the salt is not 32 bytes long.
    """
    message = _FIELD + _tag(field) + _length(_bytes(value, "value")) + value
    return hmac.digest(_bytes32(salt, "salt"), message, "sha256")


def leaf(event: Event | Mapping[str, object], salt: bytes) -> bytes:
    """Returns the leaf of an event.

    Args:
        event: An `Event`, or a mapping with the names in `FIELDS`: times as `datetime` or as
            milliseconds since 1970, `metadata` as canonical JSON text, anything else as text.
            Absent fields are left out, or `None`.
        salt: The event's salt. Logs never show it.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A required field is absent, or the salt is not 32 bytes long.
    """
    parts = [_LEAF]
    for field in FIELDS:
        value = _value(event, field)
        if value is None:
            parts.append(_tag(field) + b"\0")
            continue
        if field in COMMITTED:
            value = commitment(field_salt(salt, field), field, value)
        parts.append(_tag(field) + b"\x01" + _length(value) + value)
    return b"".join(parts)


def leaf_hash(event: Event | Mapping[str, object], salt: bytes) -> bytes:
    """Returns the hash of an event's leaf, as RFC 6962 defines it.

    Raises:
        TypeError, ValueError: As `leaf`.
    """
    return hashlib.sha256(b"\0" + leaf(event, salt)).digest()


def _value(event: Event | Mapping[str, object], field: str) -> bytes | None:
    """Returns the bytes of a field's value."""
    if not isinstance(event, (Event, Mapping)):
        raise TypeError(f"event must be an Event or a mapping, not {type(event).__name__}")
    if isinstance(event, Mapping):
        value = event.get(field)
    else:
        value = getattr(event, "metadata_json" if field == "metadata" else field)
    if value is None:
        if field in COMMITTED or field == "resource_type":
            return None
        raise ValueError(f"event has no {field}, which every event has")
    if field == "id":
        return uuid.UUID(str(value)).bytes
    if field in ("at", "received_at"):
        if isinstance(value, datetime.datetime):
            value = (value - _EPOCH) // _MILLISECOND
        if not isinstance(value, int):
            raise TypeError(f"{field} must be a datetime or an int, not {type(value).__name__}")
        return value.to_bytes(8, "big", signed=True)
    if not isinstance(value, str):
        raise TypeError(f"{field} must be a str, not {type(value).__name__}")
    return value.encode()


def _tag(field: str) -> bytes:
    try:
        return bytes([FIELDS.index(field) + 1])
    except ValueError:
        raise ValueError(f"field must be one of {', '.join(FIELDS)}") from None


def _length(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big")


def _bytes(value: bytes, name: str) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"{name} must be bytes, not {type(value).__name__}")
    return value


def _bytes32(value: bytes, name: str) -> bytes:
    if len(_bytes(value, name)) != 32:
        raise ValueError(f"{name} must have 32 bytes, not {len(value)}")
    return value

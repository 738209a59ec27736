"""Events from other systems: signatures, decoders, and sources under a pump.

A receiver of webhooks verifies, decodes, and appends before it acknowledges:

>>> import hashlib, hmac
>>> import dezky
>>> from dezky.ingest import append, decode_stalwart, verify_signature
>>> body = b'{"events": [{"id": "7", "createdAt": "2026-08-17T10:00:00Z", "type": "auth.success"}]}'
>>> signature = hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
>>> with dezky.AuditLog.open("memory:") as log:
...     verify_signature(body, signature, "s3cret")
...     append(log, decode_stalwart(body)).received
1

A source of your own answers one question, which events come after a cursor, and a `Pump` moves
them into a log.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dezky._dezky import (
    AsyncPump,
    Decoded,
    NewEvent,
    Pump,
    PumpStatus,
    Quarantined,
    Summary,
    Tick,
    append,
    authentik_action,
    decode_authentik,
    decode_ocis,
    decode_stalwart,
    ocis_action,
    ocis_class,
    stalwart_action,
    verify_signature,
)

__all__ = [
    "AsyncPump",
    "Batch",
    "Decoded",
    "Pump",
    "PumpStatus",
    "Quarantined",
    "Source",
    "Summary",
    "Tick",
    "append",
    "authentik_action",
    "decode_authentik",
    "decode_ocis",
    "decode_stalwart",
    "ocis_action",
    "ocis_class",
    "stalwart_action",
    "verify_signature",
]


@dataclass(frozen=True)
class Batch:
    """The result of one pull.

    Args:
        events: The events in the order in which they are to be appended: `NewEvent`s, mappings with
            its keyword names, or the `Decoded` of a decoder. One that is invalid is quarantined.
            An event without a `source` gets the source's name; one without an `external_id` gets
            one made of the cursor of its batch and its content. At most 100,000; 1,000 are a good
            number.
        cursor: Where the next pull continues. With events or items it must be another one than
            before. At most 64 KiB.
        more: Whether more is available right now.
        skipped: The number of items that were skipped on purpose.
        quarantine: Items that could not become events.

    Examples:
        >>> import dezky
        >>> Batch([dezky.NewEvent("door.opened", actor=dezky.Actor.user("ada"))], "1").cursor
        '1'
    """

    events: Iterable[NewEvent | Mapping[str, Any]] | Decoded
    cursor: str | None
    more: bool = False
    skipped: int = 0
    quarantine: Iterable[Quarantined] = ()

    def __post_init__(self) -> None:
        if isinstance(self.events, str | bytes | Mapping):
            raise TypeError(f"events must be an iterable of events, not {type(self.events).__name__}")


class Source(abc.ABC):
    """A system whose events are pulled batch by batch.

    The pump commits each batch together with its cursor. So `pull` may be called again with the same
    cursor: after a failure, after a restart, or by another process. It must then return the same
    events; what it keeps in memory is only a cache. Calls never overlap.

    Examples:
        >>> import dezky
        >>> class Door(Source):
        ...     name = "door"
        ...     visitors = ["ada", "ben"]
        ...
        ...     def pull(self, cursor: str | None) -> Batch:
        ...         start = int(cursor or 0)
        ...         events = [
        ...             dezky.NewEvent("door.opened", actor=dezky.Actor.user(visitor))
        ...             for visitor in self.visitors[start:]
        ...         ]
        ...         return Batch(events, str(start + len(events)))
        >>> with dezky.AuditLog.open("memory:") as log, Pump(log, Door()) as pump:
        ...     pump.tick().stored, pump.tick().stored
        (2, 0)
    """

    name: str
    """The name in events, cursors and leases: 1 to 64 letters, digits, `.`, `_` and `-`, with at most
    one `:` before an instance."""

    @abc.abstractmethod
    def pull(self, cursor: str | None) -> Batch | Awaitable[Batch]:
        """Returns the events after a cursor; `None` is the beginning.

        A `def` runs in a separate thread, where it may block and call dezky. An `async def` needs an
        `AsyncPump`. An exception is a failure: the pump logs it and tries again, waiting longer each
        time.
        """

"""The part of asyncio's bridge that runs in the event loop's thread."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from dezky._dezky import Event, EventSource, Verification, VerificationRun

__all__ = ["EventStream", "settle", "verify"]


def settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    """Sets the result of a future that was not cancelled meanwhile."""
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


class EventStream:
    """An asynchronous iterator over events.

    An event is taken out in the loop's thread, after the wait: one that is cancelled loses none.
    """

    __slots__ = ("_source",)

    def __init__(self, source: EventSource) -> None:
        self._source = source

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        while True:
            event = self._source.pop()
            if event is not None:
                return event
            if not await self._source.fill():
                raise StopAsyncIteration


async def verify(run: VerificationRun, progress: Callable[[int], object] | None) -> Verification:
    """Follows a verification, and calls `progress` in the loop's thread."""
    while True:
        step = await run.next()
        if not isinstance(step, int):
            return step
        if progress is not None:
            progress(step)

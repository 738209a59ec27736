"""Work of the pump that ends in order, and calls of async sources from its threads."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

__all__ = ["is_inside", "orderly", "start", "warn"]

_logger = logging.getLogger("dezky")


def warn(
    message: str, exception: tuple[type[BaseException], BaseException, TracebackType | None] | None
) -> None:
    """Logs a failure that nobody sees otherwise."""
    _logger.warning("%s", message, exc_info=exception)


async def orderly(
    begin: Callable[[], asyncio.Future[Any]],
    stop: Callable[[], bool],
    settled: Callable[[], asyncio.Future[Any]],
) -> Any:
    """Waits for work that ends in order when this coroutine is cancelled.

    `stop` asks the work to end; if it returns false, dropping the work is its way to end. The wait
    for the end can be cancelled too.
    """
    work = begin()
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # Its result interests nobody any more.
        work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        if not stop():
            work.cancel()
        await asyncio.shield(settled())
        raise
    except GeneratorExit:
        # Nothing can be awaited any more.
        if not stop():
            work.cancel()
        raise


class _Inside:
    """A call of `pull` that is under way, of the source with a key."""

    __slots__ = ("key",)

    def __init__(self, key: int | None) -> None:
        self.key = key


_inside: contextvars.ContextVar[_Inside | None] = contextvars.ContextVar("dezky.pull", default=None)


def is_inside(key: int) -> bool:
    """Whether the current task is within the async `pull` of the source with this key."""
    inside = _inside.get()
    return inside is not None and inside.key == key


async def _result(given: Awaitable[Any], key: int) -> Any:
    inside = _Inside(key)
    _inside.set(inside)
    try:
        return await given
    finally:
        # Tasks that it started have a copy of the variable.
        inside.key = None


class _Call:
    """A call of an async `pull`: it begins, is cancelled and ends in the loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        given: Awaitable[Any],
        done: Callable[[Any, BaseException | None], None],
        key: int,
    ) -> None:
        self._loop = loop
        self._given = given
        self._done = done
        self._key = key
        self._task: asyncio.Task[Any] | None = None
        self._began = False

    def begin(self) -> None:
        self._began = True
        self._task = self._loop.create_task(_result(self._given, self._key))
        self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        # A closed loop runs nothing any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._done(None, asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._done(None, error)
        else:
            self._done(task.result(), None)

    def __del__(self) -> None:
        # The loop was closed before. Otherwise the interpreter warns that it was never awaited.
        close = getattr(self._given, "close", None)
        if not self._began and close is not None:
            close()


def start(
    loop: asyncio.AbstractEventLoop,
    given: Awaitable[Any],
    done: Callable[[Any, BaseException | None], None],
    key: int,
) -> Callable[[], None]:
    """Starts awaiting on a loop that runs in another thread, and says when it is done.

    Returns what cancels it; it is done only when the task has ended.
    """
    call = _Call(loop, given, done, key)
    loop.call_soon_threadsafe(call.begin)
    return call.cancel

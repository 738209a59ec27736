"""Work of the pump that ends in order, and calls of async sources from its threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

__all__ = ["orderly", "start", "warn"]

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


async def _result(given: Awaitable[Any]) -> Any:
    return await given


def start(
    loop: asyncio.AbstractEventLoop, given: Awaitable[Any], done: Callable[[Any, BaseException | None], None]
) -> concurrent.futures.Future[Any]:
    """Starts awaiting on a loop that runs in another thread, and says when it is done."""

    def finished(future: concurrent.futures.Future[Any]) -> None:
        if future.cancelled():
            done(None, asyncio.CancelledError())
        elif (error := future.exception()) is not None:
            done(None, error)
        else:
            done(future.result(), None)

    coroutine = _result(given)
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except BaseException:
        # A closed loop. Otherwise the interpreter warns that they were never awaited.
        coroutine.close()
        close = getattr(given, "close", None)
        if close is not None:
            close()
        raise
    future.add_done_callback(finished)
    return future

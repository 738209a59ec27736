"""The part of asyncio's bridge that runs in the event loop's thread."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["settle"]


def settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    """Sets the result of a future that was not cancelled meanwhile."""
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)

"""Exceptions of signal handlers that foreign code can't pass on."""

from __future__ import annotations

import signal
from types import FrameType

__all__ = ["lend_handler"]


def lend_handler(error: BaseException) -> None:
    """Has the next SIGINT raise an exception, and then be handled as before."""
    previous = signal.getsignal(signal.SIGINT)

    def handler(_number: int, _frame: FrameType | None) -> None:
        # A handler that was not set from Python can't be set again.
        signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)
        raise error

    signal.signal(signal.SIGINT, handler)

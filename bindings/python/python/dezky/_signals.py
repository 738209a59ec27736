"""Exceptions of signal handlers that foreign code can't pass on."""

from __future__ import annotations

import _thread
import signal
from types import FrameType

__all__ = ["raise_again"]


def raise_again(error: BaseException) -> None:
    """Raises an exception in the main thread, once the code that runs there has returned.

    It borrows the handler of SIGINT, and gives it back.
    """
    previous = signal.getsignal(signal.SIGINT)

    def handler(_number: int, _frame: FrameType | None) -> None:
        # A handler that was not set from Python can't be set again.
        signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)
        raise error

    signal.signal(signal.SIGINT, handler)
    _thread.interrupt_main()

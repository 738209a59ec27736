"""Text for terminals, and the progress of long work."""

from __future__ import annotations

import codecs
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["Report", "harmless", "line", "progress", "without_passwords"]

# Characters that move, hide or reorder the text on a terminal: control and format characters, and
# the separators of lines and paragraphs.
_STEERING = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0001-\U000e007f"
)
_HARMFUL = re.compile(f"[{_STEERING}]")
_HARMFUL_IN_LINE = re.compile(f"[\t\n{_STEERING}]")
# The user and password of a URL. The password may itself contain an @, or a / that should have been
# escaped.
_CREDENTIALS = re.compile(r"(?<=://)\S*@")
_ARGUMENTS = re.compile(r"(?i)((?:password|passwd|passphrase|pwd|secret|token)=)[^&\s]+")


def _escaped(text: str) -> str:
    units = text.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _escaped(error.object[error.start : error.end]), error.end


# For streams: what their encoding lacks becomes a JSON escape.
codecs.register_error("dezky.escape", _escape_unencodable)


def harmless(text: str) -> str:
    """Replaces control characters, except line feeds and tabs, by JSON escapes.

    The value of JSON text stays the same.

    >>> harmless('"a\\u202eb"')
    '"a\\\\u202eb"'
    """
    return _HARMFUL.sub(lambda found: _escaped(found.group()), text)


def line(text: str) -> str:
    """Returns the text on one line, with control characters replaced.

    >>> line("two\\nlines")
    'two·lines'
    """
    return _HARMFUL_IN_LINE.sub("·", text)


def without_passwords(text: str) -> str:
    """Removes users, passwords and secret arguments from the URLs in a text.

    >>> without_passwords("postgres://dezky:pa@ss@db/log")
    'postgres://…@db/log'
    >>> without_passwords("postgres://db/log?password=hunter2&sslmode=require")
    'postgres://db/log?password=…&sslmode=require'
    """
    return _ARGUMENTS.sub(r"\1…", _CREDENTIALS.sub("…@", text))


class Report(Protocol):
    """Takes the number of events that are done."""

    def __call__(self, done: int, /) -> None: ...


@contextmanager
def progress(what: str, total: int | None = None, *, shown: bool = True) -> Iterator[Report]:
    """Shows how far long work is, on the standard error, if that is a terminal.

    With `rich` it is a bar, without it a line that is updated every second.
    """
    if not shown or sys.stderr is None or not sys.stderr.isatty():
        yield lambda done: None
        return
    try:
        import rich.console
        import rich.progress
    except ImportError:
        plain = _Plain(what, total)
        try:
            yield plain
        finally:
            plain.end()
        return
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    bar = rich.progress.Progress(*columns, console=rich.console.Console(stderr=True), transient=True)
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


class _Plain:
    """A line that is updated every second."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what = what
        self._of = f" of {total}" if total is not None else ""
        self._shown = self._began = time.monotonic()
        self._has_shown = False

    def __call__(self, done: int, /) -> None:
        now = time.monotonic()
        if now - self._shown < 1:
            return
        self._shown, self._has_shown = now, True
        rate = int(done / (now - self._began))
        sys.stderr.write(f"\r\x1b[K{self._what}: {done}{self._of}, {rate}/s")
        sys.stderr.flush()

    def end(self) -> None:
        if self._has_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

"""Files of events: JSON lines, CSV and Parquet."""

from __future__ import annotations

import contextlib
import csv
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from dezky._dezky import EVENT_COLUMNS, AuditLog, Event

__all__ = ["FORMATS", "Refused", "format_of", "new_file", "write_csv", "write_ndjson", "write_parquet"]

FORMATS = ("ndjson", "csv", "parquet")
_SUFFIXES = {".ndjson": "ndjson", ".jsonl": "ndjson", ".csv": "csv", ".parquet": "parquet"}

# A spreadsheet takes a cell that begins so for a formula. Anyone who can name a file or fail to log
# in can write one into the log.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class Refused(Exception):
    """The file can't be written; the message says why and what to do."""


def format_of(path: str, chosen: str | None) -> str:
    """Returns the format: the chosen one, or the one that the name of the file says."""
    if chosen is not None:
        return chosen
    if path == "-":
        return "ndjson"
    found = _SUFFIXES.get(Path(path).suffix.lower())
    if found is None:
        raise Refused(f"{path}: its name does not say a format: use --format {', '.join(FORMATS)}")
    return found


@contextlib.contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[IO[bytes]]:
    """Opens a file that appears under its name only when it is complete.

    Only its owner may read it. Whatever ends the work before, the name stays as it is.
    """
    _check(path, force)
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        # Within: a signal may end the program as soon as the file is there.
        try:
            descriptor = os.open(temporary, flags, 0o600)
        except OSError as error:
            # The temporary name means nothing to the user.
            raise OSError(error.errno, error.strerror, str(path)) from None
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, path, force)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _check(path: Path, force: bool) -> None:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return
    if not force:
        raise Refused(f"{path}: the file is there already: name another one, or use --force")
    if not stat.S_ISREG(there.st_mode):
        raise Refused(f"{path}: is not a regular file: name one, such as events.csv")


def _publish(temporary: Path, path: Path, force: bool) -> None:
    if force:
        os.replace(temporary, path)
    else:
        try:
            # Unlike a rename, this fails if the name was taken meanwhile.
            os.link(temporary, path)
        except FileExistsError:
            raise Refused(f"{path}: the file appeared meanwhile: name another one, or use --force") from None
        except OSError:
            # A file system without links.
            _check(path, force)
            os.rename(temporary, path)
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_ndjson(events: Iterator[Event], file: IO[bytes], report: Callable[[int], None]) -> int:
    """Writes one JSON object per line, as the server sends it."""
    done = 0
    for done, event in enumerate(events, 1):
        file.write(event.to_json().encode() + b"\n")
        report(done)
    return done


def write_csv(
    events: Iterator[Event], file: IO[bytes], report: Callable[[int], None], *, exact: bool
) -> int:
    """Writes a table with a header. Unless `exact`, no cell is a formula for a spreadsheet."""
    writer = csv.writer(_Encoded(file), lineterminator="\r\n")
    writer.writerow(EVENT_COLUMNS)
    done = 0
    for done, event in enumerate(events, 1):
        # The metadata as the log keeps it: a number that Python reads may be written in another way.
        row = event.to_dict() | {"metadata": event.metadata_json}
        cells = [_cell(value) for value in row.values()]
        writer.writerow(cells if exact else [_safe(cell) for cell in cells])
        report(done)
    return done


class _Encoded:
    """What `csv` writes to."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, text: str, /) -> int:
        return self._file.write(text.encode())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value)
    isoformat = getattr(value, "isoformat", None)
    return str(isoformat(timespec="milliseconds")).replace("+00:00", "Z") if isoformat else str(value)


def _safe(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def write_parquet(log: AuditLog, filters: dict[str, Any], file: IO[bytes], report: Callable[[int], None]) -> int:
    """Writes the columns of `AuditLog.to_arrow`."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise Refused("Parquet needs pyarrow: pip install pyarrow") from None
    done = 0
    reader = pa.RecordBatchReader.from_stream(log.to_arrow(**filters))
    with reader, pq.ParquetWriter(file, reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)
            done += batch.num_rows
            report(done)
    return done

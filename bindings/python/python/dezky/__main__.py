"""The command line: `dezky`, or `python -m dezky`."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import dezky
from dezky import _export
from dezky._terminal import harmless, line, progress, without_passwords

__all__ = ["main"]

FINE, NO, WRONG, INTERRUPTED = 0, 1, 2, 130
DEFAULT_LIMIT = 100
MAX_HEAD_BYTES = 4096

_EXAMPLES = """\
examples:
  export DEZKY_STORE=sqlite:///var/lib/dezky/audit.db
  dezky list --tenant acme --since 2026-12-01 --limit 20
  dezky tail --json | jq .action
  dezky verify --head head.txt
  dezky eval chat_v2 --flags flags.json --tenant-id t-7 --plan pro
  dezky export november.parquet --since 2026-11-01 --until 2026-12-01

exit status:
  0    success: the flag is on (eval), the log is intact (verify), the command completed (others)
  1    the flag is off or unknown (eval), the log is not intact (verify), a failure (others)
  2    wrong usage or configuration; a failure (eval, verify)
  130  Ctrl-C"""

_CSV = """\
In CSV, a cell that a spreadsheet would take for a formula (one that begins with = + - @, a tab or a
line break) gets an apostrophe before it, because anyone can write such a text into an audit log by
failing to log in with it. --exact leaves it out: use that for programs, or NDJSON or Parquet, which
are always exact."""


class _Failure(Exception):
    """Ends the program with a line and an exit status."""

    def __init__(self, message: str, status: int = WRONG) -> None:
        super().__init__(message)
        self.status = status


class _Parser(argparse.ArgumentParser):
    """A parser whose errors show no passwords: a URL may stand where it does not belong."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(WRONG, f"{self.prog}: {line(without_passwords(message))}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dezky",
        description="Audit log and feature flags of a platform.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dezky {dezky.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, help: str, **more: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=help, description=help + ".", formatter_class=argparse.RawDescriptionHelpFormatter, **more
        )
        made.add_argument(
            "--store",
            metavar="URL",
            help="the store, such as sqlite:///var/lib/dezky/audit.db, postgres://… or mongodb://…; "
            "by default that of the variable DEZKY_STORE",
        )
        return made

    listing = command("list", "Print the newest events that match")
    _add_filters(listing)
    limits = listing.add_mutually_exclusive_group()
    limits.add_argument(
        "--limit", type=_count, default=DEFAULT_LIMIT, metavar="N", help=f"how many (default {DEFAULT_LIMIT})"
    )
    limits.add_argument("--all", action="store_true", help="all of them")
    listing.add_argument("--json", action="store_true", help="print one JSON object per line")

    tail = command("tail", "Print events as they are appended")
    tail.add_argument(
        "--from", dest="start", type=_position, metavar="SEQ", help="begin at this position; 0 is the first event"
    )
    tail.add_argument("--no-follow", action="store_true", help="end at the end of the log")
    tail.add_argument("--json", action="store_true", help="print one JSON object per line")

    verify = command("verify", "Recompute the whole log and report the first difference")
    verify.add_argument(
        "--head",
        metavar="SEQ:HASH|FILE",
        help="a head kept elsewhere, as an earlier run printed it: nothing else reveals that the newest events were cut",
    )
    verify.add_argument("--json", action="store_true", help="print one JSON object")

    evaluate = command(
        "eval",
        "Decide a flag, or all flags",
        epilog="The store may also be the address of a dezky-server, with its token in DEZKY_TOKEN.\n\n"
        "exit status:\n"
        "  0    the flag is on, or all flags were decided\n"
        "  1    the flag is off or unknown\n"
        "  2    wrong usage or configuration, or a failure\n"
        "  130  Ctrl-C",
    )
    evaluate.add_argument("key", nargs="?", metavar="KEY", help="the flag; all of them if it is left out")
    evaluate.add_argument("--flags", metavar="FILE", help="a JSON file of flags, instead of a store")
    evaluate.add_argument("--tenant-id", required=True, metavar="ID", help="the tenant's id, which decides rollouts")
    for name in ("tenant-slug", "plan", "partner-slug", "environment"):
        evaluate.add_argument(f"--{name}", metavar="TEXT", help=f"the {name.replace('-', ' ')} of the context")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")

    export = command("export", "Write events into a file", epilog=_CSV)
    export.add_argument("out", metavar="FILE", help="the file; - is the standard output")
    export.add_argument(
        "--format", choices=_export.FORMATS, help="by default the one that the name of the file says"
    )
    _add_filters(export)
    export.add_argument("--limit", type=_count, metavar="N", help="at most so many; all by default")
    export.add_argument("--force", action="store_true", help="replace the file if it is there")
    export.add_argument("--exact", action="store_true", help="CSV: leave cells as they are, formulas too")
    export.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    return parser


def _add_filters(parser: argparse.ArgumentParser) -> None:
    filters = parser.add_argument_group("filters")
    filters.add_argument("--since", type=_time, metavar="TIME", help="not before this time, such as 2026-12-01T10:00Z")
    filters.add_argument("--until", type=_time, metavar="TIME", help="before this time; a day alone begins at 00:00 UTC")
    filters.add_argument("--action", metavar="TEXT", help="the action, or its beginning, such as tenant.")
    filters.add_argument("--tenant", dest="tenant_slug", metavar="SLUG", help="an empty one: events without a tenant")
    filters.add_argument("--partner", dest="partner_slug", metavar="SLUG")
    filters.add_argument("--actor-id", metavar="ID")
    filters.add_argument("--actor-email", metavar="ADDRESS")
    filters.add_argument("--resource-type", metavar="TYPE")
    filters.add_argument("--resource-id", metavar="ID")
    filters.add_argument("--outcome", choices=("success", "failure", "denied"))
    filters.add_argument("--source", metavar="NAME", help="authentik includes authentik:eu2")
    filters.add_argument("--search", dest="q", metavar="TEXT", help="in action, resource, e-mail address and tenant")


_FILTERS = (
    "since",
    "until",
    "action",
    "tenant_slug",
    "partner_slug",
    "actor_id",
    "actor_email",
    "resource_type",
    "resource_id",
    "outcome",
    "source",
    "q",
)


def _filters(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in _FILTERS}
    return {name: value for name, value in given.items() if value is not None}


def _time(text: str) -> dt.datetime:
    try:
        # Python 3.10 does not read the Z.
        read = dt.datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in "Zz" and text else text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write 2026-12-01 or 2026-12-01T10:00Z") from None
    if read.tzinfo is None:
        if len(text) > len("2026-12-01"):
            raise argparse.ArgumentTypeError(f"{text!r} has no time zone: write {text}Z for UTC")
        read = read.replace(tzinfo=dt.timezone.utc)
    return read


def _count(text: str) -> int:
    number = _position(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _position(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _store(options: argparse.Namespace) -> str:
    # As with every variable, an empty one counts as unset.
    url: str = options.store or os.environ.get("DEZKY_STORE", "")
    if not url:
        raise _Failure("which store? Use --store URL or the variable DEZKY_STORE")
    return url


@contextlib.contextmanager
def _log(options: argparse.Namespace) -> Iterator[dezky.AuditLog]:
    with dezky.AuditLog.open(_store(options), read_only=True) as log:
        yield log


def _print(text: str) -> None:
    if sys.stdout is not None:
        sys.stdout.write(harmless(text) + "\n")


def _answer(status: int, *lines: str) -> int:
    """Prints the answer of a command whose status says it too: no failure of the output changes it."""
    try:
        for text in lines:
            _print(text)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the text has gone; that of the status is there.
        _discard_output()
    except OSError as error:
        _discard_output()
        # Neither "yes" nor "no" was said.
        return _fail(str(error.strerror or error), WRONG if status == FINE else status)
    return status


def _discard_output() -> None:
    """Drops what could not be written: otherwise every flush tries again, and the interpreter's end too."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _show(event: dezky.Event, as_json: bool) -> None:
    if as_json:
        _print(event.to_json())
        return
    at = event.at.strftime("%Y-%m-%d %H:%M:%S") + f".{event.at.microsecond // 1000:03}Z"
    who = event.actor_email or event.actor_id or ""
    what = "/".join(part for part in (event.resource_type, event.resource_name or event.resource_id) if part)
    cells = (
        f"{event.seq:>7}",
        at,
        f"{event.action:<28}",
        f"{event.outcome:<7}",
        f"{event.tenant_slug or '-':<14}",
        f"{event.actor_type}:{who}" if who else event.actor_type,
        what,
    )
    _print("  ".join(line(cell) for cell in cells).rstrip())


def _list(options: argparse.Namespace) -> int:
    limit = None if options.all else options.limit
    with _log(options) as log:
        for event in log.list(**_filters(options), limit=limit):
            _show(event, options.json)
    return FINE


def _tail(options: argparse.Namespace) -> int:
    with _log(options) as log:
        start = log.head().next_seq if options.start is None else options.start
        for event in log.tail(start, follow=not options.no_follow):
            _show(event, options.json)
            if sys.stdout is not None:
                sys.stdout.flush()
    return FINE


def _head(given: str | None) -> str | None:
    """A head, or the content of the file with that name."""
    if given is None or ":" in given:
        return given
    try:
        text = Path(given).read_bytes()[:MAX_HEAD_BYTES].decode("ascii", "replace")
    except OSError as error:
        raise _Failure(f"--head {given}: {error.strerror or error}") from None
    # A line of `verify` is accepted whole.
    words = text.split()
    return next((word for word in words if ":" in word and word[0].isdigit()), text.strip())


def _verify(options: argparse.Namespace) -> int:
    with _log(options) as log:
        total = log.head().next_seq
        with progress("events verified", total, shown=not options.json) as report:
            result = log.verify(progress=report, head=_head(options.head))
    head = None if result.head.seq is None else str(result.head)
    if options.json:
        finding = result.finding
        answer = {
            "ok": result.ok,
            "verified": result.verified,
            "head": None if head is None else {"seq": result.head.seq, "hash": result.head.hash.hex()},
            "finding": None
            if finding is None
            else {"seq": finding.seq, "kind": finding.kind, "detail": finding.detail},
            "anomalies": [
                {"object": found.object, "detail": found.detail, "fix": found.fix} for found in result.anomalies
            ],
        }
        return _answer(FINE if result.ok else NO, json.dumps(answer, ensure_ascii=False))
    if not result.ok:
        found_lines = [line(f"{found}: {found.fix}") for found in result.anomalies]
        if result.finding is not None:
            found_lines.append(line(str(result.finding)))
        _answer(NO, *found_lines)
    if result.finding is not None:
        raise _Failure(
            f"the log differs from what was recorded, from seq {result.finding.seq} on: keep it as it is, and "
            "compare it with a backup",
            NO,
        )
    if result.anomalies:
        raise _Failure(
            "the rows are as recorded, but lists may not show all of them: keep a copy of the database as evidence, "
            "then fix each line above",
            NO,
        )
    return _answer(FINE, f"ok: {result.verified} events, " + ("no head yet" if head is None else f"head {head}"))


def _eval(options: argparse.Namespace) -> int:
    if options.flags is not None and options.store is not None:
        raise _Failure("--flags and --store exclude each other: name one of them")
    names = ("tenant_id", "tenant_slug", "plan", "partner_slug", "environment")
    context = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.flags is not None:
        try:
            flags = dezky.FlagSet.from_json(Path(options.flags))
        except OSError as error:
            raise _Failure(f"--flags {options.flags}: {error.strerror or error}") from None
        return _decide(flags, options, context)
    url = _store(options)
    token = os.environ.get("DEZKY_TOKEN") if url.startswith(("http://", "https://")) else None
    with dezky.LiveFlags.open(url, token=token or None) as live:
        return _decide(live, options, context)


def _decide(flags: dezky.FlagSet | dezky.LiveFlags, options: argparse.Namespace, context: dict[str, str]) -> int:
    if options.key is None:
        values = flags.evaluate_all(context)
        if options.json:
            return _answer(FINE, json.dumps(values, ensure_ascii=False, sort_keys=True))
        width = max((len(key) for key in values), default=0)
        return _answer(
            FINE, *(f"{line(key):<{width}}  {'on' if value else 'off'}" for key, value in sorted(values.items()))
        )
    decision = flags.evaluate(options.key, context)
    status = FINE if decision.value else NO
    if options.json:
        answer = {"key": options.key, "value": decision.value, "reason": decision.reason, "bucket": decision.bucket}
        return _answer(status, json.dumps(answer, ensure_ascii=False))
    return _answer(status, line(f"{options.key}: {'on' if decision.value else 'off'} ({decision.reason})"))


def _export_events(options: argparse.Namespace) -> int:
    kind = _export.format_of(options.out, options.format)
    if options.exact and kind != "csv":
        raise _Failure(f"--exact is for CSV: {kind} is always exact")
    filters = _filters(options)
    if options.limit is not None:
        filters["limit"] = options.limit
    with _log(options) as log:
        total: int | None = log.head().next_seq
        if filters:
            # How many match is only known at the end.
            total = None
        with contextlib.ExitStack() as stack:
            if options.out == "-":
                if kind == "parquet":
                    raise _Failure("Parquet can't be written to the standard output: name a file")
                if sys.stdout is None:
                    raise _Failure("the standard output is closed", NO)
                sys.stdout.flush()
                file: Any = sys.stdout.buffer
            else:
                stack.enter_context(_tidy_end())
                file = stack.enter_context(_export.new_file(Path(options.out), force=options.force))
            report = stack.enter_context(progress("events", total, shown=not options.quiet))
            if kind == "parquet":
                done = _export.write_parquet(log, filters, file, report)
            elif kind == "csv":
                done = _export.write_csv(log.list(**filters), file, report, exact=options.exact)
            else:
                done = _export.write_ndjson(log.list(**filters), file, report)
            file.flush()
    if options.out != "-":
        _print(f"{done} events are in {line(options.out)}")
    return FINE


@contextlib.contextmanager
def _tidy_end() -> Iterator[None]:
    """Makes SIGTERM leave no temporary file, and a signal end the program, even if its exception is lost.

    A library may replace the exception that a signal handler raised with a different one.
    """
    if threading.current_thread() is not threading.main_thread():
        # Signals, and what they end, belong to the main thread.
        yield
        return
    seen: list[int] = []

    def end(number: int, frame: object) -> NoReturn:
        seen.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
    # A program that ignores Ctrl-C, as under nohup, goes on to.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, end)
    try:
        yield
    except Exception:
        if not seen:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if seen:
        raise KeyboardInterrupt if seen[0] == signal.SIGINT else SystemExit(128 + seen[0])


# Their status 1 is an answer, so everything that prevents the answer is another.
_ANSWERS = {"verify", "eval"}
_COMMANDS = {"list": _list, "tail": _tail, "verify": _verify, "eval": _eval, "export": _export_events}


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    failed = WRONG if options.command in _ANSWERS else NO
    try:
        status = _COMMANDS[options.command](options)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BrokenPipeError as error:
        if options.command in _ANSWERS:
            return _fail(str(error.strerror or error), failed)
        # The reader has seen enough, as `head` does.
        return FINE
    except _Failure as failure:
        return _fail(str(failure), failure.status)
    except _export.Refused as refused:
        return _fail(str(refused), WRONG)
    except (dezky.errors.ConfigInvalidError, dezky.errors.QueryInvalidError, ValueError) as error:
        message = str(error)
        if message.startswith("url "):
            message = ("--store" if options.store else "DEZKY_STORE") + message.removeprefix("url")
        return _fail(message, WRONG)
    except dezky.Error as error:
        return _fail(str(error), failed)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}", failed)
    except KeyboardInterrupt:
        return INTERRUPTED


def _fail(message: str, status: int) -> int:
    with contextlib.suppress(OSError):
        if sys.stdout is not None:
            sys.stdout.flush()
    if sys.stderr is None:
        return status
    with contextlib.suppress(OSError):
        print(f"dezky: {line(without_passwords(message))}", file=sys.stderr)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="dezky.escape")
    status = _run(arguments)
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            _discard_output()
    return status


if __name__ == "__main__":
    sys.exit(main())

"""Measures the audit log of the Python package: medians of several runs, as a table and as JSON.

    python benches/python/audit.py [URL] [--events N] [--runs N] [--json FILE]

Without a URL, it writes a SQLite file into a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import polars
import pyarrow

import dezky
from dezky import Actor, AuditLog, NewEvent

BATCH = 10_000
ACTORS = [Actor.user(f"u-{n}", email=f"user{n}@acme.test", ip=f"203.0.113.{n}") for n in range(200)]


def event(number: int) -> NewEvent:
    return NewEvent(
        "file.uploaded" if number % 3 else "tenant.suspended",
        actor=ACTORS[number % len(ACTORS)],
        resource_type="file",
        resource_id=f"f-{number}",
        resource_name=f"report-{number}.pdf",
        tenant_slug=f"tenant-{number % 50}",
        metadata={"size": number, "mime": "application/pdf"},
    )


def timed(runs: int, work: Callable[[], int]) -> tuple[float, float]:
    """Returns the median of seconds, and of events per second."""
    seconds, rates = [], []
    for _ in range(runs):
        start = time.perf_counter()
        count = work()
        seconds.append(time.perf_counter() - start)
        rates.append(count / seconds[-1])
    return statistics.median(seconds), statistics.median(rates)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("url", nargs="?")
    options.add_argument("--events", type=int, default=1_000_000, help="in the log that is read")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--json", help="write the results here, too")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = given.url or f"sqlite://{folder}/audit.db"
        results = measure(url, given.events, given.runs)
    report = {
        "dezky": dezky.__version__,
        "engine": url.partition(":")[0],
        "events": given.events,
        "runs": given.runs,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "results": results,
    }
    width = max(map(len, results))
    for name, result in results.items():
        print(f"{name:{width}}  {result['seconds']:9.3f} s  {result['events_per_second']:>12,.0f} events/s")
    print(json.dumps(report))
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)


def measure(url: str, total: int, runs: int) -> dict[str, dict[str, float]]:
    results: dict[str, dict[str, float]] = {}

    def keep(name: str, runs: int, work: Callable[[], int]) -> None:
        print(f"… {name}", file=sys.stderr)
        seconds, rate = timed(runs, work)
        results[name] = {"seconds": seconds, "events_per_second": rate}

    with AuditLog.open(url) as log:

        def record() -> int:
            for number in range(200):
                log.record("file.uploaded", actor=ACTORS[number % 200], metadata={"size": number})
            return 200

        def fill() -> int:
            for start in range(0, total, BATCH):
                log.append([event(number) for number in range(start, min(start + BATCH, total))])
            return total

        def make() -> int:
            return len([event(number) for number in range(100_000)])

        keep("record, one by one", runs, record)
        keep("make NewEvent objects", runs, make)
        keep("append in batches of 10,000, objects included", 1, fill)
        count = log.head().next_seq

        def objects() -> int:
            return sum(1 for _ in log.list())

        def rows() -> int:
            return polars.DataFrame([e.to_dict() for e in log.list(limit=min(count, 100_000))]).height

        keep("list: a loop over objects", runs, objects)
        keep("list: to_dict into polars, 100,000 events", 1, rows)
        keep("to_arrow: pyarrow.table", runs, lambda: pyarrow.table(log.to_arrow()).num_rows)
        keep("to_arrow: polars.DataFrame", runs, lambda: polars.DataFrame(log.to_arrow()).height)
        keep("tail, up to the head", runs, lambda: sum(1 for _ in log.tail(follow=False)))
        keep("verify", 1, lambda: log.verify().verified)
    return results


if __name__ == "__main__":
    main()

"""Benchmarks flags in Python against plain Python with hashlib, in the same run.

    python benches/python/flags.py [--tenants 1000000] [--runs 7] [--json FILE]

Needs numpy and pyarrow, and an optimised build of the package (`maturin develop --release`). Each time
is the median of the runs. The plain Python is one comprehension
that calls only built-in functions and hashlib.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa

import dezky

KEY = "feature_000007"
PCT = 25


def mixed(count: int) -> list[dict[str, Any]]:
    """40 % rollouts with a scope, 30 % targeted, 20 % on, 10 % off."""
    flags = []
    for n in range(count):
        plans = ["enterprise"] if n // 10 % 4 == 0 else ["pro", "enterprise"]
        flag: dict[str, Any] = {"key": f"feature_{n:06}"}
        if n % 10 < 4:
            flag |= {"state": "rollout", "pct": n % 99 + 1, "scope": {"plans": plans}}
        elif n % 10 < 7:
            flag |= {"state": "targeted", "scope": {"plans": plans}}
        elif n % 10 < 9:
            flag |= {"state": "on"}
        flags.append(flag)
    return flags


def plain(flag: dict[str, Any], tenant_id: str, plan: str) -> bool:
    """The definition of a decision, for flags of `mixed`."""
    state = flag.get("state", "off")
    if state == "off":
        return False
    if state == "on":
        return True
    if plan not in flag["scope"]["plans"]:
        return False
    if state == "targeted":
        return True
    digest = sha256(f"{tenant_id}:{flag['key']}".encode()).digest()
    return int.from_bytes(digest, "big") % 100 < flag["pct"]


def measure(work: Callable[[], object], runs: int, repeat: int = 1) -> float:
    """The median time of one call, in seconds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        for _ in range(repeat):
            work()
        times.append((time.perf_counter() - start) / repeat)
    return statistics.median(times)


def main() -> None:
    """Measures, and prints a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args()

    tenant = "1d0e6fde-e431-7835-82c1-a48a8b044551"
    one = dezky.FlagSet.from_json([{"key": KEY, "state": "rollout", "pct": PCT}])
    definitions = mixed(100)
    flags = dezky.FlagSet.from_json(definitions)
    context = dezky.Context(tenant, plan="pro")
    expected = {flag["key"]: plain(flag, tenant, "pro") for flag in definitions}
    assert flags.evaluate_all(context) == expected
    rollout = definitions[11]
    results: list[dict[str, Any]] = []

    def case(name: str, ours: Callable[[], object], theirs: float, repeat: int) -> None:
        seconds = measure(ours, options.runs, repeat)
        results.append({"case": name, "seconds": seconds, "plain_seconds": theirs, "factor": theirs / seconds})

    base = measure(lambda: int.from_bytes(sha256(f"{tenant}:{KEY}".encode()).digest(), "big") % 100, options.runs, 20_000)
    case("bucket", lambda: dezky.bucket(tenant, KEY), base, 20_000)
    base = measure(lambda: plain(rollout, tenant, "pro"), options.runs, 20_000)
    case("evaluate", lambda: flags.evaluate(rollout["key"], context), base, 20_000)
    case("evaluate, keyword arguments", lambda: flags.evaluate(rollout["key"], tenant_id=tenant, plan="pro"), base, 20_000)
    base = measure(lambda: {flag["key"]: plain(flag, tenant, "pro") for flag in definitions}, options.runs, 500)
    case("evaluate_all of 100 flags", lambda: flags.evaluate_all(context), base, 500)

    random = np.random.default_rng(7)
    ids = [str(uuid.UUID(bytes=random.bytes(16), version=4)) for _ in range(options.tenants)]
    array, arrow = np.array(ids), pa.array(ids)
    views, chunked = pa.array(ids, pa.string_view()), pa.chunked_array([ids[: options.tenants // 3], ids[options.tenants // 3 :]])
    objects = np.array(ids, dtype=object)
    columns = {"list": ids, "NumPy <U36": array, "NumPy objects": objects, "Arrow string": arrow, "Arrow string view": views, "Arrow chunked": chunked}

    def plainly() -> list[bool]:
        return [int.from_bytes(sha256(f"{i}:{KEY}".encode()).digest(), "big") % 100 < PCT for i in ids]

    base = measure(plainly, options.runs)
    wanted = plainly()
    for name, column in columns.items():
        assert one.evaluate_many(KEY, column).to_list() == wanted
        case(f"evaluate_many, {options.tenants:,} as {name}", lambda column=column: one.evaluate_many(KEY, column), base, 1)  # type: ignore[misc]

    width = max(len(result["case"]) for result in results)
    print(f"{'case':{width}}  {'dezky':>12}  {'plain Python':>12}  {'factor':>7}")
    for result in results:
        ours, theirs = (f"{result[which] * 1e6:,.2f} µs" for which in ("seconds", "plain_seconds"))
        print(f"{result['case']:{width}}  {ours:>12}  {theirs:>12}  {result['factor']:>6.1f}x")
    report = {
        "python": sys.version.split()[0],
        "dezky": dezky.__version__,
        "machine": platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "runs": options.runs,
        "results": results,
    }
    print(json.dumps(report))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()

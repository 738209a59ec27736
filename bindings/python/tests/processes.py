"""Runs Python programs in separate processes."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PRELUDE = """
import asyncio, faulthandler, gc, os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import dezky
from dezky import Actor, AsyncAuditLog, AuditLog, NewEvent
url = sys.argv[1]
system = Actor.system()
def events(count):
    return [NewEvent("a.b", actor=system, metadata={"n": n}) for n in range(count)]
def rss():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
"""


def child(code: str, url: str = "memory:") -> subprocess.Popen[str]:
    """Starts a program, after the prelude. Warnings are errors."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code), url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str, url: str = "memory:") -> str:
    """Runs a program, which must end well and print no error, and returns its output."""
    process = child(code, url)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), out
    return out

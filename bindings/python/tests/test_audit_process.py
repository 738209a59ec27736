"""The package in a process: signals, forks, the end of the interpreter, threads and memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable

import pytest

from dezky import Actor, AuditLog, NewEvent

SLACK = 1.0
"""The time that a busy machine may add to the 100 ms in which Ctrl-C is heard, in seconds."""

PRELUDE = """
import asyncio, faulthandler, os, signal, sys, threading, time
import dezky
from dezky import Actor, AsyncAuditLog, AuditLog, NewEvent
url = sys.argv[1]
system = Actor.system()
def events(count):
    return [NewEvent("a.b", actor=system, metadata={"n": n}) for n in range(count)]
"""


def child(code: str, url: str = "memory:") -> subprocess.Popen[str]:
    """Starts Python in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", PRELUDE + textwrap.dedent(code), url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str, url: str = "memory:") -> str:
    """Runs Python in a process of its own, which must end well and print no error."""
    process = child(code, url)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), out
    return out


INTERRUPTED = {
    "tail": "for _ in log.tail(): pass",
    "verify": "log.verify()",
    "verify with progress": "log.verify(progress=lambda _: None)",
    "append": "while True: log.append(batch)",
    "append to a blocked store": "block()\nlog.append(batch[:1])",
    "list": "while True: list(log.list())",
    "arrow": "while True: pyarrow.table(log.to_arrow())",
}


@pytest.mark.parametrize("work", INTERRUPTED, ids=lambda name: name.replace(" ", "-"))
def test_ctrl_c_ends_a_blocking_call(work: str, new_url: Callable[[str], str]) -> None:
    process = child(
        f"""
        import pyarrow, psycopg
        def block():
            global blocker
            blocker = psycopg.connect(url)
            blocker.execute("LOCK TABLE " + ", ".join(
                name for (name,) in blocker.execute(
                    "SELECT tablename FROM pg_tables WHERE tablename LIKE 'dezky%'")))
        log = AuditLog.open(url)
        batch = events(10_000)
        for _ in range(2):
            log.append(batch)
        def announce():
            time.sleep(0.3)
            print("ready", flush=True)
        threading.Thread(target=announce).start()
        try:
            exec({INTERRUPTED[work]!r})
        except KeyboardInterrupt:
            print(time.time(), flush=True)
        else:
            # It may have ended before the signal.
            try:
                while True: exec({INTERRUPTED[work]!r})
            except KeyboardInterrupt:
                print(time.time(), flush=True)
        if "blocker" in globals():
            blocker.close()
        assert log.verify().ok
        log.close()
        """,
        new_url("postgres"),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()
    sent = time.time()
    process.send_signal(signal.SIGINT)
    heard = process.stdout.readline()
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err, out) == (0, "", "")
    print(f"{work}: Ctrl-C heard after {(float(heard) - sent) * 1000:.0f} ms")
    assert float(heard) - sent < 0.1 + SLACK


def test_a_signal_handler_may_use_the_log() -> None:
    run(
        """
        log = AuditLog.open(url)
        heads = []
        signal.signal(signal.SIGALRM, lambda *_: heads.append(log.record("c.d", actor=system).seq))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        tail = log.tail()
        assert next(tail).action == "c.d"
        assert heads == [0]
        """
    )


def test_other_threads_run_while_a_call_blocks(new_url: Callable[[str], str]) -> None:
    with AuditLog.open(new_url("sqlite")) as log:
        ready, counted = threading.Event(), [0]

        def follow() -> None:
            ready.set()
            for event in log.tail():
                if event.action == "the.end":
                    return

        thread = threading.Thread(target=follow)
        thread.start()
        ready.wait()
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            counted[0] += 1
        log.record("the.end", actor=Actor.system())
        thread.join(20)
        assert not thread.is_alive() and counted[0] > 10_000


def test_two_threads_append_at_once(new_url: Callable[[str], str]) -> None:
    with AuditLog.open(new_url("sqlite")) as log:
        steps: list[int] = []

        def work(number: int) -> None:
            for _ in range(5):
                log.append([NewEvent("a.b", actor=Actor.system()) for _ in range(500)])
                steps.append(number)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Neither waited for all of the other.
        assert steps[:5] != [steps[0]] * 5 and log.head().next_seq == 5000


def test_use_after_a_fork_is_refused_in_one_line(new_url: Callable[[str], str]) -> None:
    out = run(
        """
        import warnings
        warnings.simplefilter("ignore")
        log = AuditLog.open(url)
        log.record("a.b", actor=system)
        iterator = log.list()
        tail = log.tail()
        next(tail)
        arrow = log.to_arrow()
        child = os.fork()
        if child == 0:
            uses = [
                log.head, log.list, log.tail, log.verify, log.close,
                lambda: log.append([]), lambda: log.record("a.b", actor=system),
                lambda: next(iterator), lambda: next(tail), lambda: AuditLog.open("memory:"),
                lambda: arrow.__arrow_c_stream__(),
            ]
            for use in uses:
                try:
                    use()
                except dezky.errors.ForkedError as error:
                    assert "fork" in str(error) and chr(10) not in str(error)
                    assert isinstance(error, RuntimeError)
                else:
                    raise SystemExit("a use after the fork was not refused")
            del iterator, tail, arrow, log, uses, use
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        assert log.record("a.b", actor=system).seq == 1
        assert log.verify().ok
        print("ok")
        """,
        new_url("postgres"),
    )
    assert out == "ok\n"


def test_a_fork_before_the_first_use_is_allowed() -> None:
    run(
        """
        import warnings
        warnings.simplefilter("ignore")
        child = os.fork()
        with AuditLog.open(url) as log:
            assert log.record("a.b", actor=system).seq == 0
        if child:
            assert os.waitpid(child, 0)[1] == 0
        """
    )


EXITS = {
    "an open log": "log.record('a.b', actor=system)",
    "an open log in an object": "class Holder: pass\nholder = Holder(); holder.log = log; holder.self = holder",
    "a tail in a daemon thread": (
        "threading.Thread(target=lambda: list(log.tail()), daemon=True).start(); time.sleep(0.3)"
    ),
    "an append in a daemon thread": (
        "def work():\n"
        "    while True: log.append(events(50))\n"
        "threading.Thread(target=work, daemon=True).start(); time.sleep(0.3)"
    ),
    "an iterator half read": "log.append(events(2000)); it = log.list(); next(it)",
    "an arrow stream half read": (
        "import pyarrow\n"
        "for _ in range(3): log.append(events(10_000))\n"
        "reader = pyarrow.RecordBatchReader.from_stream(log.to_arrow()); reader.read_next_batch()"
    ),
    "an unfinished await": (
        "async def main():\n"
        "    global other, pending\n"
        "    other = await AsyncAuditLog.open(url)\n"
        "    pending = other.append(events(5000))\n"
        "    unawaited = other.head()\n"
        "asyncio.run(main())"
    ),
    "a cancelled tail": (
        "async def main():\n"
        "    other = await AsyncAuditLog.open(url)\n"
        "    try:\n"
        "        await asyncio.wait_for(anext(other.tail(10**6)), 0.1)\n"
        "    except (TimeoutError, asyncio.TimeoutError): pass\n"
        "asyncio.run(main())"
    ),
    "an exception": "log.close(); log.close()",
    "os._exit": "log.record('a.b', actor=system); os._exit(0)",
}


@pytest.mark.parametrize("engine", ["sqlite", "postgres", "mongodb"])
@pytest.mark.parametrize("state", EXITS, ids=lambda name: name.replace(" ", "-"))
def test_the_interpreter_ends_quietly(state: str, engine: str, new_url: Callable[[str], str]) -> None:
    assert run("log = AuditLog.open(url)\n" + EXITS[state], new_url(engine)) == ""


def test_appending_leaks_no_memory(new_url: Callable[[str], str]) -> None:
    out = run(
        """
        import gc
        def rss():
            with open("/proc/self/statm") as statm:
                return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        def round_of(count):
            for _ in range(count // 5000):
                log.append([NewEvent("a.b", actor=system, metadata={"text": "x" * 400}) for _ in range(5000)])
            for event in log.list(limit=20_000):
                event.to_dict()
            gc.collect()
        with AuditLog.open(url) as log:
            round_of(50_000)
            before = rss()
            round_of(100_000)
            print(f"{before:.1f} {rss():.1f}")
        """,
        new_url("sqlite"),
    )
    before, after = map(float, out.split())
    print(f"resident before {before} MiB, after 100,000 more events {after} MiB")
    # A leak of 400 bytes for each event would be 38 MiB.
    assert after - before < 25


def test_records_and_awaits_leak_no_memory() -> None:
    out = run(
        """
        import gc
        def rss():
            with open("/proc/self/statm") as statm:
                return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        async def main():
            async with await AsyncAuditLog.open(url) as log:
                await log.append(events(1))
                async def round_of(count):
                    for _ in range(count):
                        await log.head()
                        async for event in log.list(limit=1):
                            event.to_dict(), repr(event), event.to_json(), hash(event)
                    gc.collect()
                await round_of(2_000)
                before = rss()
                await round_of(10_000)
                print(f"{before:.1f} {rss():.1f}")
        asyncio.run(main())
        """
    )
    before, after = map(float, out.split())
    print(f"resident before {before} MiB, after 10,000 awaits {after} MiB")
    assert after - before < 8


def test_the_import_starts_no_thread() -> None:
    run("assert len(os.listdir('/proc/self/task')) == 1")
    assert os.getpid() > 0

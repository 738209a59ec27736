"""The package in a process: signals, forks, the end of the interpreter, threads and memory."""

from __future__ import annotations

import os
import signal
import statistics
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import child, run

from dezky import Actor, AuditLog, NewEvent

HEARD = 0.1
"""The time in which Ctrl-C is heard, in seconds."""

ROUNDS = 3
"""A busy machine may delay one of them."""

# Those that add events come last.
INTERRUPTED = {
    "tail": "for _ in log.tail(): pass",
    "verify": "log.verify()",
    "verify with progress": "log.verify(progress=lambda _: None)",
    "list": "while True: list(log.list())",
    # The reader's own error comes first.
    "arrow": (
        "while True:\n"
        "    try: pyarrow.table(log.to_arrow())\n"
        "    except OSError: pass"
    ),
    "append to a blocked store": "block()\nlog.append(batch[:1])",
    "append": "while True: log.append(batch)",
    "append of mappings": "while True: log.append(mappings)",
}


def test_ctrl_c_ends_a_blocking_call(new_url: Callable[[str], str]) -> None:
    process = child(
        f"""
        import psycopg, pyarrow
        def block():
            global blocker
            blocker = psycopg.connect(url)
            blocker.execute("LOCK TABLE " + ", ".join(
                name for (name,) in blocker.execute(
                    "SELECT tablename FROM pg_tables WHERE tablename LIKE 'dezky%'")))
        blocker = psycopg.connect(url)
        log = AuditLog.open(url)
        batch = events(10_000)
        mappings = [dict(action="a.b", actor=system, metadata=dict(n=[n] * 20)) for n in range(10_000)]
        log.append(batch)
        # Imports more when it is first used.
        pyarrow.table(log.to_arrow())
        def announce():
            time.sleep(0.3)
            print("ready", flush=True)
        for code in {[*INTERRUPTED.values()]!r}:
            work = compile(code, "work", "exec")
            for _ in range({ROUNDS}):
                threading.Thread(target=announce).start()
                try:
                    # It may end before the signal.
                    while True: exec(work)
                except KeyboardInterrupt:
                    print(time.time(), flush=True)
                blocker.close()
        assert log.verify().ok
        log.close()
        """,
        new_url("postgres"),
    )
    assert process.stdout is not None
    medians = {}
    for work in INTERRUPTED:
        heard: list[float] = []
        for _ in range(ROUNDS):
            assert process.stdout.readline() == "ready\n", (work, process.communicate())
            sent = time.time()
            process.send_signal(signal.SIGINT)
            heard.append(float(process.stdout.readline()) - sent)
        print(f"{work}: Ctrl-C heard after", ", ".join(f"{seconds * 1000:.0f}" for seconds in sorted(heard)), "ms")
        medians[work] = statistics.median(heard)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err, out) == (0, "", "")
    assert {work: median for work, median in medians.items() if median >= HEARD} == {}


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


def test_a_signal_handler_may_close_the_log_that_a_tail_waits_for() -> None:
    run(
        """
        log = AuditLog.open(url)
        signal.signal(signal.SIGALRM, lambda *_: log.close())
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            for event in log.tail(): pass
        except ValueError as error:
            assert str(error) == "the log is closed", error
        else:
            raise SystemExit("the tail ended without an error")
        assert log.closed
        """
    )


BLOCK = """
import psycopg
blocker = psycopg.connect(url)
def block():
    tables = blocker.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'dezky%'")
    blocker.execute("LOCK TABLE " + ", ".join(name for (name,) in tables))
"""


def test_a_signal_handler_may_close_the_log_of_a_blocked_append(new_url: Callable[[str], str]) -> None:
    url = new_url("postgres")
    out = run(
        BLOCK
        + textwrap.dedent(
            """
            log = AuditLog.open(url)
            log.append(events(1))
            block()
            began = []
            def handler(*_):
                began.append(time.monotonic())
                threading.Timer(0.5, blocker.rollback).start()
                log.close()
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            try:
                print("appended", len(log.append(events(10))))
            except dezky.Error as error:
                print("refused", error.code)
            assert began and log.closed
            blocker.close()
            """
        ),
        url,
    )
    with AuditLog.open(url) as log:
        # The answer is true.
        assert log.verify().verified == {"a": 11, "r": 1}[out[0]], out


def test_a_signal_handler_may_record_during_an_append(new_url: Callable[[str], str]) -> None:
    out = run(
        """
        log = AuditLog.open(url)
        seqs = []
        def handler(*_):
            seqs.append(log.record("c.d", actor=system).seq)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        receipts = []
        until = time.monotonic() + 60
        while len(seqs) < 5 and time.monotonic() < until:
            receipts += log.append(events(1000))
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert len(seqs) >= 5 and None not in seqs
        stored = log.verify()
        assert stored.ok and stored.verified == len(receipts) + len(seqs)
        print("ok")
        """,
        new_url("sqlite"),
    )
    assert out == "ok\n"


def test_a_finalizer_may_close_a_log_while_others_work() -> None:
    out = run(
        """
        gc.set_threshold(1)
        closed = []
        class Holder:
            def __init__(self, log): self.log, self.self = log, self
            def __del__(self):
                self.log.close()
                closed.append(self.log.closed)
        async def main():
            async with await AsyncAuditLog.open(url) as log:
                async def use(number):
                    for _ in range(40):
                        Holder(AuditLog.open(url))
                        await log.record("a.b", actor=system)
                        try:
                            await log.append([NewEvent("Bad", actor=system)])
                        except dezky.errors.EventInvalidError:
                            pass
                await asyncio.gather(*map(use, range(4)))
                assert (await log.head()).next_seq == 160
        asyncio.run(main())
        gc.collect()
        assert len(closed) == 160 and all(closed), len(closed)
        print("ok")
        """
    )
    assert out == "ok\n"


@pytest.mark.parametrize("raised", ["SystemExit(7)", "TimeoutError('late')", "KeyboardInterrupt()"])
@pytest.mark.parametrize("reader", ["pyarrow.table", "polars.DataFrame"])
def test_the_exception_of_a_signal_handler_is_not_lost_in_an_arrow_stream(
    raised: str, reader: str, new_url: Callable[[str], str]
) -> None:
    out = run(
        f"""
        import pyarrow, polars
        log = AuditLog.open(url)
        log.append(events(3000))
        ours = signal.getsignal(signal.SIGINT)
        def handler(*_):
            raise {raised}
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            try:
                while True: {reader}(log.to_arrow())
            except Exception:
                # The stream's own error, before which the other one may have come.
                if isinstance(sys.exc_info()[1], TimeoutError) and "late" in str(sys.exc_info()[1]): raise
                for _ in range(100): time.sleep(0.001)
        except BaseException as error:
            print(repr(error))
        assert signal.getsignal(signal.SIGINT) is ours
        log.close()
        """,
        new_url("sqlite"),
    )
    assert out == raised.replace('"', "'") + "\n"


def test_a_close_survives_the_end_of_the_wait_for_it(new_url: Callable[[str], str], tmp_path: Path) -> None:
    run(
        f"""
        spool = {str(tmp_path / "audit.spool")!r}
        async def main():
            cancelled = 0
            for seconds in (0, 1e-6, 1e-4, 1e-3) * 5:
                log = await AsyncAuditLog.open(url, spool=spool)
                await log.record("a.b", actor=system)
                try:
                    await asyncio.wait_for(log.close(), seconds)
                except (TimeoutError, asyncio.TimeoutError):
                    cancelled += 1
                # Waits for the end of the first one, which frees the spool.
                await log.close()
                async with await AsyncAuditLog.open(url, spool=spool): pass
            assert cancelled > 0
        asyncio.run(main())
        """,
        new_url("sqlite"),
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
        barrier = threading.Barrier(2)
        spans: dict[int, list[tuple[float, float]]] = {0: [], 1: []}

        def work(number: int) -> None:
            for _ in range(5):
                batch = [NewEvent("a.b", actor=Actor.system()) for _ in range(500)]
                barrier.wait(60)
                began = time.monotonic()
                log.append(batch)
                spans[number].append((began, time.monotonic()))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # A call that held the interpreter's lock would begin after the other's end.
        overlaps = [max(a[0], b[0]) < min(a[1], b[1]) for a, b in zip(spans[0], spans[1], strict=True)]
        assert overlaps.count(True) >= 3 and log.head().next_seq == 5000


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
        "for _ in range(2): log.append(events(10_000))\n"
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


# Not on the tests' server of MongoDB's protocol: it serves nobody until the transaction of a
# process that ended has timed out.
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
@pytest.mark.parametrize("state", EXITS, ids=lambda name: name.replace(" ", "-"))
def test_the_interpreter_ends_quietly(state: str, engine: str, new_url: Callable[[str], str]) -> None:
    assert run("log = AuditLog.open(url)\n" + EXITS[state], new_url(engine)) == ""


def test_appending_leaks_no_memory(new_url: Callable[[str], str]) -> None:
    out = run(
        """
        def round_of(count):
            for _ in range(count // 5000):
                log.append([NewEvent("a.b", actor=system, metadata={"text": "x" * 400}) for _ in range(5000)])
            for event in log.list(limit=5_000):
                event.to_dict()
            gc.collect()
        with AuditLog.open(url) as log:
            round_of(20_000)
            before = rss()
            round_of(30_000)
            print(f"{before:.1f} {rss():.1f}")
        """,
        new_url("sqlite"),
    )
    before, after = map(float, out.split())
    print(f"resident before {before} MiB, after 30,000 more events {after} MiB")
    # A leak of the text of each event would be 11 MiB. The allocator's growth ends before 100,000.
    assert after - before < 7.5


def test_records_and_awaits_leak_no_memory() -> None:
    out = run(
        """
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
                await round_of(4_000)
                print(f"{before:.1f} {rss():.1f}")
        asyncio.run(main())
        """
    )
    before, after = map(float, out.split())
    print(f"resident before {before} MiB, after 4,000 rounds {after} MiB")
    # A leak of 1 KiB for each round would be 4 MiB.
    assert after - before < 3


def test_the_import_starts_no_thread() -> None:
    run("assert len(os.listdir('/proc/self/task')) == 1")
    assert os.getpid() > 0

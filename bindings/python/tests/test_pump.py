"""Sources written in Python, under the pump."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until

import dezky
from dezky import Actor, AsyncAuditLog, AuditLog, NewEvent
from dezky.errors import StateConflictError
from dezky.ingest import AsyncPump, Batch, Pump, Quarantined, Source, decode_stalwart

ADA = Actor.user("ada")


class Numbers(Source):
    """The events 0 to `count`, `size` at a time; the cursor is the next number."""

    def __init__(self, count: int, *, size: int = 10, name: str = "numbers", ids: bool = False) -> None:
        self.name = name
        self.count = count
        self.size = size
        self.ids = ids
        self.pulls: list[str | None] = []

    def pull(self, cursor: str | None) -> Batch:
        self.pulls.append(cursor)
        start = int(cursor or 0)
        end = min(start + self.size, self.count)
        return Batch([self.event(number) for number in range(start, end)], str(end), more=end < self.count)

    def event(self, number: int) -> NewEvent | dict[str, Any]:
        external = {"external_id": f"n{number}"} if self.ids else {}
        return {"action": "number.seen", "actor": ADA, "metadata": {"n": number}, **external}


def numbers(log: AuditLog, **filters: Any) -> list[int]:
    found = [event.metadata["n"] for event in log.list(action="number.", **filters)]
    return sorted(found)


def test_a_tick_moves_everything_and_the_next_goes_on(log: AuditLog) -> None:
    source = Numbers(25)
    with Pump(log, source) as pump:
        tick = pump.tick()
        assert (tick.stored, tick.duplicates, tick.more, tick.standby) == (25, 0, False, False)
        assert pump.tick().stored == 0
        source.count = 27
        assert pump.tick().stored == 2
        assert pump.status().stored == 27
        assert (pump.source, pump.status().state) == ("numbers", "running")
    assert numbers(log) == list(range(27))
    [event] = log.list(limit=1)
    assert (event.source, event.actor_id) == ("numbers", "ada")
    assert event.external_id is not None and event.external_id.startswith("pull1:")
    # The cursor is in the store: another pump continues there.
    with Pump(log, source) as pump:
        assert pump.tick().stored == 0
    assert source.pulls[-1] == "27"


def test_a_tick_ends_after_its_batches_and_says_that_more_waits(log: AuditLog) -> None:
    with Pump(log, Numbers(50), max_batches=2) as pump:
        tick = pump.tick()
        assert (tick.stored, tick.more) == (20, True)


def test_events_may_be_new_events_mappings_generators_or_decoded(log: AuditLog) -> None:
    decoded = decode_stalwart(b'[{"id": "7", "type": "auth.failed"}, 7]')
    batches: dict[str | None, Batch] = {
        None: Batch((NewEvent("a.b", actor=ADA, source="crm:eu") for _ in range(1)), "1", True),
        "1": Batch([{"action": "a.c", "actor": ADA}], "2", True),
        "2": Batch(decoded, "3", True, 4),
        "3": Batch([], "4", quarantine=[Quarantined("odd", raw=b"?")]),
    }

    class Mixed(Source):
        name = "crm"

        def pull(self, cursor: str | None) -> Batch:
            return batches.get(cursor, Batch([], cursor))

    with Pump(log, Mixed()) as pump:
        tick = pump.tick()
    assert (tick.stored, tick.quarantined, tick.skipped) == (3, 2, 4)
    assert {(event.action, event.source) for event in log.list(source="crm")} == {
        ("a.b", "crm:eu"),
        ("a.c", "crm"),
    }
    assert [event.resource_id for event in log.list(action="ingest.quarantined")] == ["crm", "stalwart"]


def test_an_invalid_event_is_quarantined_without_its_secrets_and_stops_nothing(log: AuditLog) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("S3S3S3")

    class Odd(Source):
        name = "odd"

        def pull(self, cursor: str | None) -> Batch:
            if cursor:
                return Batch([], cursor)
            good = {"action": "a.b", "actor": ADA}
            bad: list[Any] = [
                7,
                None,
                "text",
                Broken(),
                {**good, "password": "S3S3S3"},
                {**good, "actor": "ada"},
                {**good, "metadata": {"n": float("nan")}},
                {**good, "action": "Not An Action"},
                {**good, "tenant_slug": ""},
                {**good, "external_id": "x" * 600},
                {"action": "a.b"},
                {1: 2},
            ]
            return Batch([good, *bad, {**good, "metadata": {"last": 1}}], "1")

    with Pump(log, Odd()) as pump:
        tick = pump.tick()
    assert (tick.stored, tick.quarantined) == (2, 12)
    notices = list(log.list(action="ingest.quarantined"))
    assert len(notices) == 12
    assert "S3S3S3" not in "".join(event.to_json() for event in notices)


def test_equal_events_of_a_batch_are_each_stored(log: AuditLog) -> None:
    class Same(Source):
        name = "same"

        def pull(self, cursor: str | None) -> Batch:
            step = int(cursor or 0)
            return Batch([{"action": "a.b", "actor": ADA}] * (2 if step < 3 else 0), str(min(step + 1, 3)))

    with Pump(log, Same(), interval=0) as pump:
        stored = [pump.tick().stored for _ in range(4)]
    assert stored == [2, 2, 2, 0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (7, "the result of pull must be a Batch"),
        (None, "the result of pull must be a Batch"),
        (Batch([], 7), "cursor must be a str"),  # type: ignore[arg-type]
        (Batch([], "\ud800"), "cursor contains a lone surrogate"),
        (Batch([], "\0"), "cursor must be at most"),
        (Batch([], "x" * 70_000), "cursor must be at most"),
        (Batch([7], None), "cursor must be another one"),  # type: ignore[list-item]
        (Batch(7, "1"), "not iterable"),  # type: ignore[arg-type]
        (Batch([], "1", more=1), "more must be a bool"),  # type: ignore[arg-type]
        (Batch([], "1", skipped=-1), "skipped must be 0 to"),
        (Batch([], "1", quarantine=[7]), "each of quarantine must be a Quarantined"),  # type: ignore[list-item]
    ],
)
def test_a_batch_that_makes_no_sense_is_a_failure(new_url: Callable[[str], str], given: Any, message: str) -> None:
    class Wrong(Source):
        name = "wrong"

        def pull(self, cursor: str | None) -> Batch:
            return given  # type: ignore[no-any-return]

    with AuditLog.open(new_url("memory")) as log, Pump(log, Wrong()) as pump:
        with pytest.raises((TypeError, ValueError), match=message):
            pump.tick()
        assert pump.status().failures == 1


def test_an_exception_is_raised_as_it_is_and_the_pump_goes_on(log: AuditLog) -> None:
    class Flaky(Numbers):
        fails = True

        def pull(self, cursor: str | None) -> Batch:
            if self.fails and cursor == "10":
                raise LookupError("no such row: S3S3S3")
            return super().pull(cursor)

    source = Flaky(20)
    with Pump(log, source) as pump:
        with pytest.raises(LookupError, match="no such row") as caught:
            pump.tick()
        assert any("pull" in str(entry.name) for entry in caught.traceback)
        status = pump.status()
        assert (status.failures, status.state) == (1, "backing_off")
        assert status.last_error == ("source_unavailable", "the source numbers raised LookupError")
        assert numbers(log) == list(range(10))
        source.fails = False
        assert pump.tick().stored == 10
        assert pump.status().failures == 0
    assert numbers(log) == list(range(20))


def test_run_logs_exceptions_with_their_traceback_and_goes_on(
    new_url: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    class Flaky(Numbers):
        left = 2

        def pull(self, cursor: str | None) -> Batch:
            if self.left:
                self.left -= 1
                raise LookupError("not yet")
            return super().pull(cursor)

    with AuditLog.open(new_url("sqlite")) as log:
        pump = Pump(log, Flaky(5), interval=0.01, max_backoff=0.01)
        thread = threading.Thread(target=pump.run)
        with caplog.at_level(logging.WARNING, "dezky"):
            thread.start()
            until(lambda: numbers(log) == list(range(5)))
            pump.stop()
            thread.join(10)
        assert not thread.is_alive()
        records = [record for record in caplog.records if record.name == "dezky"]
        assert len(records) == 2
        assert records[0].exc_info is not None and isinstance(records[0].exc_info[1], LookupError)
        assert "in pull" in caplog.text
        assert pump.status().state == "stopped"
        pump.close()


def test_a_failure_of_the_store_is_logged_while_it_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = AuditLog.open(f"sqlite://{tmp_path}/a.db")
    pump = Pump(log, Numbers(5), interval=0.01, max_backoff=0.01)
    log.close()
    thread = threading.Thread(target=pump.run)
    thread.start()
    until(lambda: any("the pump of numbers failed" in record.getMessage() for record in caplog.records))
    pump.stop()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_exception_that_is_no_failure_ends_the_run(
    new_url: Callable[[str], str], kind: type[BaseException]
) -> None:
    class Ends(Source):
        name = "ends"

        def pull(self, cursor: str | None) -> Batch:
            raise kind("enough")

    with AuditLog.open(new_url("memory")) as log, Pump(log, Ends(), interval=60) as pump:
        with pytest.raises(kind, match="enough"):
            pump.run()
        with pytest.raises(kind, match="enough"):
            pump.tick()


def test_of_two_pumps_one_works_until_it_gives_the_lease_back(durable_url: str) -> None:
    with AuditLog.open(durable_url) as one, AuditLog.open(durable_url) as two:
        first, second = Pump(one, Numbers(10), holder="a"), Pump(two, Numbers(10), holder="b")
        assert first.tick().stored == 10
        tick = second.tick()
        assert (tick.standby, tick.stored) == (True, 0)
        assert second.status().state == "standby"
        first.close()
        tick = second.tick()
        assert (tick.standby, tick.stored) == (False, 0)
        second.close()


def test_a_failed_tick_gives_the_lease_back(durable_url: str) -> None:
    class Fails(Source):
        name = "numbers"

        def pull(self, cursor: str | None) -> Batch:
            raise ValueError("no")

    with AuditLog.open(durable_url) as log:
        with Pump(log, Fails()) as failing, Pump(log, Numbers(3)) as other:
            with pytest.raises(ValueError, match="no"):
                failing.tick()
            assert other.tick().stored == 3


def test_pull_may_use_dezky_and_block(log: AuditLog) -> None:
    class Curious(Source):
        name = "curious"

        def pull(self, cursor: str | None) -> Batch:
            log.record("pull.began", actor=Actor.system())
            seen = sum(1 for _ in log.list())
            return Batch([{"action": "pull.saw", "actor": ADA, "metadata": {"n": seen}}], str(seen))

    with Pump(log, Curious()) as pump:
        assert pump.tick().stored == 1
    [event] = log.list(action="pull.saw")
    assert event.metadata["n"] == 1


def test_the_pump_never_works_twice_at_once_and_says_so(new_url: Callable[[str], str]) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(Source):
        name = "slow"

        def pull(self, cursor: str | None) -> Batch:
            with pytest.raises(StateConflictError, match="pull can't close its pump"):
                pump.close()
            entered.set()
            leave.wait(20)
            return Batch([], "1")

    with AuditLog.open(new_url("memory")) as log:
        pump = Pump(log, Slow())
        thread = threading.Thread(target=pump.tick)
        thread.start()
        assert entered.wait(10)
        for work in (pump.tick, pump.run):
            with pytest.raises(StateConflictError, match="the pump is working"):
                work()
        leave.set()
        thread.join(10)
        pump.close()
        pump.close()
        for work in (pump.tick, pump.run):
            with pytest.raises(ValueError, match="^the pump is closed$"):
                work()
        pump.stop()
        assert pump.status().state in ("running", "stopped")


def test_stop_before_run_ends_it_at_once(new_url: Callable[[str], str]) -> None:
    with AuditLog.open(new_url("memory")) as log, Pump(log, Numbers(5)) as pump:
        pump.stop()
        pump.run()
        assert pump.status().ticks == 0


def test_ctrl_c_ends_a_run_in_order(durable_url: str) -> None:
    with AuditLog.open(durable_url) as log:
        pump = Pump(log, Numbers(5), interval=60)
        timer = threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            pump.run()
        assert time.monotonic() - began < 10
        assert pump.status().state == "stopped"
        with Pump(log, Numbers(5)) as other:
            assert not other.tick().standby
        pump.close()


def test_ctrl_c_ends_a_tick_waits_for_pull_and_gives_the_lease_back(durable_url: str) -> None:
    returned = threading.Event()

    class Slow(Source):
        name = "numbers"

        def pull(self, cursor: str | None) -> Batch:
            time.sleep(1.5)
            returned.set()
            return Batch([{"action": "a.b", "actor": ADA}], "1")

    with AuditLog.open(durable_url) as log:
        pump = Pump(log, Slow())
        threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            pump.tick()
        assert returned.is_set()
        assert list(log.list()) == []
        with Pump(log, Numbers(3)) as other:
            assert other.tick().stored == 3
        pump.close()


def test_an_async_source_needs_an_async_pump(new_url: Callable[[str], str]) -> None:
    class Async(Source):
        name = "async"

        async def pull(self, cursor: str | None) -> Batch:
            return Batch([], "1")

    class Hidden(Source):
        name = "hidden"

        def pull(self, cursor: str | None) -> Any:
            return Async().pull(cursor)

    with AuditLog.open(new_url("memory")) as log:
        with pytest.raises(TypeError, match="^source.pull is async: use AsyncPump"):
            Pump(log, Async())
        with Pump(log, Hidden()) as pump, pytest.raises(TypeError, match="^source.pull is async"):
            pump.tick()


@pytest.mark.parametrize("name", ["", "a b", "a:b:c", "x" * 65, "ü", "platform-api", 7, None])
def test_a_source_has_a_name_that_events_can_have(new_url: Callable[[str], str], name: Any) -> None:
    with AuditLog.open(new_url("memory")) as log, pytest.raises((TypeError, ValueError), match=r"^source\.name"):
        Pump(log, Numbers(1, name=name))


def test_a_pump_takes_a_log_and_a_source(new_url: Callable[[str], str]) -> None:
    with AuditLog.open(new_url("memory")) as log:
        for source in (7, object(), Numbers):
            with pytest.raises(TypeError, match="^source"):
                Pump(log, source)  # type: ignore[arg-type]
        for wrong in (7, None, "memory:"):
            with pytest.raises(TypeError, match="^log must be an AuditLog"):
                Pump(wrong, Numbers(1))  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="^log must be an AsyncAuditLog"):
                AsyncPump(wrong, Numbers(1))  # type: ignore[arg-type]
        for named in (
            {"interval": -1},
            {"interval": float("inf")},
            {"lease": 0.5},
            {"max_batches": 0},
            {"max_backoff": 1e9},
            {"holder": ""},
        ):
            with pytest.raises(ValueError, match=f"^{next(iter(named))} "):
                Pump(log, Numbers(1), **named)
    with pytest.raises(ValueError, match="the log is closed"):
        Pump(log, Numbers(1))


def test_a_pump_and_its_source_are_collected(new_url: Callable[[str], str]) -> None:
    with AuditLog.open(new_url("memory")) as log:
        source: Any = Numbers(1)
        pump = Pump(log, source)
        source.pump = pump
        pump.tick()
        gone = weakref.ref(source)
        del source, pump
        gc.collect()
        until(lambda: gc.collect() >= 0 and gone() is None)


# Processes that die


CHILD = """
import sys, time
import dezky
from dezky.ingest import Batch, Pump, Source

class Numbers(Source):
    name = "numbers"
    def pull(self, cursor):
        start = int(cursor or 0)
        end = min(start + {size}, {count})
        events = [
            {{"action": "number.seen", "actor": dezky.Actor.user("ada"), "metadata": {{"n": n}}}}
            for n in range(start, end)
        ]
        return Batch(events, str(end), more=end < {count})

with dezky.AuditLog.open(sys.argv[1]) as log, Pump(log, Numbers(), interval=0, lease=1) as pump:
    print("ready", flush=True)
    while pump.status().stored + 0 < {count} and not pump.status().ticks > 5000:
        tick = pump.tick()
        if not tick.more and not tick.standby:
            break
"""


@pytest.fixture(params=["sqlite", "postgres"])
def killed_url(request: pytest.FixtureRequest, new_url: Callable[[str], str]) -> str:
    """The URL of a new log on an engine that notices at once when a client dies.

    MongoDB keeps the transaction of a dead client for a minute.
    """
    return new_url(request.param)


def child(url: str, script: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


# More than one append takes, in pulls of that many: then the cursor moves with the last part.
@pytest.mark.parametrize(
    ("count", "size", "delays"),
    [(4_000, 50, [0.15, 0.3, 0.4, 0.5, 0.6]), (24_000, 12_000, [0.8, 1.1, 1.4, 2.0])],
)
def test_every_event_is_there_once_however_often_the_process_is_killed(
    killed_url: str, count: int, size: int, delays: list[float]
) -> None:
    script = CHILD.format(count=count, size=size)
    with AuditLog.open(killed_url) as log:
        for delay in delays:
            process = child(killed_url, script)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(delay)
            process.kill()
            process.wait()
            process.communicate()
        before = numbers(log)
        process = child(killed_url, script)
        _, said = process.communicate(timeout=120)
        assert (process.returncode, said) == (0, "")
        counted = Counter(numbers(log))
        assert before, "the processes were killed before they stored anything"
        assert set(counted) == set(range(count))
        assert set(counted.values()) == {1}
        assert bool(log.verify())


def test_a_killed_pump_is_relieved_when_its_lease_lapses(killed_url: str) -> None:
    script = """
    import sys, time, dezky
    from dezky.ingest import Batch, Pump, Source
    class Numbers(Source):
        name = "numbers"
        def pull(self, cursor):
            print("pulling", flush=True)
            time.sleep(60)
    pump = Pump(dezky.AuditLog.open(sys.argv[1]), Numbers(), lease=1)
    pump.tick()
    """
    process = child(killed_url, script)
    assert process.stdout is not None
    assert process.stdout.readline() == "pulling\n"
    with AuditLog.open(killed_url) as log, Pump(log, Numbers(3), lease=1) as pump:
        assert pump.tick().standby
        process.kill()
        process.communicate()
        until(lambda: not pump.tick().standby, seconds=10)
        assert numbers(log) == [0, 1, 2]


def test_the_interpreter_ends_quietly_while_a_pump_runs_in_a_thread(tmp_path: Path) -> None:
    script = """
    import sys, threading, time, dezky
    from dezky.ingest import Batch, Pump, Source
    class Slow(Source):
        name = "slow"
        def pull(self, cursor):
            started.set()
            time.sleep(0.7)
            return Batch([{"action": "a.b", "actor": dezky.Actor.system()}], str(int(cursor or 0) + 1), more=True)
    started = threading.Event()
    pump = Pump(dezky.AuditLog.open(sys.argv[1]), Slow())
    threading.Thread(target=pump.run, daemon=True).start()
    started.wait()
    """
    began = time.monotonic()
    process = child(f"sqlite://{tmp_path}/a.db", script)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (0, "", "")
    assert time.monotonic() - began < 15


def test_ctrl_c_ends_a_program_in_order(tmp_path: Path) -> None:
    script = """
    import sys, dezky
    from dezky.ingest import Batch, Pump, Source
    class Quiet(Source):
        name = "quiet"
        def pull(self, cursor):
            print("pulled", flush=True)
            return Batch([], cursor)
    with dezky.AuditLog.open(sys.argv[1]) as log, Pump(log, Quiet(), interval=60) as pump:
        try:
            pump.run()
        except KeyboardInterrupt:
            print(pump.status().state)
    """
    process = child(f"sqlite://{tmp_path}/a.db", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "pulled\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert (process.returncode, out, error) == (0, "stopped\n", "")


def test_a_forked_process_can_not_use_the_pump_and_ends(tmp_path: Path) -> None:
    script = """
    import os, sys, dezky
    from dezky.ingest import Batch, Pump, Source
    class Quiet(Source):
        name = "quiet"
        def pull(self, cursor):
            return Batch([], cursor)
    pump = Pump(dezky.AuditLog.open(sys.argv[1]), Quiet())
    pump.tick()
    if os.fork() == 0:
        try:
            pump.tick()
        except dezky.errors.ForkedError:
            del pump
            sys.exit(7)
        sys.exit(8)
    _, status = os.wait()
    pump.tick()
    pump.close()
    sys.exit(os.waitstatus_to_exitcode(status))
    """
    process = child(f"sqlite://{tmp_path}/a.db", script)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (7, "", "")


# asyncio


class AsyncNumbers(Numbers):
    loops: set[Any]

    def __init__(self, count: int, **more: Any) -> None:
        super().__init__(count, **more)
        self.loops = set()

    async def pull(self, cursor: str | None) -> Batch:  # type: ignore[override]
        self.loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0.001)
        return super().pull(cursor)


@pytest.fixture
def sources() -> Iterator[list[Numbers]]:
    yield [AsyncNumbers(25), Numbers(25, name="blocking")]


async def test_async_ticks_run_pull_on_their_loop(log_url: str, sources: list[Numbers]) -> None:
    async with await AsyncAuditLog.open(log_url) as log:
        for source in sources:
            async with AsyncPump(log, source) as pump:
                tick = await pump.tick()
                assert (tick.stored, tick.more) == (25, False)
                assert (await pump.tick()).stored == 0
        found = sorted([event.metadata["n"] async for event in log.list(action="number.")])
        assert found == sorted([*range(25), *range(25)])
    first = sources[0]
    assert isinstance(first, AsyncNumbers)
    assert first.loops == {asyncio.get_running_loop()}


async def test_async_pull_may_use_the_log(log_url: str) -> None:
    async with await AsyncAuditLog.open(log_url) as log:

        class Curious(Source):
            name = "curious"

            async def pull(self, cursor: str | None) -> Batch:
                await log.record("pull.began", actor=Actor.system())
                seen = [event async for event in log.list()]
                return Batch([{"action": "pull.saw", "actor": ADA}], str(len(seen)))

        async with AsyncPump(log, Curious()) as pump:
            assert (await pump.tick()).stored == 1


async def test_async_exceptions_are_raised_as_they_are(new_url: Callable[[str], str]) -> None:
    class Fails(Source):
        name = "fails"

        async def pull(self, cursor: str | None) -> Batch:
            await asyncio.sleep(0)
            raise LookupError("no such row")

    async with await AsyncAuditLog.open(new_url("memory")) as log, AsyncPump(log, Fails()) as pump:
        with pytest.raises(LookupError, match="no such row"):
            await pump.tick()
        assert pump.status().failures == 1


async def test_a_cancelled_run_ends_in_order(durable_url: str) -> None:
    async with await AsyncAuditLog.open(durable_url) as log:
        pump = AsyncPump(log, AsyncNumbers(25), interval=60)
        task = asyncio.create_task(pump.run())
        while pump.status().stored < 25:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pump.status().state == "stopped"
        async with AsyncPump(log, AsyncNumbers(25)) as other:
            assert not (await other.tick()).standby
        await pump.close()


async def test_stop_ends_an_async_run(new_url: Callable[[str], str]) -> None:
    async with await AsyncAuditLog.open(new_url("memory")) as log, AsyncPump(log, AsyncNumbers(5)) as pump:
        task = asyncio.create_task(pump.run())
        while pump.status().stored < 5:
            await asyncio.sleep(0.01)
        pump.stop()
        await asyncio.wait_for(task, 10)


@pytest.mark.parametrize("whole", [False, True])
async def test_cancelling_cancels_pull_and_gives_the_lease_back(durable_url: str, whole: bool) -> None:
    cancelled = asyncio.Event()
    began = asyncio.Event()

    class Slow(Source):
        name = "numbers"

        async def pull(self, cursor: str | None) -> Batch:
            began.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            raise AssertionError

    async with await AsyncAuditLog.open(durable_url) as log:
        pump = AsyncPump(log, Slow())
        task = asyncio.create_task(pump.run() if whole else pump.tick())
        await asyncio.wait_for(began.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
        await asyncio.wait_for(cancelled.wait(), 10)
        async with AsyncPump(log, AsyncNumbers(3)) as other:
            assert (await other.tick()).stored == 3
        await pump.close()


async def test_the_loop_goes_on_while_a_blocking_source_blocks(new_url: Callable[[str], str]) -> None:
    class Blocks(Source):
        name = "blocks"

        def pull(self, cursor: str | None) -> Batch:
            time.sleep(0.5)
            return Batch([], "1")

    async with await AsyncAuditLog.open(new_url("memory")) as log, AsyncPump(log, Blocks()) as pump:
        tick = asyncio.create_task(pump.tick())
        steps = 0
        while not tick.done():
            await asyncio.sleep(0.01)
            steps += 1
        assert steps > 20


def test_asyncio_run_that_is_interrupted_leaves_no_lease(tmp_path: Path) -> None:
    script = """
    import asyncio, sys, dezky
    from dezky.ingest import AsyncPump, Batch, Source
    class Quiet(Source):
        name = "numbers"
        async def pull(self, cursor):
            print("pulled", flush=True)
            return Batch([], cursor)
    async def main():
        async with await dezky.AsyncAuditLog.open(sys.argv[1]) as log:
            await AsyncPump(log, Quiet(), interval=60).run()
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("interrupted")
    """
    url = f"sqlite://{tmp_path}/a.db"
    process = child(url, script)
    assert process.stdout is not None
    assert process.stdout.readline() == "pulled\n"
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert (process.returncode, out, error) == (0, "interrupted\n", "")
    with AuditLog.open(url) as log, Pump(log, Numbers(1)) as pump:
        assert not pump.tick().standby


def test_dezky_is_imported_with_its_ingest_module() -> None:
    assert dezky.ingest.Pump is Pump

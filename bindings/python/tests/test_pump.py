"""Sources written in Python, under the pump."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sqlite3
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import until
from processes import child

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


def test_the_quarantine_keeps_what_was_given_without_its_secrets(tmp_path: Path) -> None:
    at = datetime(2026, 12, 1, 10, tzinfo=timezone.utc)

    class Odd(Source):
        name = "odd"

        def pull(self, cursor: str | None) -> Batch:
            bad: list[Any] = [
                {
                    "action": "Not An Action",
                    "actor": Actor.user("ada", email="ada@acme.test"),
                    "at": at,
                    "metadata": {"token": "S3S3S3", "kept": [1, float("nan"), b"raw", {2}]},
                },
                '{"action": "a.b", "password": "S3S3S3"}',
                b"a line",
                ["x", 7],
                object(),
            ]
            return Batch(bad if cursor is None else [], "1")

    with AuditLog.open(f"sqlite://{tmp_path}/a.db") as log, Pump(log, Odd()) as pump:
        assert pump.tick().quarantined == 5
    with sqlite3.connect(f"{tmp_path}/a.db") as database:
        rows = database.execute("SELECT raw FROM dezky_quarantine ORDER BY number").fetchall()
    raws = [bytes(raw).decode() for (raw,) in rows]
    assert json.loads(raws[0]) == {
        "action": "Not An Action",
        "actor": {"type": "user", "id": "ada", "email": "ada@acme.test"},
        "at": "2026-12-01T10:00:00+00:00",
        "metadata": {"token": "[redacted]", "kept": [1, "float", "raw", "set"]},
    }
    assert json.loads(raws[1]) == {"action": "a.b", "password": "[redacted]"}
    assert raws[2] == "a line"
    assert json.loads(raws[3]) == ["x", 7]
    assert raws[4] == "object"


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
            thread.join(60)
        assert not thread.is_alive()
        records = [record for record in caplog.records if record.name == "dezky"]
        assert len(records) == 2
        assert records[0].exc_info is not None and isinstance(records[0].exc_info[1], LookupError)
        assert "in pull" in caplog.text
        assert pump.status().state == "stopped"
        pump.close()


def test_a_failure_of_the_store_is_logged_while_it_runs(
    new_url: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    url = new_url("postgres")
    with AuditLog.open(url) as log:
        pump = Pump(log, Numbers(5), interval=0.01, max_backoff=0.01)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP TABLE dezky_leases CASCADE")
        thread = threading.Thread(target=pump.run)
        thread.start()
        until(lambda: any("the pump of numbers failed" in record.getMessage() for record in caplog.records))
        pump.stop()
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("interval", [0, 60])
def test_a_pump_ends_with_its_log(log_url: str, interval: float) -> None:
    log = AuditLog.open(log_url)
    pump = Pump(log, Numbers(5), interval=interval)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            pump.run()
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: pump.status().stored == 5)
    log.close()
    thread.join(60)
    assert not thread.is_alive()
    assert [str(error) for error in raised] == ["the log is closed"]
    for work in (pump.tick, pump.run):
        with pytest.raises(ValueError, match="^the log is closed$"):
            work()
    pump.close()


@pytest.mark.parametrize("interval", [0, 60])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_exception_that_is_no_failure_ends_the_run(
    new_url: Callable[[str], str], kind: type[BaseException], interval: float
) -> None:
    class Ends(Source):
        name = "ends"

        def pull(self, cursor: str | None) -> Batch:
            raise kind("enough")

    with AuditLog.open(new_url("memory")) as log, Pump(log, Ends(), interval=interval, max_backoff=0) as pump:
        with pytest.raises(kind, match="enough"):
            pump.run()
        with pytest.raises(kind, match="enough"):
            pump.tick()
        with pytest.raises(kind, match="enough"):
            pump.run()


def test_an_exit_that_is_asked_for_once_is_not_lost(new_url: Callable[[str], str]) -> None:
    class Once(Source):
        name = "once"
        pulls = 0

        def pull(self, cursor: str | None) -> Batch:
            self.pulls += 1
            if self.pulls == 3:
                raise SystemExit(7)
            return Batch([], cursor)

    source = Once()
    with AuditLog.open(new_url("memory")) as log, Pump(log, source, interval=0, max_backoff=0) as pump:
        with pytest.raises(SystemExit) as caught:
            pump.run()
    assert (caught.value.code, source.pulls) == (7, 3)


def test_an_exit_while_the_run_is_stopped_is_not_lost(new_url: Callable[[str], str]) -> None:
    class Late(Source):
        name = "late"

        def pull(self, cursor: str | None) -> Batch:
            pump.stop()
            time.sleep(0.3)
            raise SystemExit(7)

    with AuditLog.open(new_url("memory")) as log, Pump(log, Late()) as pump:
        with pytest.raises(SystemExit):
            pump.run()


def test_an_old_exception_may_use_the_pump_when_it_goes(
    new_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise pytest keeps the records, and with them the exceptions.
    monkeypatch.setattr(logging.getLogger("dezky"), "disabled", True)
    seen: list[str] = []

    class Loud(Exception):
        def __del__(self) -> None:
            # Under a lock of the pump's, this would wait for ever.
            threads = [threading.Thread(target=lambda: seen.append(pump.status().state)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            time.sleep(0.01)

    class Fails(Source):
        name = "fails"

        def pull(self, cursor: str | None) -> Batch:
            raise Loud

    with AuditLog.open(new_url("memory")) as log:
        pump = Pump(log, Fails(), interval=0, max_backoff=0)
        thread = threading.Thread(target=pump.run)
        thread.start()
        until(lambda: len(seen) > 5)
        pump.stop()
        thread.join(60)
        assert not thread.is_alive()
        pump.close()


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
            leave.wait(60)
            return Batch([], "1")

    with AuditLog.open(new_url("memory")) as log:
        pump = Pump(log, Slow())
        thread = threading.Thread(target=pump.tick)
        thread.start()
        assert entered.wait(60)
        for work in (pump.tick, pump.run):
            with pytest.raises(StateConflictError, match="the pump is working"):
                work()
        leave.set()
        thread.join(60)
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
    class Interrupts(Numbers):
        def pull(self, cursor: str | None) -> Batch:
            os.kill(os.getpid(), signal.SIGINT)
            return super().pull(cursor)

    with AuditLog.open(durable_url) as log:
        pump = Pump(log, Interrupts(5), interval=3600)
        with pytest.raises(KeyboardInterrupt):
            pump.run()
        assert pump.status().state == "stopped"
        with Pump(log, Numbers(5)) as other:
            assert not other.tick().standby
        pump.close()


def test_ctrl_c_ends_a_tick_waits_for_pull_and_gives_the_lease_back(durable_url: str) -> None:
    returned = threading.Event()

    class Slow(Source):
        name = "numbers"

        def pull(self, cursor: str | None) -> Batch:
            os.kill(os.getpid(), signal.SIGINT)
            # Long enough for the signal, which the waiting thread looks for.
            time.sleep(3)
            returned.set()
            return Batch([{"action": "a.b", "actor": ADA}], "1")

    with AuditLog.open(durable_url) as log:
        pump = Pump(log, Slow())
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
        print(start, flush=True)
        events = [
            {{"action": "number.seen", "actor": dezky.Actor.user("ada"), "metadata": {{"n": n}}}}
            for n in range(start, end)
        ]
        return Batch(events, str(end), more=end < {count})

with dezky.AuditLog.open(sys.argv[1]) as log, Pump(log, Numbers(), interval=0, lease=1) as pump:
    while True:
        tick = pump.tick()
        if tick.standby:
            time.sleep(0.05)
        elif not tick.more:
            break
"""


@pytest.fixture(params=["sqlite", "postgres"])
def killed_url(request: pytest.FixtureRequest, new_url: Callable[[str], str]) -> str:
    """The URL of a new log on an engine that notices at once when a client dies.

    MongoDB keeps the transaction of a dead client for a minute.
    """
    return new_url(request.param)


# More than one append takes, in pulls of that many: then the cursor moves with the last part.
@pytest.mark.parametrize(("count", "size", "pulls"), [(2_000, 50, 7), (10_000, 5_000, 1)])
def test_every_event_is_there_once_however_often_the_process_is_killed(
    killed_url: str, count: int, size: int, pulls: int
) -> None:
    script = CHILD.format(count=count, size=size)
    with AuditLog.open(killed_url) as log:
        kills = 0
        for delay in (0.0, 0.02, 0.1, 0.3):
            process = child(script, killed_url)
            assert process.stdout is not None
            # As many pulls begin in each round, after the lease of the round before has lapsed.
            began = [process.stdout.readline() for _ in range(pulls)]
            if not began[-1]:
                break
            time.sleep(delay)
            kills += process.poll() is None
            process.kill()
            process.communicate()
        assert kills >= 2, "the processes ended before they were killed"
        process = child(script, killed_url)
        _, said = process.communicate(timeout=240)
        assert (process.returncode, said) == (0, "")
        counted = Counter(numbers(log))
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
    process = child(script, killed_url)
    assert process.stdout is not None
    assert process.stdout.readline() == "pulling\n"
    with AuditLog.open(killed_url) as log, Pump(log, Numbers(3), lease=1) as pump:
        assert pump.tick().standby
        process.kill()
        process.communicate()
        until(lambda: not pump.tick().standby)
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
    process = child(script, f"sqlite://{tmp_path}/a.db")
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (0, "", "")
    assert time.monotonic() - began < 60


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
    process = child(script, f"sqlite://{tmp_path}/a.db")
    assert process.stdout is not None
    assert process.stdout.readline() == "pulled\n"
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
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
    process = child(script, f"sqlite://{tmp_path}/a.db")
    out, error = process.communicate(timeout=60)
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


async def test_a_close_that_is_cancelled_goes_on_and_another_one_waits_for_it(durable_url: str) -> None:
    async with await AsyncAuditLog.open(durable_url) as log:
        for _ in range(3):
            pump = AsyncPump(log, AsyncNumbers(5))
            assert not (await pump.tick()).standby
            closing = asyncio.ensure_future(pump.close())
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            await pump.close()


async def test_stop_ends_an_async_run(new_url: Callable[[str], str]) -> None:
    async with await AsyncAuditLog.open(new_url("memory")) as log, AsyncPump(log, AsyncNumbers(5)) as pump:
        task = asyncio.create_task(pump.run())
        while pump.status().stored < 5:
            await asyncio.sleep(0.01)
        pump.stop()
        await asyncio.wait_for(task, 60)


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
        await asyncio.wait_for(began.wait(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 60)
        await asyncio.wait_for(cancelled.wait(), 60)
        async with AsyncPump(log, AsyncNumbers(3)) as other:
            assert (await other.tick()).stored == 3
        await pump.close()


async def test_the_loop_goes_on_while_a_blocking_source_blocks(new_url: Callable[[str], str]) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Blocks(Source):
        name = "blocks"

        def pull(self, cursor: str | None) -> Batch:
            entered.set()
            assert leave.wait(60), "the loop stood still"
            return Batch([], "1")

    async with await AsyncAuditLog.open(new_url("memory")) as log, AsyncPump(log, Blocks()) as pump:
        tick = asyncio.create_task(pump.tick())
        while not entered.is_set():
            await asyncio.sleep(0.01)
        leave.set()
        await tick


async def test_async_pulls_never_overlap_however_slowly_they_end(new_url: Callable[[str], str]) -> None:
    class Slow(Source):
        name = "slow"
        running = most = ended = 0

        async def pull(self, cursor: str | None) -> Batch:
            self.running += 1
            self.most = max(self.most, self.running)
            began.set()
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.2)
                self.running -= 1
                self.ended += 1
            raise AssertionError

    source = Slow()
    began = asyncio.Event()
    async with await AsyncAuditLog.open(new_url("memory")) as log:
        pump = AsyncPump(log, source, interval=0)
        for whole in (True, False, True):
            began.clear()
            task = asyncio.create_task(pump.run() if whole else pump.tick())
            await asyncio.wait_for(began.wait(), 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # The end of the work includes that of the call.
            assert source.running == 0
        began.clear()
        task = asyncio.create_task(pump.run())
        await asyncio.wait_for(began.wait(), 60)
        pump.stop()
        await asyncio.wait_for(task, 60)
        await pump.close()
    assert (source.most, source.running, source.ended) == (1, 0, 4)


@pytest.mark.parametrize("blocking", [False, True])
async def test_pull_can_not_close_its_async_pump(new_url: Callable[[str], str], blocking: bool) -> None:
    class Closes(Source):
        name = "closes"

        async def pull(self, cursor: str | None) -> Batch:
            async with AsyncPump(log, Numbers(1)) as other:
                await other.tick()
            await pump.close()
            raise AssertionError

    class Blocking(Source):
        name = "blocking"

        def pull(self, cursor: str | None) -> Batch:
            async def close() -> None:
                await pump.close()

            asyncio.run(close())
            raise AssertionError

    async with await AsyncAuditLog.open(new_url("memory")) as log:
        pump = AsyncPump(log, Blocking() if blocking else Closes())
        with pytest.raises(StateConflictError, match="^pull can't close its pump"):
            await asyncio.wait_for(pump.tick(), 60)
        await asyncio.wait_for(pump.close(), 60)


async def test_a_refused_tick_leaves_the_loop_of_the_other_alone(new_url: Callable[[str], str]) -> None:
    began = asyncio.Event()
    go = asyncio.Event()

    class Waits(Source):
        name = "waits"
        loops: set[Any] = set()
        pulls = 0

        async def pull(self, cursor: str | None) -> Batch:
            self.pulls += 1
            self.loops.add(asyncio.get_running_loop())
            began.set()
            await go.wait()
            return Batch([{"action": "a.b", "actor": ADA}], str(self.pulls), more=self.pulls < 3)

    source = Waits()
    async with await AsyncAuditLog.open(new_url("memory")) as log:
        pump = AsyncPump(log, source)

        async def refused() -> None:
            with pytest.raises(StateConflictError):
                await pump.tick()

        task = asyncio.create_task(pump.tick())
        await asyncio.wait_for(began.wait(), 60)
        await asyncio.to_thread(asyncio.run, refused())
        go.set()
        assert (await asyncio.wait_for(task, 60)).stored == 3
        await pump.close()
    assert source.loops == {asyncio.get_running_loop()}


async def test_a_source_that_only_the_work_uses_is_not_collected(new_url: Callable[[str], str]) -> None:
    async with await AsyncAuditLog.open(new_url("memory")) as log:
        source: Any = AsyncNumbers(25)
        source.go = go = asyncio.Event()
        pump = AsyncPump(log, source, interval=0.01)
        source.pump = pump
        pulled = asyncio.Event()

        async def pull(cursor: str | None, source: Any = weakref.ref(source)) -> Batch:
            pulled.set()
            await go.wait()
            return await AsyncNumbers.pull(source(), cursor)

        source.pull = pull
        task = asyncio.create_task(pump.run())
        del source, pump, pull
        await asyncio.wait_for(pulled.wait(), 60)
        gc.collect()
        go.set()
        found = 0
        end = time.monotonic() + 60
        while found < 25 and time.monotonic() < end:
            found = len([event async for event in log.list(action="number.")])
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert found == 25


def test_the_end_of_a_loop_is_no_failure(new_url: Callable[[str], str], caplog: pytest.LogCaptureFixture) -> None:
    class Waits(Source):
        name = "waits"

        async def pull(self, cursor: str | None) -> Batch:
            began.set()
            await asyncio.sleep(3600)
            raise AssertionError

    async def main() -> None:
        log = await AsyncAuditLog.open(new_url("memory"))
        asyncio.create_task(AsyncPump(log, Waits()).run())
        await asyncio.wait_for(began.wait(), 60)

    for _ in range(5):
        began = asyncio.Event()
        asyncio.run(main())
    assert [record.getMessage() for record in caplog.records if record.name == "dezky"] == []


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
    process = child(script, url)
    assert process.stdout is not None
    assert process.stdout.readline() == "pulled\n"
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (0, "interrupted\n", "")
    with AuditLog.open(url) as log, Pump(log, Numbers(1)) as pump:
        assert not pump.tick().standby


def test_dezky_is_imported_with_its_ingest_module() -> None:
    assert dezky.ingest.Pump is Pump

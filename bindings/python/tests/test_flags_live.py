"""Flags that follow stores and servers, changed by the program `dezky-server`."""

from __future__ import annotations

import asyncio
import datetime
import gc
import json
import multiprocessing
import os
import select
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from conftest import server, until
from processes import child, run
from server_program import TOKEN, Server, cli, serving, set_flag

import dezky
from dezky import AsyncLiveFlags, FlagEvent, LiveFlags

STORES = ("sqlite", "postgres", "mongodb")


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, new_url: Callable[[str], str], tmp_path: Path) -> str:
    """The URL of a store with the flag `chat`, off."""
    return filled(new_url(request.param), tmp_path)


@pytest.fixture
def sqlite(new_url: Callable[[str], str], tmp_path: Path) -> str:
    """The same on SQLite."""
    return filled(new_url("sqlite"), tmp_path)


def filled(url: str, folder: Path) -> str:
    cli(folder, url, "migrate")
    set_flag(folder, url, "chat", "--create")
    return url


@pytest.fixture
def running(sqlite: str, tmp_path: Path) -> Iterator[Server]:
    """A server on the store of `sqlite`."""
    with serving(tmp_path, sqlite) as running:
        yield running


def is_on(flags: LiveFlags, key: str = "chat") -> bool:
    return flags.evaluate(key, tenant_id="t-1").value


def test_a_change_by_another_program_is_followed(store: str, tmp_path: Path) -> None:
    events: list[FlagEvent] = []
    with LiveFlags.open(store, poll_interval=0.1) as flags, flags.subscribe(events.append):
        assert not is_on(flags)
        before = flags.current()
        first = flags.revision
        set_flag(tmp_path, store, "chat", "--state", "on")
        until(lambda: is_on(flags), "the change")
        assert flags.evaluate_all(tenant_id="t-1") == {"chat": True}
        assert flags.evaluate_many("chat", ["t-1", None]).to_list() == [True, None]
        assert flags.explain("chat", tenant_id="t-1").reason == "on"
        # A set in hand does not change.
        assert before.evaluate_all(tenant_id="t-1") == {"chat": False}
        set_flag(tmp_path, store, "more", "--create", "--state", "rollout", "--pct", "100")
        until(lambda: "more" in flags.current(), "the new flag")
        # A slow machine may also tell that the store was away for a moment.
        def changes() -> list[FlagEvent]:
            return [event for event in events if event.kind == "changed"]

        until(lambda: len(changes()) >= 2, "both events")
        assert [event.keys for event in changes()] == [["chat"], ["more"]]
        assert first is not None and changes()[0].revision == first + 1
        status = flags.status()
        assert (status.revision, status.stale, status.error, status.from_file) == (flags.revision, False, None, False)
        assert status.age is not None and status.age.total_seconds() < 60
        decision = flags.evaluate("more", tenant_id="t-1")
        assert (decision.bucket, decision.threshold) == (dezky.bucket("t-1", "more"), 100)


def test_an_edit_is_read_at_once_on_request(sqlite: str, tmp_path: Path) -> None:
    with LiveFlags.open(sqlite, poll_interval=datetime.timedelta(hours=1), timeout=30) as flags:
        set_flag(tmp_path, sqlite, "chat", "--state", "on")
        revision = flags.refresh()
        assert is_on(flags) and flags.revision == revision


async def test_the_async_twin_follows_too(store: str, tmp_path: Path) -> None:
    async with await AsyncLiveFlags.open(store, poll_interval=0.1) as flags:
        assert not (await flags.evaluate("chat", tenant_id="t-1")).value
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        subscription = flags.subscribe(lambda event: loop.call_soon_threadsafe(changed.set))
        await asyncio.to_thread(set_flag, tmp_path, store, "chat", "--state", "on")
        await asyncio.wait_for(changed.wait(), 60)
        subscription.cancel()
        assert (await flags.evaluate("chat", {"tenant_id": "t-1"})).value
        assert await flags.evaluate_all(tenant_id="t-1") == {"chat": True}
        assert flags.current().evaluate_many("chat", ["t"]).to_list() == [True]
        assert (await flags.evaluate_many("chat", ["t", None])).to_list() == [True, None]
        assert (await flags.explain("chat", tenant_id="t-1")).reason == "on"
        with pytest.raises(TypeError, match="^tenant_ids"):
            await flags.evaluate_many("chat", "t")
        assert await flags.refresh() == flags.revision == flags.status().revision
        assert repr(flags).startswith("AsyncLiveFlags('") and "closed" not in repr(flags)
    await flags.close()
    for call in (flags.evaluate, flags.explain):
        with pytest.raises(ValueError, match="the flags are closed"):
            await call("chat", tenant_id="t-1")
    with pytest.raises(ValueError, match="the flags are closed"):
        await flags.evaluate_many("chat", [])


def test_a_server_is_followed(running: Server, tmp_path: Path) -> None:
    events: list[FlagEvent] = []
    with LiveFlags.open(running.url, token=TOKEN, poll_interval=0.1) as flags, flags.subscribe(events.append):
        off = flags.evaluate("chat", tenant_id="t-1", plan="pro")
        assert (off.value, off.reason) == (False, "off")
        assert flags.evaluate("no-such-flag", tenant_id="t-1").reason == "unknown_flag"
        patch(running, "chat", {"state": "rollout", "pct": 50})
        until(lambda: flags.evaluate("chat", tenant_id="t-1").bucket is not None, "the change")
        decision = flags.evaluate("chat", tenant_id="t-1")
        local = dezky.FlagSet.from_json([{"key": "chat", "state": "rollout", "pct": 50}])
        assert decision == local.evaluate("chat", tenant_id="t-1")
        assert flags.evaluate_all(tenant_id="t-1") == local.evaluate_all(tenant_id="t-1")
        until(lambda: events, "the event")
        assert events[0].kind == "changed" and events[0].keys is None
        assert events[0].revision == flags.refresh() == flags.revision
        for call in (lambda: flags.evaluate_many("chat", ["t"]), flags.current, lambda: flags.explain("chat", tenant_id="t")):
            with pytest.raises(ValueError, match="needs the flags' definitions"):
                call()
        assert repr(flags) == f"LiveFlags('{running.url}')" and TOKEN not in repr(flags)


async def test_the_async_twin_follows_a_server_too(running: Server) -> None:
    async with await AsyncLiveFlags.open(running.url, token=TOKEN, poll_interval=0.1) as flags:
        assert (await flags.evaluate("chat", tenant_id="t-1")).reason == "off"
        await asyncio.to_thread(patch, running, "chat", {"state": "on"})
        deadline = time.monotonic() + 60
        while not (await flags.evaluate_all(tenant_id="t-1"))["chat"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert (await flags.evaluate("chat", tenant_id="t-1")).reason == "on"
        assert await flags.refresh() == flags.revision


def patch(running: Server, key: str, change: dict[str, object]) -> None:
    request = urllib.request.Request(
        f"{running.url}/flags/{key}",
        data=json.dumps(change).encode(),
        method="PATCH",
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        assert response.status == 200


def test_the_last_answers_stay_in_use_while_the_server_is_away(sqlite: str, tmp_path: Path) -> None:
    first = Server(tmp_path, sqlite)
    events: list[str] = []
    with LiveFlags.open(first.url, token=TOKEN, poll_interval=0.1) as flags:
        flags.subscribe(lambda event: events.append(event.kind))
        assert not is_on(flags)
        first.stop()
        until(lambda: "stale" in events, "the event")
        assert flags.evaluate("chat", tenant_id="t-1").reason == "off"
        assert flags.status().stale and isinstance(flags.status().error, dezky.errors.StoreUnavailableError)
        with pytest.raises(dezky.errors.StoreUnavailableError):
            flags.evaluate("chat", tenant_id="another")
        with pytest.raises(ConnectionError):
            flags.refresh()
        set_flag(tmp_path, sqlite, "chat", "--state", "on")
        again = Server(tmp_path, sqlite, listen=first.address)
        try:
            until(lambda: is_on(flags), "the change")
            until(lambda: "ready" in events, "the event")
            assert not flags.status().stale and flags.status().error is None
        finally:
            again.stop()


def test_a_rejected_token_is_an_error_of_its_own(running: Server) -> None:
    with pytest.raises(dezky.errors.AuthFailedError, match="token"):
        LiveFlags.open(running.url, token="wrong-token-0123456789")
    with pytest.raises(PermissionError):
        LiveFlags.open(running.url)


def test_the_last_flags_stay_in_use_while_the_store_is_away(new_url: Callable[[str], str], tmp_path: Path) -> None:
    url = filled(new_url("postgres"), tmp_path)
    set_flag(tmp_path, url, "chat", "--state", "on")
    database = url.rsplit("/", 1)[1]
    admin = server("DEZKY_TEST_POSTGRES")
    file = tmp_path / "kept.json"
    events: list[FlagEvent] = []
    with LiveFlags.open(url, poll_interval=0.1, file=file) as flags, flags.subscribe(events.append):
        until(file.exists, "the file")
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false'.encode())
            kick = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            connection.execute(kick, (database,))
            until(lambda: any(event.kind in ("stale", "error") for event in events), "the event")
            assert is_on(flags) and flags.status().stale
            # A start from the file. Each process has its own.
            with LiveFlags.open(url, poll_interval=0.1, file=copied(file)) as late:
                assert late.status().from_file and is_on(late)
                connection.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true'.encode())
                until(lambda: not late.status().from_file, "the store", 30)
            until(lambda: any(event.kind == "ready" for event in events), "the event", 30)
            assert not flags.status().stale


def copied(file: Path) -> Path:
    copy = file.with_name("copy.json")
    copy.write_bytes(file.read_bytes())
    return copy


def test_two_threads_decide_while_flags_change(sqlite: str, tmp_path: Path) -> None:
    stop = threading.Event()
    failures: list[object] = []
    seen: set[bool] = set()

    def work() -> None:
        try:
            while not stop.is_set():
                value = is_on(flags)
                seen.add(value)
                if flags.evaluate_all(tenant_id="t-1").keys() < {"chat"}:
                    failures.append("a flag is missing")
                flags.evaluate_many("chat", ["t-1"] * 100)
        except Exception as error:
            failures.append(error)

    with LiveFlags.open(sqlite, poll_interval=0.05) as flags:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for state in ("on", "off", "on"):
                set_flag(tmp_path, sqlite, "chat", "--state", state)
                until(lambda state=state: is_on(flags) is (state == "on"), f"the change to {state}")  # type: ignore[misc]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert not failures and seen == {True, False}


def test_a_handler_that_fails_does_not_end_the_subscription(
    sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda given: unraisable.append(given.exc_value))
    calls: list[FlagEvent] = []

    def handler(event: FlagEvent) -> None:
        calls.append(event)
        # It may use the flags itself.
        flags.refresh()
        raise RuntimeError("broken")

    with LiveFlags.open(sqlite, poll_interval=0.05) as flags:
        subscription = flags.subscribe(handler)
        for count, state in enumerate(("on", "off"), 1):
            set_flag(tmp_path, sqlite, "chat", "--state", state)
            until(lambda count=count: len(unraisable) >= count, "the call")  # type: ignore[misc]
        subscription.cancel()
        subscription.cancel()
        set_flag(tmp_path, sqlite, "chat", "--state", "on")
        until(lambda: is_on(flags), "the change")
        time.sleep(0.3)
        assert len(calls) == 2
        with pytest.raises(TypeError, match="handler must be callable, not int"):
            flags.subscribe(7)  # type: ignore[arg-type]


def test_a_subscriber_that_is_too_slow_is_told_the_current_state(sqlite: str, tmp_path: Path) -> None:
    seen: list[FlagEvent] = []
    slow: list[FlagEvent] = []
    entered, go = threading.Event(), threading.Event()

    def wait(event: FlagEvent) -> None:
        slow.append(event)
        entered.set()
        assert go.wait(240)

    with serving(tmp_path, sqlite) as running, LiveFlags.open(sqlite, poll_interval=0.01) as flags:
        flags.subscribe(seen.append)
        flags.subscribe(wait)
        # More than the 256 that wait for a subscriber.
        for n in range(270):
            count = len(seen)
            patch(running, "chat", {"state": "on" if n % 2 == 0 else "off"})
            until(lambda count=count: len(seen) > count, "the change")  # type: ignore[misc]
        assert entered.wait(60)
        # Changes may come together, and the store may be away for a moment.
        until(lambda: flags.refresh() == flags.revision, "the last change")
        go.set()
        until(lambda: len(slow) >= 3, "the state")
        state, health = slow[1:3]
        assert (state.kind, state.keys, state.revision) == ("changed", None, flags.revision)
        assert health.kind == "ready"


def test_closed_flags_say_so() -> None:
    flags = LiveFlags.open("memory:")
    flags.close()
    flags.close()
    assert repr(flags) == "LiveFlags('memory://', closed)"
    for call in (
        lambda: flags.evaluate("chat", tenant_id="t"),
        lambda: flags.evaluate_all(tenant_id="t"),
        lambda: flags.evaluate_many("chat", []),
        lambda: flags.revision,
        flags.current,
        flags.refresh,
        flags.status,
        lambda: flags.subscribe(print),
        lambda: flags.explain("chat", tenant_id="t"),
    ):
        with pytest.raises(ValueError, match="the flags are closed"):
            call()


@pytest.mark.parametrize(
    ("url", "options", "error", "message"),
    [
        ("sqlite:///no/such/folder/x.db", {}, dezky.errors.Error, "no/such/folder"),
        ("mysql://x", {}, dezky.errors.ConfigInvalidError, "^url has an unknown scheme"),
        ("postgres://u:s3cret@127.0.0.1:1/x", {"timeout": 0.5}, dezky.errors.StoreUnavailableError, "the flag store"),
        ("http://127.0.0.1:1", {}, dezky.errors.StoreUnavailableError, "the flag server http://127.0.0.1:1: "),
        ("http://u:s3cret@127.0.0.1:1", {}, dezky.errors.ConfigInvalidError, "^url must be"),
        ("http://127.0.0.1:1", {"file": "x"}, ValueError, "^file has no effect"),
        ("http://127.0.0.1:1", {"token": "a b"}, dezky.errors.ConfigInvalidError, "^token must be"),
        ("http://127.0.0.1:1", {"poll_interval": 0.01}, ValueError, "^poll_interval must be 0.1 to 3600 seconds"),
        ("memory:", {"token": "x"}, ValueError, "^token has no effect"),
        ("memory:", {"poll_interval": -1}, ValueError, "^poll_interval must be 0.01 to 3600 seconds"),
        ("memory:", {"poll_interval": float("nan")}, ValueError, "^poll_interval must be 0.01 to 3600 seconds"),
        ("memory:", {"timeout": 7200}, ValueError, "^timeout must be 0.01 to 600 seconds"),
        ("memory:", {"timeout": datetime.timedelta(hours=2)}, ValueError, "^timeout must be 0.01 to 600 seconds"),
        ("memory:", {"timeout": "2"}, TypeError, "^timeout must be a number of seconds or a timedelta, not str"),
        ("memory:", {"timeout": True}, TypeError, "^timeout must be a number of seconds or a timedelta, not bool"),
        (7, {}, TypeError, "^url must be a str such as .*, not int"),
        ("memory:", {"file": 7}, TypeError, "^file must be"),
    ],
)
def test_what_cant_be_opened_is_named(url: str, options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        LiveFlags.open(url, **options)  # type: ignore[arg-type]
    assert "s3cret" not in str(raised.value)


def test_a_store_without_a_schema_is_not_touched(new_url: Callable[[str], str]) -> None:
    url = new_url("sqlite")
    with pytest.raises(dezky.errors.Error):
        LiveFlags.open(url)
    assert not Path(url.removeprefix("sqlite://")).exists()


def test_a_forked_process_is_told(sqlite: str) -> None:
    with LiveFlags.open(sqlite) as flags:
        in_use = flags.current()
        results: multiprocessing.Queue[str] = multiprocessing.get_context("fork").Queue()

        def child() -> None:
            try:
                flags.evaluate("chat", tenant_id="t-1")
                results.put("no error")
            except dezky.errors.ForkedError:
                # A set in hand needs no threads.
                results.put(in_use.evaluate("chat", tenant_id="t-1").reason)

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        assert results.get(timeout=30) == "off"
        process.join(30)
        assert process.exitcode == 0


def test_what_is_dropped_in_a_forked_process_does_no_harm(sqlite: str, tmp_path: Path) -> None:
    flags = [LiveFlags.open(sqlite, poll_interval=0.05)]
    held = flags[0]
    events: list[FlagEvent] = []
    subscriptions = [flags[0].subscribe(events.append)]
    kept = subscriptions[0]
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        # Nothing but the exit code may leave here.
        outcome = b"failed"
        try:
            del held
            try:
                kept.cancel()
            except dezky.errors.ForkedError:
                outcome = b"told"
            del kept
            subscriptions.clear()
            flags.clear()
            gc.collect()
            os.write(tell, outcome)
        finally:
            os._exit(0)
    os.close(tell)
    assert select.select([told], [], [], 60)[0], "the child hangs"
    assert os.read(told, 100) == b"told"
    os.close(told)
    assert os.waitpid(child, 0)[1] == 0
    # The parent's work goes on.
    set_flag(tmp_path, sqlite, "chat", "--state", "on")
    until(lambda: events, "the event")
    kept.cancel()
    held.close()


async def test_a_close_that_is_cancelled_goes_on(sqlite: str) -> None:
    before = descriptors()
    flags = [await AsyncLiveFlags.open(sqlite) for _ in range(10)]
    assert descriptors() > before + 5
    for one in flags:
        closing = asyncio.ensure_future(one.close())
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
    until(lambda: descriptors() <= before + 5, "the end of the connections")
    assert all("closed" in repr(one) for one in flags)


@pytest.mark.parametrize("ending", ["flags.close()", "del flags", "pass", "flags.subscribe(print)", "sys.exit(0)"])
def test_nothing_is_printed_at_exit(ending: str, sqlite: str) -> None:
    assert run(f"flags = dezky.LiveFlags.open(url)\nflags.evaluate('chat', tenant_id='t')\n{ending}\n", sqlite) == ""


def test_the_interpreter_waits_at_its_end_for_a_handler(sqlite: str, tmp_path: Path) -> None:
    program = """
    entered = threading.Event()
    def handler(event):
        entered.set()
        # Python's code, during which the interpreter would end.
        until = time.monotonic() + 0.7
        while time.monotonic() < until: sum(range(100))
        os.write(1, b"handled")
    flags = dezky.LiveFlags.open(url, poll_interval=0.01)
    flags.subscribe(handler)
    print("ready", flush=True)
    assert entered.wait(60)
    """
    process = child(program, sqlite)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    set_flag(tmp_path, sqlite, "chat", "--state", "on")
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (0, "handled", "")


async def test_a_second_close_waits_for_a_cancelled_one(sqlite: str) -> None:
    before = descriptors()
    for _ in range(10):
        flags = await AsyncLiveFlags.open(sqlite)
        closing = asyncio.ensure_future(flags.close())
        closing.cancel()
        await flags.close()
        assert descriptors() <= before


def test_flags_that_are_dropped_end_their_work(sqlite: str) -> None:
    called: list[FlagEvent] = []
    before = descriptors()
    for _ in range(20):
        LiveFlags.open(sqlite).subscribe(called.append)
    gc.collect()
    until(lambda: descriptors() <= before + 5, "the end of the connections")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))

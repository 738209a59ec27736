"""Flags that follow stores and servers, changed by the program `dezky-server`."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from conftest import server
from flag_server import TOKEN, Server, cli, serving, set_flag

import dezky
from dezky import AsyncLiveFlags, FlagEvent, LiveFlags

STORES = ("sqlite", "postgres", "mongodb")


def until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


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
        until(lambda: len(events) >= 2, "both events")
        assert [event.kind for event in events] == ["changed", "changed"]
        assert [event.keys for event in events] == [["chat"], ["more"]]
        assert first is not None and events[0].revision == first + 1
        status = flags.status()
        assert (status.revision, status.stale, status.error, status.from_file) == (flags.revision, False, None, False)
        assert status.age is not None and status.age.total_seconds() < 5
        decision = flags.evaluate("more", tenant_id="t-1")
        assert (decision.bucket, decision.threshold) == (dezky.bucket("t-1", "more"), 100)


def test_an_edit_is_read_at_once_on_request(sqlite: str, tmp_path: Path) -> None:
    with LiveFlags.open(sqlite, poll_interval=3600) as flags:
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
        await asyncio.wait_for(changed.wait(), 20)
        subscription.cancel()
        assert (await flags.evaluate("chat", {"tenant_id": "t-1"})).value
        assert await flags.evaluate_all(tenant_id="t-1") == {"chat": True}
        assert flags.current().evaluate_many("chat", ["t"]).to_list() == [True]
        assert await flags.refresh() == flags.revision == flags.status().revision
        assert repr(flags).startswith("AsyncLiveFlags('") and "closed" not in repr(flags)
    await flags.close()
    with pytest.raises(ValueError, match="the flags are closed"):
        await flags.evaluate("chat", tenant_id="t-1")


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
        for _ in range(200):
            if (await flags.evaluate_all(tenant_id="t-1"))["chat"]:
                break
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
            until(lambda count=count: len(unraisable) == count, "the call")  # type: ignore[misc]
        subscription.cancel()
        subscription.cancel()
        set_flag(tmp_path, sqlite, "chat", "--state", "on")
        until(lambda: is_on(flags), "the change")
        time.sleep(0.3)
        assert len(calls) == 2
        with pytest.raises(TypeError, match="handler must be callable, not int"):
            flags.subscribe(7)  # type: ignore[arg-type]


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
        ("postgres://u:s3cret@127.0.0.1:1/x", {"timeout": 0.5}, dezky.errors.StoreUnavailableError, ""),
        ("http://127.0.0.1:1", {}, dezky.errors.StoreUnavailableError, "the flag server"),
        ("http://u:s3cret@127.0.0.1:1", {}, dezky.errors.ConfigInvalidError, "^url must be"),
        ("http://127.0.0.1:1", {"file": "x"}, ValueError, "^file has no effect"),
        ("http://127.0.0.1:1", {"token": "a b"}, dezky.errors.ConfigInvalidError, "^token must be"),
        ("http://127.0.0.1:1", {"poll_interval": 0.01}, dezky.errors.ConfigInvalidError, "^poll_interval must be"),
        ("memory:", {"token": "x"}, ValueError, "^token has no effect"),
        ("memory:", {"poll_interval": -1}, ValueError, "^poll_interval must be a number of seconds"),
        ("memory:", {"poll_interval": float("nan")}, ValueError, "^poll_interval must be a number of seconds"),
        ("memory:", {"timeout": 7200}, dezky.errors.ConfigInvalidError, "^store_timeout|^timeout"),
        (7, {}, TypeError, "^url must be a str, not int"),
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


@pytest.mark.parametrize("ending", ["flags.close()", "del flags", "pass", "flags.subscribe(print)", "sys.exit(0)"])
def test_nothing_is_printed_at_exit(ending: str, sqlite: str) -> None:
    program = f"import sys, dezky\nflags = dezky.LiveFlags.open({sqlite!r})\nflags.evaluate('chat', tenant_id='t')\n{ending}\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_flags_that_are_dropped_end_their_work(sqlite: str) -> None:
    called: list[FlagEvent] = []
    before = descriptors()
    for _ in range(20):
        LiveFlags.open(sqlite).subscribe(called.append)
    gc.collect()
    until(lambda: descriptors() <= before + 5, "the end of the connections")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))

"""The audit log for asyncio, on every engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

import dezky
from dezky import Actor, AsyncAuditLog, NewEvent

SYSTEM = Actor.system()


def events(count: int, prefix: str = "e") -> list[NewEvent]:
    return [NewEvent("a.b", actor=SYSTEM, external_id=f"{prefix}-{n}") for n in range(count)]


@pytest.fixture
async def log(log_url: str) -> AsyncIterator[AsyncAuditLog]:
    async with await AsyncAuditLog.open(log_url) as opened:
        yield opened


async def test_every_method_has_an_async_form(log: AsyncAuditLog) -> None:
    recorded = await log.record("tenant.created", actor=Actor.user("u-7"), tenant_slug="acme", metadata={"a": 1})
    assert (recorded.status, recorded.seq) == ("appended", 0)
    receipts = await log.append(events(600))
    assert [receipt.seq for receipt in receipts] == list(range(1, 601))
    assert [event.seq async for event in log.list(limit=2)] == [600, 599]
    assert [event.metadata async for event in log.list(tenant_slug="acme")] == [{"a": 1}]
    assert [event.seq async for event in log.tail(follow=False)] == list(range(601))
    head = await log.head()
    counts: list[int] = []
    threads: set[str] = set()

    def progress(verified: int) -> None:
        counts.append(verified)
        threads.add(threading.current_thread().name)

    result = await log.verify(progress=progress, head=head)
    assert result.ok and result.verified == 601 and counts[-1] == 601
    assert threads == {threading.current_thread().name}
    assert (await log.verify()).ok
    with pytest.raises(LookupError):
        await log.verify(progress=lambda _: (_ for _ in ()).throw(LookupError("enough")))


async def test_errors_are_those_of_the_sync_form(log: AsyncAuditLog) -> None:
    with pytest.raises(dezky.errors.EventInvalidError, match=r"^events\[0\]\.action must be"):
        await log.append([NewEvent("Bad", actor=SYSTEM)])
    with pytest.raises(TypeError, match="^action must be a str"):
        await log.record(7, actor=SYSTEM)  # type: ignore[arg-type]
    await log.close()
    await log.close()
    assert log.closed
    with pytest.raises(ValueError, match="^the log is closed$"):
        await log.head()


async def test_the_loop_runs_while_a_tail_waits(log: AsyncAuditLog) -> None:
    seen: list[int] = []

    async def follow() -> None:
        async for event in log.tail():
            seen.append(event.seq)

    task = asyncio.create_task(follow())
    for number in range(3):
        await log.append(events(1, f"p{number}"))
    for _ in range(2000):
        if len(seen) == 3:
            break
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [0, 1, 2]


async def test_a_cancelled_wait_for_the_next_event_loses_none(log: AsyncAuditLog) -> None:
    tail = log.tail()
    seen: list[int] = []

    async def write() -> None:
        for number in range(40):
            await log.append(events(1, f"p{number}"))
            await asyncio.sleep(0.002 * (number % 4))

    writer = asyncio.create_task(write())
    while len(seen) < 40:
        try:
            event = await asyncio.wait_for(anext(tail), 0.003)
            seen.append(event.seq)
        except (TimeoutError, asyncio.TimeoutError):
            assert not writer.done() or len(seen) < (await log.head()).next_seq
    await writer
    assert seen == list(range(40))


async def test_cancelled_appends_store_everything_or_nothing(log: AsyncAuditLog) -> None:
    cancelled = 0
    for number in range(30):
        task = asyncio.create_task(_append(log, events(50, f"p{number}")))
        await asyncio.sleep(0.0007 * (number % 10))
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            cancelled += 1
    assert cancelled > 0
    result = await log.verify()
    assert result.ok and result.verified % 50 == 0
    batches: dict[str, int] = {}
    async for event in log.list():
        assert event.external_id is not None
        name = event.external_id.partition("-")[0]
        batches[name] = batches.get(name, 0) + 1
    assert set(batches.values()) <= {50}
    # The log works on, and repeating the batches completes it.
    for number in range(30):
        await log.append(events(50, f"p{number}"))
    assert (await log.verify()).verified == 1500


async def _append(log: AsyncAuditLog, batch: list[NewEvent]) -> None:
    await log.append(batch)


async def test_many_tasks_share_a_log(log: AsyncAuditLog) -> None:
    await asyncio.gather(*(log.record("a.b", actor=Actor.user(f"u-{n}")) for n in range(200)))
    assert (await log.head()).next_seq == 200


async def test_closing_ends_a_waiting_tail(log: AsyncAuditLog) -> None:
    waiting = asyncio.ensure_future(anext(log.tail()))
    await asyncio.sleep(0.05)
    await log.close()
    with pytest.raises(ValueError, match="^the log is closed$"):
        await asyncio.wait_for(waiting, 10)


async def test_a_cancelled_open_leaves_nothing_behind(new_url: Callable[[str], str]) -> None:
    url = new_url("postgres")
    for number in range(10):
        task = asyncio.ensure_future(AsyncAuditLog.open(url))
        await asyncio.sleep(0.003 * number)
        task.cancel()
        try:
            await (await task).close()
        except asyncio.CancelledError:
            pass
    async with await AsyncAuditLog.open(url) as log:
        assert (await log.verify()).ok


def test_without_a_running_loop_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncAuditLog.open("memory:")

"""Arguments that no event can have give the documented exceptions, and never end the process."""

from __future__ import annotations

import datetime
import gc
import ipaddress
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

import dezky
from dezky import Actor, AsyncAuditLog, AuditLog, NewEvent

UTC = datetime.timezone.utc
SYSTEM = Actor.system()


class Hostile:
    """An object that raises whatever one asks it."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = None  # type: ignore[assignment]


class HostileAddress(ipaddress.IPv4Address):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class HostileZone(datetime.tzinfo):
    def utcoffset(self, _: datetime.datetime | None) -> datetime.timedelta:
        raise RuntimeError("no offset")

    def dst(self, _: datetime.datetime | None) -> None:
        return None

    def tzname(self, _: datetime.datetime | None) -> None:
        return None


class GreedyList(list[Any]):
    """A list that changes a dictionary while the dictionary is read."""

    def __init__(self, victim: dict[str, Any]) -> None:
        super().__init__([1, 2])
        self.victim = victim

    def __iter__(self) -> Iterator[Any]:
        self.victim.clear()
        return super().__iter__()


def recursive() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value


def greedy() -> dict[str, Any]:
    value: dict[str, Any] = {"a": 0, "z": 1}
    value["b"] = GreedyList(value)
    return value


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"action": 7}, TypeError, "action must be a str, not int"),
    ({"action": None}, TypeError, "the event has no action"),
    ({"action": Hostile()}, TypeError, "action must be a str, not Hostile"),
    ({"action": "a\ud800"}, ValueError, "action contains a lone surrogate"),
    ({"actor": "u-7"}, TypeError, "actor must be an Actor"),
    ({"actor": Hostile()}, TypeError, "actor must be an Actor"),
    ({"at": datetime.datetime(2026, 1, 1)}, ValueError, "at has no time zone"),
    ({"at": "2026-01-01T00:00:00Z"}, TypeError, "at must be a datetime"),
    ({"at": datetime.date(2026, 1, 1)}, TypeError, "at must be a datetime"),
    ({"at": datetime.datetime(2026, 1, 1, tzinfo=HostileZone())}, RuntimeError, "no offset"),
    (
        {"at": datetime.datetime(1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=14)))},
        ValueError,
        "at must be a time of the years 1 to 9999",
    ),
    ({"outcome": "great"}, ValueError, 'outcome must be "success" or "failure" or "denied"'),
    ({"outcome": True}, TypeError, "outcome must be a str"),
    ({"tenant_slug": b"acme"}, TypeError, "tenant_slug must be a str, not bytes"),
    ({"resource_name": "\udfff"}, ValueError, "resource_name contains a lone surrogate"),
    ({"metadata": [1]}, TypeError, "metadata must be a dict"),
    ({"metadata": {"a": float("nan")}}, ValueError, "metadata contains NaN"),
    ({"metadata": {"a": float("-inf")}}, ValueError, "metadata contains -inf"),
    ({"metadata": {"a": 2**64}}, ValueError, "metadata contains an integer of more than 64 bits"),
    ({"metadata": {"a": -(2**70)}}, ValueError, "metadata contains an integer of more than 64 bits"),
    ({"metadata": {1: 2}}, TypeError, "each key in metadata must be a str"),
    ({"metadata": {"\ud800": 2}}, ValueError, "metadata contains a lone surrogate"),
    ({"metadata": {"a": {"b": "\ud800"}}}, ValueError, "metadata contains a lone surrogate"),
    ({"metadata": {"a": Hostile()}}, TypeError, "each value in metadata must be None, bool"),
    ({"metadata": {"a": datetime.datetime.now(UTC)}}, TypeError, "each value in metadata must be"),
    ({"metadata": {"a": {1, 2}}}, TypeError, "each value in metadata must be"),
    ({"metadata": recursive()}, ValueError, "metadata is nested more than 64 deep"),
    ({"actr": SYSTEM}, TypeError, "has no field 'actr': the fields are action, actor"),
]


@pytest.fixture
def log() -> Iterator[AuditLog]:
    with AuditLog.open("memory:") as opened:
        yield opened


@pytest.mark.parametrize(("change", "kind", "message"), WRONG, ids=lambda value: str(value)[:40] if isinstance(value, str) else "")
def test_a_wrong_field_is_refused_by_name(
    log: AuditLog, change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    fields: dict[str, Any] = {"action": "a.b", "actor": SYSTEM, **change}
    makers: list[Callable[..., object]] = [NewEvent, log.record]
    for make in makers:
        with pytest.raises(kind) as caught:
            make(fields["action"], **{name: value for name, value in fields.items() if name != "action"})
        assert message in str(caught.value)
    with pytest.raises(kind) as caught:
        log.append([{"action": "a.b", "actor": SYSTEM}, fields])
    said = str(caught.value)
    assert message.removeprefix("the event ") in said.replace("events[1].", "")
    if kind is not RuntimeError:
        assert "events[1]" in said
    assert log.head().next_seq == 0


def test_a_dictionary_is_read_without_running_code_in_it(log: AuditLog) -> None:
    log.record("a.b", actor=SYSTEM, metadata=greedy())
    (event,) = log.list()
    assert event.metadata == {"a": 0, "z": 1, "b": [1, 2]}


def test_wrong_actors_are_refused() -> None:
    with pytest.raises(ValueError, match='^type must be "user" or "operator"'):
        Actor("admin")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^ip must be a str or an address of the module ipaddress, not int"):
        Actor.user("u", ip=7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^ip must be"):
        Actor.user("u", ip=Hostile())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no text"):
        Actor.user("u", ip=HostileAddress("203.0.113.7"))
    with pytest.raises(TypeError, match="^id must be a str, not int"):
        Actor.user(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Actor.user()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Actor.user("u", "e")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "events",
    [7, None, Hostile(), "text", {"action": "a.b"}, NewEvent("a.b", actor=SYSTEM), [7], [Hostile()], [None]],
    ids=lambda value: type(value).__name__,
)
def test_append_refuses_what_are_no_events(log: AuditLog, events: Any) -> None:
    with pytest.raises(TypeError, match=r"^events(\[0\])? must be"):
        log.append(events)


def test_append_passes_on_what_an_iterable_raises(log: AuditLog) -> None:
    def broken() -> Iterator[NewEvent]:
        yield NewEvent("a.b", actor=SYSTEM)
        raise LookupError("the source is gone")

    with pytest.raises(LookupError, match="the source is gone"):
        log.append(broken())
    assert log.head().next_seq == 0


def test_append_takes_any_mapping(log: AuditLog) -> None:
    fields = {"action": "a.b", "actor": SYSTEM, "tenant_slug": None, "outcome": "denied"}
    batch: list[Mapping[str, object]] = [OrderedDict(fields), UserDict(fields)]
    log.append(batch)
    assert [event.outcome for event in log.list()] == ["denied", "denied"]
    with pytest.raises(TypeError, match=r"^events\[0\] has no field 7: "):
        log.append([{7: 8}])  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"^events\[0\] has no field \?: "):
        log.append([{**fields, HashableHostile(): 2}])  # type: ignore[dict-item]


class HashableHostile:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


FILTERS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"since": datetime.datetime(2026, 1, 1)}, ValueError, "since has no time zone"),
    ({"until": 7}, TypeError, "until must be a datetime"),
    ({"limit": 0}, ValueError, "limit must be 1 or more"),
    ({"limit": -1}, ValueError, "limit must be 1 or more"),
    ({"limit": 2**70}, ValueError, "limit must be 1 or more"),
    ({"limit": "1"}, TypeError, "limit must be an int"),
    ({"q": "x" * 1025}, dezky.errors.QueryInvalidError, "q has 1025 bytes: it must have at most 1024"),
    ({"tenant_slug": 7}, TypeError, "tenant_slug must be a str"),
    ({"outcome": "x"}, ValueError, "outcome must be"),
    ({"actor_id": "\ud800"}, ValueError, "actor_id contains a lone surrogate"),
    ({"tenant": "x"}, TypeError, "tenant is not a filter"),
]


@pytest.mark.parametrize(("filters", "kind", "message"), FILTERS, ids=lambda value: str(value)[:30] if isinstance(value, str) else "")
async def test_a_wrong_filter_is_refused_at_once(
    log: AuditLog, filters: dict[str, Any], kind: type[Exception], message: str
) -> None:
    async with await AsyncAuditLog.open("memory:") as twin:
        calls: list[Callable[..., object]] = [log.list, log.to_arrow, twin.list, twin.to_arrow]
        for call in calls:
            with pytest.raises(kind) as caught:
                call(**filters)
            assert message in str(caught.value)


def test_other_wrong_arguments_are_refused(log: AuditLog) -> None:
    calls: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: log.tail(-1), ValueError, "from_seq must be 0 to"),
        (lambda: log.tail(2**63), ValueError, "from_seq must be 0 to"),
        (lambda: log.tail("0"), TypeError, "from_seq must be an int"),  # type: ignore[arg-type]
        (lambda: log.verify(progress=7), TypeError, "progress must be a function"),  # type: ignore[arg-type]
        (lambda: log.verify(head=7), TypeError, "head must be a Head or a str"),  # type: ignore[arg-type]
        (lambda: log.verify(head="7"), ValueError, "head must be SEQ:HASH"),
        (lambda: log.verify(head="\ud800"), ValueError, "head contains a lone surrogate"),
        (lambda: AuditLog("memory:"), TypeError, r"use AuditLog.open\(url\)"),  # type: ignore[call-arg]
        (lambda: AuditLog.open(7), TypeError, "url must be a str"),  # type: ignore[arg-type]
        (lambda: AuditLog.open("audit.db"), dezky.errors.ConfigInvalidError, "url must be a URL: sqlite://"),
        (lambda: AuditLog.open("mysql://x"), dezky.errors.ConfigInvalidError, "unknown scheme"),
        (lambda: AuditLog.open("memory:", spool=7), TypeError, "spool must be a str or a path"),  # type: ignore[arg-type]
        (lambda: AuditLog.open("sqlite:///no/such/folder/x.db"), ValueError, "folder"),
    ]
    for call, kind, message in calls:
        with pytest.raises(kind, match=message):
            call()
    assert list(log.tail(2**63 - 1, follow=False)) == []


def test_objects_of_the_log_are_collected() -> None:
    log = AuditLog.open("memory:")
    log.record("a.b", actor=SYSTEM)
    iterator = log.tail()
    next(iterator)
    del log
    gc.collect()
    # The iterator still has the log.
    assert iterator is iter(iterator)

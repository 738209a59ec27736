"""Arbitrary objects as arguments of everything that is public.

Everything is found by introspection: a new class without a recipe for an instance fails the test.
"""

from __future__ import annotations

import asyncio
import datetime
import decimal
import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openfeature.exception import OpenFeatureError

import dezky
import dezky.errors
import dezky.ingest
import dezky.integrity
from dezky import Actor, AsyncAuditLog, AuditLog, NewEvent
from dezky.ingest import AsyncPump, Batch, Pump, Quarantined, Source

UTC = datetime.timezone.utc


class Hostile(Exception):
    """Raised by the objects themselves."""


def _raise(*_: Any, **__: Any) -> Any:
    raise Hostile("S3S3S3")


class Raising:
    """An object of which every protocol fails."""

    __str__ = __repr__ = __iter__ = __index__ = __int__ = __float__ = __bool__ = __len__ = _raise
    __fspath__ = __getitem__ = __hash__ = __eq__ = __call__ = __enter__ = __await__ = keys = items = _raise
    __arrow_c_stream__ = __arrow_c_array__ = __array__ = __buffer__ = _raise


class RaisingAttributes:
    def __getattribute__(self, name: str) -> Any:
        raise Hostile(name)


class Text(str):
    """A `str` whose methods lie."""

    __str__ = __eq__ = __len__ = encode = _raise
    __hash__ = str.__hash__


class Number(int):
    __index__ = __int__ = __add__ = _raise


class Mapping(dict):  # type: ignore[type-arg]
    items = keys = __iter__ = __getitem__ = _raise


class Zone(datetime.tzinfo):
    utcoffset = dst = tzname = _raise


class Path_(os.PathLike):  # type: ignore[type-arg]
    def __fspath__(self) -> Any:
        return 7


def recursive() -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["self"] = made
    return made


def deep() -> list[Any]:
    made: list[Any] = []
    for _ in range(5_000):
        made = [made]
    return made


def endless() -> Iterator[int]:
    while True:
        yield 7


MAKERS: list[Callable[[], Any]] = [
    lambda: None,
    lambda: True,
    lambda: False,
    lambda: 0,
    lambda: -1,
    lambda: 2**63,
    lambda: 10**400,
    lambda: -(10**400),
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: -0.0,
    lambda: 1e308,
    lambda: 1j,
    lambda: decimal.Decimal("NaN"),
    lambda: "",
    lambda: "\0",
    lambda: "\ud800",
    lambda: "\U0010ffff" * 3,
    lambda: "x" * 100_000,
    lambda: "memory:",
    lambda: "memory://",
    lambda: "success",
    lambda: "tenant.created",
    lambda: "0:" + "0" * 64,
    lambda: b"",
    lambda: b"\xff" * 1000,
    lambda: b"[" * 100_000,
    lambda: bytearray(b"{}"),
    lambda: memoryview(b"[]"),
    lambda: [],
    lambda: [[]],
    lambda: (),
    lambda: {},
    lambda: {"a": 1},
    lambda: {1: 2},
    lambda: {"metadata": recursive()},
    lambda: set(),
    lambda: object(),
    lambda: object,
    lambda: type,
    lambda: _raise,
    lambda: len,
    recursive,
    deep,
    endless,
    Raising,
    RaisingAttributes,
    lambda: Text("text"),
    lambda: Number(7),
    lambda: Mapping(a=1),
    lambda: Path_(),
    lambda: Path("\ud800"),
    lambda: Path("/nowhere/at/all"),
    lambda: datetime.datetime(2026, 1, 1),
    lambda: datetime.datetime(2026, 1, 1, tzinfo=UTC),
    lambda: datetime.datetime(2026, 1, 1, tzinfo=Zone()),
    lambda: datetime.datetime.min.replace(tzinfo=UTC),
    lambda: datetime.datetime.max.replace(tzinfo=datetime.timezone(-datetime.timedelta(hours=23))),
    lambda: datetime.timedelta.max,
    lambda: datetime.date(2026, 1, 1),
    lambda: Actor.system(),
    lambda: NewEvent("a.b", actor=Actor.system()),
    lambda: AuditLog.open("memory:"),
    lambda: Quarantined("x"),
    lambda: Batch([], "1"),
]

# OpenFeature's providers answer with its own exceptions.
ALLOWED = (dezky.Error, TypeError, ValueError, OverflowError, Hostile, OpenFeatureError)


class Nothing(Source):
    name = "nothing"

    def pull(self, cursor: str | None) -> Batch:
        return Batch([], cursor)


def log() -> AuditLog:
    made = AuditLog.open("memory:")
    made.record("tenant.created", actor=Actor.user("u-7"))
    return made


def flags() -> dezky.FlagSet:
    return dezky.FlagSet.from_json([{"key": "a", "state": "rollout", "pct": 50}])


def first(made: AuditLog) -> Any:
    return next(iter(made.list()))


INSTANCES: dict[str, Callable[[], Any]] = {
    "Actor": lambda: Actor.user("u-7", ip="203.0.113.7"),
    "ArrowEvents": lambda: log().to_arrow(),
    "AuditLog": log,
    "Batch": lambda: Batch([], "1"),
    "Decoded": lambda: dezky.ingest.decode_stalwart(b'[{"type": "x"}, 7]'),
    "Error": lambda: dezky.Error("x"),
    "Event": lambda: first(log()),
    "BooleanColumn": lambda: flags().evaluate_many("a", ["t-1", None]),
    "Context": lambda: dezky.Context(tenant_id="t-1"),
    "Decision": lambda: flags().evaluate("a", tenant_id="t-1"),
    "DezkyProvider": lambda: importlib.import_module("dezky.openfeature").DezkyProvider(flags()),
    "Explanation": lambda: flags().explain("a", tenant_id="t-1"),
    "FlagSet": lambda: flags(),
    "LiveFlags": lambda: dezky.LiveFlags.open("memory:"),
    "LiveStatus": lambda: dezky.LiveFlags.open("memory:").status(),
    "Preview": lambda: dezky.preview(None, {"key": "a", "state": "on"}, ["t-1"]),
    "Subscription": lambda: dezky.LiveFlags.open("memory:").subscribe(print),
    "Head": lambda: log().head(),
    "NewEvent": lambda: NewEvent("a.b", actor=Actor.system()),
    "Pump": lambda: Pump(log(), Nothing(), interval=0),
    "PumpStatus": lambda: Pump(log(), Nothing()).status(),
    "Quarantined": lambda: Quarantined("x", raw=b"y"),
    "Receipt": lambda: log().append([NewEvent("a.b", actor=Actor.system())])[0],
    "Recorded": lambda: log().record("a.b", actor=Actor.system()),
    "Source": Nothing,
    "Summary": lambda: dezky.ingest.append(log(), dezky.ingest.decode_stalwart(b"[]")),
    "Tick": lambda: Pump(log(), Nothing()).tick(),
    "Verification": lambda: log().verify(),
}

# Instances that need a running loop.
ASYNC_INSTANCES: dict[str, Callable[[], Any]] = {
    "AsyncAuditLog": lambda: AsyncAuditLog.open("memory:"),
    "AsyncLiveFlags": lambda: dezky.AsyncLiveFlags.open("memory:"),
}


async def _async_pump() -> AsyncPump:
    return AsyncPump(await AsyncAuditLog.open("memory:"), Nothing(), interval=0)


ASYNC_INSTANCES["AsyncPump"] = _async_pump

# Only a damaged log, and a store that fails or changes, have these.
WITHOUT_INSTANCE = {"Finding", "Anomaly", "FlagEvent"}

# Waits until somebody ends it, whatever its arguments.
ENDLESS = {"Pump.run", "AsyncPump.run"}

DUNDERS = (
    "__bool__",
    "__eq__",
    "__ne__",
    "__lt__",
    "__hash__",
    "__len__",
    "__iter__",
    "__contains__",
    "__getitem__",
    "__format__",
    "__enter__",
    "__exit__",
    "__setattr__",
    "__delattr__",
    "__reduce_ex__",
    "__arrow_c_schema__",
    "__arrow_c_stream__",
    "__copy__",
    "__deepcopy__",
)


def modules() -> list[Any]:
    names = ("dezky", "dezky.ingest", "dezky.errors", "dezky.integrity", "dezky.openfeature")
    return [importlib.import_module(name) for name in names]


def public() -> list[tuple[str, str, Any, str | None]]:
    """Everything that can be called: its name, its class, the object, and the method."""
    calls: dict[str, tuple[str, str, Any, str | None]] = {}
    for module in modules():
        for name in module.__all__:
            item = getattr(module, name)
            if inspect.ismodule(item) or isinstance(item, (str, tuple, dict, frozenset)):
                continue
            if not inspect.isclass(item):
                if callable(item):
                    calls.setdefault(name, (name, "", item, None))
                continue
            calls.setdefault(name, (name, "", item, None))
            is_error = issubclass(item, BaseException)
            for method in dir(item):
                if method.startswith("_") and (method not in DUNDERS or is_error):
                    continue
                if is_error or getattr(object, method, None) is getattr(item, method):
                    continue
                label = f"{name}.{method}"
                static = isinstance(inspect.getattr_static(item, method), (staticmethod, classmethod))
                calls.setdefault(label, (label, "" if static else name, getattr(item, method) if static else item, method))
    return list(calls.values())


def parameters(function: Any) -> list[str]:
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [one.name for one in found if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]


async def instance(kind: str) -> Any:
    if kind in ASYNC_INSTANCES:
        return await ASYNC_INSTANCES[kind]()
    if kind not in INSTANCES:
        pytest.fail(f"test_hostile.py has no recipe for an instance of {kind}: add it to INSTANCES")
    return INSTANCES[kind]()


value = st.integers(0, len(MAKERS) - 1)

# For each of some 300 callables.
EXAMPLES = 6


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("label", "kind", "item", "method"),
    [case for case in public() if case[1] not in WITHOUT_INSTANCE and case[0] not in ENDLESS],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_argument_makes_it_panic_hang_or_raise_what_it_should_not(
    label: str, kind: str, item: Any, method: str | None
) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(value, max_size=4), st.dictionaries(st.integers(0, 15), value, max_size=4))
    def check(positional: list[int], named: dict[int, int]) -> None:
        asyncio.run(attempt(positional, named))

    async def attempt(positional: list[int], named: dict[int, int]) -> None:
        target = item
        if kind and method is not None:
            made = await instance(kind)
            target = getattr(made, method)
            if not callable(target):
                return
        names = parameters(target)
        arguments = [MAKERS[index]() for index in positional]
        keywords = {names[at % len(names)]: MAKERS[index]() for at, index in named.items()} if names else {}
        try:
            result = target(*arguments, **keywords)
            if inspect.isawaitable(result):
                await asyncio.wait_for(result, 20)
        except ALLOWED:
            pass
        except IndexError:
            assert method == "__getitem__"
        except OSError:
            # The path of a file that is not there.
            assert method == "from_json"
        except AttributeError:
            # Objects are immutable.
            assert method in ("__setattr__", "__delattr__")
        except (StopIteration, StopAsyncIteration):
            assert method in ("__next__", "__anext__")

    check()


# Valid arguments, for the parameters that have no default.
VALID: dict[str, Callable[[], Any]] = {
    "action": lambda: "a.b",
    "actor": Actor.system,
    "body": lambda: b"[]",
    "cursor": lambda: None,
    "decoded": lambda: dezky.ingest.decode_stalwart(b"[]"),
    "event": lambda: first(log()),
    "events": list,
    "field": lambda: "action",
    "flags": lambda: flags(),
    "handler": lambda: print,
    "header": lambda: "0" * 64,
    "id": lambda: "u-7",
    "key": lambda: "a",
    "leaf_hash": lambda: bytes(32),
    "lines": lambda: b"",
    "log": log,
    "name": lambda: "file_created",
    "new": lambda: {"key": "a", "state": "on"},
    "old": lambda: None,
    "page": lambda: b"[]",
    "prev_hash": lambda: bytes(32),
    "reason": lambda: "x",
    "salt": lambda: bytes(32),
    "secrets": lambda: "secret",
    "source": lambda: "[]",
    "tenant_id": lambda: "t-1",
    "tenant_ids": lambda: ["t-1"],
    "tenants": lambda: ["t-1"],
    "type": lambda: "user",
    "url": lambda: "memory:",
    "value": lambda: b"x",
    "Pump.source": Nothing,
    "AsyncPump.source": Nothing,
    "AsyncPump.log": lambda: AsyncAuditLog.open("memory:"),
}

# Called by dezky: what they raise is theirs.
CALLBACKS = {"handler", "progress"}


@pytest.mark.timeout(180)
# A class of an object that can't be asked for it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("label", "kind", "item", "method"),
    [
        case
        for case in public()
        # OpenFeature's clients call the methods of a provider.
        if case[1] not in WITHOUT_INSTANCE and case[3] not in DUNDERS and not case[0].startswith("DezkyProvider.")
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_the_error_of_a_wrong_argument_names_it(
    label: str, kind: str, item: Any, method: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some arguments are names of files.
    monkeypatch.chdir(tmp_path)
    target = getattr(await instance(kind), method) if kind and method is not None else item
    if not callable(target) or label in ENDLESS:
        return
    names = parameters(target)
    required = {name for name in names if is_required(target, name)}
    for name in names:
        others: dict[str, Any] = {}
        for other in required - {name}:
            made = VALID.get(f"{label}.{other}", VALID.get(other))
            assert made is not None, f"add a valid {other} to VALID"
            valid = made()
            others[other] = await valid if inspect.isawaitable(valid) else valid
        for maker in MAKERS:
            try:
                result = target(**others, **{name: maker()})
                if inspect.isawaitable(result):
                    result = await asyncio.wait_for(result, 20)
                if method == "open":
                    closed = result.close()
                    if inspect.isawaitable(closed):
                        await closed
            except (TypeError, ValueError) as error:
                assert name in CALLBACKS or re.search(rf"\b{name}\b", str(error)), f"{name}: {error!r}"
            except (*ALLOWED, OSError):
                pass


def is_required(function: Any, name: str) -> bool:
    # Each decision needs a tenant, by keyword or in the context.
    default = inspect.signature(function).parameters[name].default
    return default is inspect.Parameter.empty or default is Ellipsis


def test_each_class_has_a_recipe() -> None:
    kinds = {kind for _, kind, _, _ in public() if kind}
    missing = kinds - INSTANCES.keys() - ASYNC_INSTANCES.keys() - WITHOUT_INSTANCE
    assert not missing, f"add recipes for {sorted(missing)} to INSTANCES"


@pytest.mark.timeout(180)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=400), st.sampled_from(["stalwart", "authentik", "ocis"]))
def test_any_bytes_are_decoded(body: bytes, system: str) -> None:
    decode = getattr(dezky.ingest, f"decode_{system}")
    try:
        decoded = decode(body)
    except dezky.errors.BodyInvalidError:
        assert system == "authentik"
        return
    assert len(decoded.events) == len(decoded.tenant_hints) == len(decoded)
    repr((decoded, decoded.events, decoded.quarantined))


@pytest.mark.timeout(180)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(value, max_size=6), value, value, value, st.lists(value, max_size=3))
def test_any_batch_is_stored_quarantined_or_a_failure(
    events: list[int], cursor: int, more: int, skipped: int, quarantine: list[int]
) -> None:
    class Any_(Source):
        name = "any"

        def pull(self, _: str | None) -> Batch:
            return Batch(
                [MAKERS[index]() for index in events],
                MAKERS[cursor](),
                MAKERS[more](),
                MAKERS[skipped](),
                [MAKERS[index]() for index in quarantine],
            )

    with AuditLog.open("memory:") as opened, Pump(opened, Any_(), max_batches=2) as pump:
        try:
            tick = pump.tick()
        except ALLOWED:
            assert pump.status().failures == 1
        else:
            assert tick.stored + tick.duplicates + tick.quarantined >= len(events)
        assert bool(opened.verify())


@pytest.mark.timeout(180)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(value)
def test_any_result_of_pull_is_a_batch_or_a_failure(index: int) -> None:
    class Any_(Source):
        name = "any"

        def pull(self, _: str | None) -> Any:
            return MAKERS[index]()

    with AuditLog.open("memory:") as opened, Pump(opened, Any_()) as pump:
        try:
            pump.tick()
        except ALLOWED:
            pass

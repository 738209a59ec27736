"""Compiled flags: buckets, decisions, columns and previews."""

from __future__ import annotations

import doctest
import functools
import gc
import json
import pickle
import resource
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run

import dezky
from dezky import Context, FlagSet

VECTORS = Path(__file__).parents[3] / "vectors"


def vectors(name: str) -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = json.loads((VECTORS / name).read_text(encoding="utf-8"))["vectors"]
    return read


def one(**definition: Any) -> FlagSet:
    return FlagSet.from_json([{"key": "chat", **definition}])


MIXED = FlagSet.from_json(
    [
        {"key": "always", "state": "on"},
        {"key": "never"},
        {"key": "pro", "state": "targeted", "scope": {"plans": ["pro"]}},
        {"key": "nobody", "state": "targeted"},
        {"key": "half", "state": "rollout", "pct": 50},
        {"key": "fine", "state": "rollout", "pct": 12, "options": {"pctHundredths": 50}},
        {"key": "all", "state": "rollout", "pct": 100},
        {"key": "none", "state": "rollout", "pct": 0},
        {"key": "seeded", "state": "rollout", "pct": 50, "options": {"seed": "half"}},
        {"key": "live", "state": "on", "options": {"requireActiveTenant": True}},
        {"key": "pro-half", "state": "rollout", "pct": 50, "scope": {"plans": ["pro"]}},
        {"key": "a-key-that-is-so-long-that-key-and-uuid-need-two-blocks-of-sha", "state": "rollout", "pct": 30},
    ]
)


# Buckets


@pytest.mark.parametrize("name", ["rollout.json", "rollout-fine.json"])
def test_buckets_are_those_of_the_golden_vectors(name: str) -> None:
    read = vectors(name)
    assert len(read) > 20
    for vector in read:
        assert dezky.bucket(vector["tenantId"], vector["key"]) == vector["bucket"]
        if "fine" in vector:
            assert dezky.fine_bucket(vector["tenantId"], vector["key"]) == vector["fine"]


@pytest.mark.parametrize("name", ["rollout.json", "rollout-fine.json"])
def test_every_way_to_decide_is_that_of_the_golden_vectors(name: str) -> None:
    checked = 0
    for vector in vectors(name):
        seed = vector["key"]
        if not 1 <= len(seed.encode()) <= 64 or any(ord(c) < 32 or ord(c) == 127 for c in seed):
            continue
        checked += 1
        tenant = vector["tenantId"]
        for pct, value in ((vector["bucket"], False), (vector["bucket"] + 1, True)):
            flags = one(state="rollout", pct=pct, options={"seed": seed})
            assert flags.evaluate("chat", tenant_id=tenant).value is value
            assert flags.evaluate_all(tenant_id=tenant) == {"chat": value}
            for column in ([tenant] * 3, pa.array([tenant] * 3), np.array([tenant] * 3, dtype=object)):
                assert flags.evaluate_many("chat", column).to_list() == [value] * 3
    assert checked > 10


# The definition in plain Python, written from its description.


def definition(flag: dict[str, Any], context: Context) -> tuple[bool, str]:
    state, scope, options = flag.get("state", "off"), flag.get("scope", {}), flag.get("options", {})
    if state == "off":
        return False, "off"
    if options.get("requireActiveTenant") and not context.tenant_active:
        return False, "inactive_tenant"
    if state == "on":
        return True, "on"
    axes = [
        (scope.get("plans"), context.plan),
        (scope.get("tenantSlugs"), context.tenant_slug),
        (scope.get("partnerSlugs"), context.partner_slug),
        (scope.get("environments"), context.environment),
    ]
    if state == "targeted" and not any(values for values, _ in axes):
        return False, "empty_scope"
    if any(values and value not in values for values, value in axes):
        return False, "scope_mismatch"
    if state == "targeted":
        return True, "targeted"
    text = f"{context.tenant_id}:{options.get('seed', flag['key'])}".encode()
    x = int.from_bytes(sha256(text).digest(), "big") % 10_000
    fine = x % 100 * 100 + x // 100
    inside = fine < flag.get("pct", 0) * 100 + options.get("pctHundredths", 0)
    return inside, "in_rollout" if inside else "out_of_rollout"


slugs = st.sampled_from(["a", "b", "ü"])
axis = st.lists(slugs, max_size=2, unique=True)
definitions = st.fixed_dictionaries(
    {
        "state": st.sampled_from(["off", "on", "targeted", "rollout"]),
        "pct": st.integers(0, 99),
        "scope": st.fixed_dictionaries({"plans": axis, "tenantSlugs": axis, "partnerSlugs": axis, "environments": axis}),
        "options": st.fixed_dictionaries(
            {"requireActiveTenant": st.booleans(), "pctHundredths": st.integers(0, 99)},
            optional={"seed": st.text("abc:ü", min_size=1, max_size=12)},
        ),
    }
)
ids = st.text(st.characters(codec="utf-8"), max_size=90)
contexts = st.builds(
    Context,
    ids,
    plan=st.none() | slugs,
    tenant_slug=st.none() | slugs,
    partner_slug=st.none() | slugs,
    environment=st.none() | slugs,
    tenant_active=st.none() | st.booleans(),
)


@settings(deadline=None)
@given(st.lists(definitions, max_size=5), contexts)
def test_decisions_are_those_of_the_definition(listed: list[dict[str, Any]], context: Context) -> None:
    named = [{"key": f"flag-{n}", **flag} for n, flag in enumerate(listed)]
    flags = FlagSet.from_json(named)
    expected = {flag["key"]: definition(flag, context) for flag in named}
    assert flags.evaluate_all(context) == {key: value for key, (value, _) in expected.items()}
    for key, (value, reason) in expected.items():
        decision = flags.evaluate(key, context)
        assert (decision.value, decision.reason) == (value, reason)
        why = flags.explain(key, context)
        assert (why.value, why.reason, bool(decision)) == (value, reason, value)


def test_a_decision_says_why() -> None:
    rollout = MIXED.evaluate("half", tenant_id="t-1")
    bucket = dezky.bucket("t-1", "half")
    assert (rollout.bucket, rollout.threshold, rollout.axis) == (bucket, 50, None)
    assert str(rollout) == f"{rollout.reason}({bucket})"
    missed = MIXED.evaluate("pro", tenant_id="t-1", plan="free")
    assert (missed.reason, missed.axis, missed.bucket, missed.threshold) == ("scope_mismatch", "plan", None, None)
    assert str(missed) == "scope_mismatch(plan)"
    assert repr(missed) == "Decision(value=False, reason='scope_mismatch', axis='plan')"
    assert MIXED.evaluate("fine", tenant_id="t-1").threshold == 12.5
    unknown = MIXED.evaluate("no-such-flag", tenant_id="t-1")
    assert (unknown.value, unknown.reason, bool(unknown)) == (False, "unknown_flag", False)
    assert missed == MIXED.evaluate("pro", tenant_id="other", plan="free")
    assert len({missed, MIXED.evaluate("pro", tenant_id="t-1")}) == 1 and missed != unknown


def test_an_explanation_has_the_numbers() -> None:
    why = MIXED.explain("fine", tenant_id="t-1")
    assert why.bucket == dezky.fine_bucket("t-1", "fine") / 100
    assert (why.threshold, why.seeded, why.given) == (12.5, False, None)
    assert MIXED.explain("seeded", tenant_id="t-1").seeded
    missed = MIXED.explain("pro", tenant_id="t-1")
    assert (missed.axis, missed.given) == ("plan", None)
    assert str(missed) == "off: the scope has values for the plan, and the context has none"
    assert missed.to_dict() == {"value": False, "reason": "scope_mismatch(plan)", "axis": "plan", "given": None}
    assert MIXED.explain("no-such-flag", tenant_id="t").reason == "unknown_flag"


# Contexts


def test_contexts_may_be_objects_mappings_or_arguments() -> None:
    expected = MIXED.evaluate("pro-half", tenant_id="t-1", plan="pro")
    assert expected.bucket is not None
    assert MIXED.evaluate("pro-half", Context("t-1", plan="pro")) == expected
    assert MIXED.evaluate("pro-half", {"tenant_id": "t-1", "plan": "pro"}) == expected
    assert MIXED.evaluate("pro-half", Context("t-1"), plan="pro") == expected
    assert MIXED.evaluate("pro-half", Context("t-2", plan="pro"), tenant_id="t-1") == expected
    assert Context("t-1", plan="pro") == Context("t-2", plan="pro").replace(tenant_id="t-1")
    assert hash(Context("t-1")) == hash(Context("t-1")) and Context("t-1") != Context("t-1", plan="x")
    assert repr(Context("t'1", environment="x", tenant_active=False)) == (
        "Context(\"t'1\", environment='x', tenant_active=False)"
    )


# Without types, for wrong arguments.
LOOSE: Any = MIXED
PACKAGE: Any = dezky


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LOOSE.evaluate("half"), TypeError, "no tenant_id"),
        (lambda: LOOSE.evaluate("half", {"plan": "pro"}), TypeError, "no tenant_id"),
        (lambda: LOOSE.evaluate("half", tenant_id=7), TypeError, "tenant_id must be a str, not int"),
        (lambda: LOOSE.evaluate("half", tenant_id=None), TypeError, "tenant_id must be a str"),
        (lambda: LOOSE.evaluate("half", tenant_id="t", plan=7), TypeError, "plan must be a str or None, not int"),
        (lambda: LOOSE.evaluate("half", tenant_id="t", tenant_active=1), TypeError, "tenant_active must be a bool"),
        (lambda: LOOSE.evaluate("half", tenant_id="t", planet="x"), TypeError, "unexpected keyword argument 'planet'"),
        (lambda: LOOSE.evaluate("half", {"tenantId": "t"}), ValueError, "context has an unknown key 'tenantId'"),
        (lambda: LOOSE.evaluate("half", "t-1"), TypeError, r"context must be a Context or a mapping \(an id goes into tenant_id=\), not str"),
        (lambda: LOOSE.evaluate(7, tenant_id="t"), TypeError, "key must be a str, not int"),
        (lambda: LOOSE.evaluate("half", tenant_id="\ud800"), ValueError, "tenant_id contains a lone surrogate"),
        (lambda: LOOSE.evaluate_all(), TypeError, "no tenant_id"),
        (lambda: LOOSE.evaluate_many("half", ["t"], tenant_id="t"), TypeError, "unexpected keyword"),
        (lambda: LOOSE.evaluate_many("half", "t-1"), TypeError, "tenant_ids must be"),
        (lambda: LOOSE.evaluate_many("half", b"t-1"), TypeError, "tenant_ids must be"),
        (lambda: LOOSE.evaluate_many("half", {"t": 1}), TypeError, "tenant_ids must be"),
        (lambda: LOOSE.evaluate_many("half", 7), TypeError, "tenant_ids must be"),
        (lambda: LOOSE.evaluate_many("half", ["t", 7]), TypeError, r"tenant_ids\[1\] must be a str or None, not int"),
        (lambda: LOOSE.evaluate_many("half", ["\ud800"]), ValueError, r"tenant_ids\[0\] contains a lone surrogate"),
        (lambda: LOOSE.evaluate_many("half", np.array([1, 2])), TypeError, "array of text, not of int64"),
        (lambda: LOOSE.evaluate_many("half", np.array([b"a"])), TypeError, "array of text"),
        (lambda: LOOSE.evaluate_many("half", np.array([["a"]])), ValueError, "one dimension, not 2"),
        (lambda: LOOSE.evaluate_many("half", pa.array([1])), TypeError, "text, not of Int64"),
        (lambda: LOOSE.evaluate_many("half", pa.array([b"a"])), TypeError, "text, not of Binary"),
        (lambda: LOOSE.evaluate_many("half", pa.table({"a": ["t"]})), TypeError, "not a table"),
        (lambda: PACKAGE.bucket(b"t", "k"), TypeError, "tenant_id must be a str, not bytes"),
        (lambda: PACKAGE.bucket("t", None), TypeError, "key must be a str, not NoneType"),
        (lambda: PACKAGE.Context(), TypeError, "tenant_id"),
        (lambda: PACKAGE.FlagSet.from_json(7), TypeError, "source must be a JSON text, a path or a list of dict, not int"),
        (lambda: PACKAGE.FlagSet.from_json([{"key": "a", "pct": 101}]), dezky.errors.FieldInvalidError, "flag a: pct"),
        (lambda: PACKAGE.FlagSet.from_json('{"flags": 7}'), dezky.errors.FieldInvalidError, "not a flag file"),
        (lambda: PACKAGE.FlagSet.from_json("[{"), dezky.errors.FieldInvalidError, "not a flag file"),
        (lambda: PACKAGE.FlagSet.from_json([{"key": "a"}, {"key": "a"}]), dezky.errors.FieldInvalidError, "given twice"),
        (lambda: PACKAGE.FlagSet.from_json(b"\xff"), ValueError, "source is not UTF-8"),
        (lambda: PACKAGE.FlagSet.from_json("no/such/file.json"), FileNotFoundError, "no/such/file.json"),
        (lambda: PACKAGE.preview({"key": "a"}, MIXED, []), TypeError, "both"),
        (lambda: PACKAGE.preview(7, None, []), TypeError, "old must be"),
        (lambda: PACKAGE.preview({"key": "a", "pct": -1}, None, []), dezky.errors.FieldInvalidError, "old: "),
        (lambda: PACKAGE.preview({"key": "a"}, None, "t-1"), TypeError, "tenants must be"),
        (lambda: PACKAGE.preview({"key": "a"}, None, [7]), TypeError, r"tenants\[0\] must be"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# Sources


def test_flags_are_read_from_text_bytes_paths_and_lists(tmp_path: Path) -> None:
    listed = [{"key": "b", "state": "on"}, {"key": "a"}]
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"revision": 7, "flags": listed}), encoding="utf-8")
    sources: list[Any] = [listed, tuple(listed), {"flags": listed}, json.dumps(listed), json.dumps(listed).encode()]
    for source in sources:
        flags = FlagSet.from_json(source)
        assert (list(flags), len(flags), flags.revision) == (["a", "b"], 2, 0)
    for named in (path, str(path)):
        assert FlagSet.from_json(named).revision == 7
    flags = FlagSet.from_json(path)
    assert "a" in flags and "c" not in flags and 7 not in flags
    assert list(FlagSet.from_json(flags.to_json())) == ["a", "b"]
    copied = pickle.loads(pickle.dumps(flags))
    assert copied.evaluate_all(tenant_id="t") == flags.evaluate_all(tenant_id="t") == {"a": False, "b": True}


def test_a_flag_that_violates_a_bound_is_off_if_that_is_wanted() -> None:
    flags = FlagSet.from_json([{"key": "a", "state": "on", "pct": 101}, {"key": "b", "state": "on"}], strict=False)
    assert flags.evaluate_all(tenant_id="t") == {"a": False, "b": True}
    assert flags.evaluate("a", tenant_id="t").reason == flags.explain("a", tenant_id="t").reason == "invalid_flag"
    assert list(flags.invalid) == ["a"] and "pct" in flags.invalid["a"]
    assert pickle.loads(pickle.dumps(flags)).evaluate("a", tenant_id="t").reason == "invalid_flag"


def test_the_answer_of_all_flags_is_the_callers_own() -> None:
    first = MIXED.evaluate_all(tenant_id="t-1")
    first["always"] = False
    first["more"] = True
    assert MIXED.evaluate_all(tenant_id="t-1")["always"] is True
    assert list(MIXED.evaluate_all(tenant_id="t-1")) == sorted(MIXED)


# Columns

COLUMNS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": iter,
    "numpy objects": lambda ids: np.array(ids, dtype=object),
    "numpy strings": lambda ids: np.array(ids, dtype=np.dtypes.StringDType(na_object=None)),
    "string": lambda ids: pa.array(ids, pa.string()),
    "large string": lambda ids: pa.array(ids, pa.large_string()),
    "string view": lambda ids: pa.array(ids, pa.string_view()),
    "dictionary": lambda ids: pa.array(ids, pa.string()).dictionary_encode(),
    "dictionary of views": lambda ids: pa.DictionaryArray.from_arrays(
        pa.array([None if i is None else n for n, i in enumerate(ids)], pa.int64()),
        pa.array(["" if i is None else i for i in ids], pa.string_view()),
    ),
    "nulls in the dictionary": lambda ids: pa.DictionaryArray.from_arrays(
        pa.array(range(len(ids)), pa.int32()), pa.array(ids, pa.large_string())
    ),
    "chunks": lambda ids: pa.chunked_array([ids[:3], ids[3:70], ids[70:]], pa.string()),
    "sliced": lambda ids: pa.array(["x", "yy", *ids, "z"], pa.string()).slice(2, len(ids)),
    "sliced chunks": lambda ids: pa.chunked_array([["x", *ids[:9]], [*ids[9:], "z"]], pa.string()).slice(1, len(ids)),
    "polars": lambda ids: pl.Series(ids, dtype=pl.String),
    "polars categories": lambda ids: pl.Series(ids, dtype=pl.Categorical),
    "pandas": lambda ids: pd.Series(ids, dtype=pd.ArrowDtype(pa.string())),
    "duckdb": lambda ids: _duckdb(ids),
}


def _duckdb(ids: list[Any]) -> Any:
    connection = _duckdb_connection()
    connection.register("tenants", pa.table({"id": pa.array(ids, pa.string())}))
    # The order of a table is kept.
    return connection.sql("SELECT id FROM tenants").to_arrow_table().column("id")


@functools.cache
def _duckdb_connection() -> Any:
    import duckdb

    return duckdb.connect()


def one_by_one(key: str, ids: list[Any], **axes: Any) -> list[bool | None]:
    return [None if i is None else MIXED.evaluate(key, tenant_id=i, **axes).value for i in ids]


@pytest.mark.parametrize("column", COLUMNS)
@settings(deadline=None, max_examples=15)
@given(st.lists(st.none() | ids.filter(lambda i: "\0" not in i), max_size=140))
def test_columns_agree_with_decisions_one_by_one(column: str, ids: list[Any]) -> None:
    if column == "polars categories" and any(i is not None and not i.isascii() for i in ids):
        ids = [i if i is None or i.isascii() else "x" for i in ids]
    for key in MIXED:
        got = MIXED.evaluate_many(key, COLUMNS[column](ids), plan="pro")
        assert got.to_list() == one_by_one(key, ids, plan="pro"), key


@settings(deadline=None, max_examples=30)
@given(st.lists(ids.map(lambda i: i.rstrip("\0")), min_size=1, max_size=140))
def test_numpys_fixed_width_text_agrees_with_decisions_one_by_one(ids: list[str]) -> None:
    array = np.array(ids)
    assert array.dtype.kind == "U"
    for given_array in (array, array.astype(array.dtype.newbyteorder(">")), np.repeat(array, 2)[::2]):
        assert MIXED.evaluate_many("half", given_array).to_list() == one_by_one("half", ids)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 16_383, 16_384, 16_385, 100_000])
def test_columns_of_any_length_are_decided_in_order(count: int) -> None:
    ids = [f"tenant-{n * 7919}" if n % 11 else None for n in range(count)]
    expected = one_by_one("half", ids)
    for column in ("list", "tuple", "generator", "numpy objects", "string", "string view", "dictionary", "chunks"):
        got = MIXED.evaluate_many("half", COLUMNS[column](ids))
        assert got.to_list() == expected, column
        assert (len(got), got.null_count) == (count, expected.count(None))
        assert got.true_count == expected.count(True)
    texts = [i or "" for i in ids]
    assert MIXED.evaluate_many("half", np.array(texts, dtype="U16")).to_list() == one_by_one("half", texts)


def test_missing_ids_are_missing_whatever_the_flag() -> None:
    for key in [*MIXED, "no-such-flag"]:
        for ids in ([None, "t", None], pa.array([None, "t", None], pa.string()), pa.nulls(3), np.ma.array(["a", "t", "b"], mask=[True, False, True])):
            values = MIXED.evaluate_many(key, ids).to_list()
            assert values[0] is None and values[2] is None
    assert MIXED.evaluate_many("no-such-flag", ["t"] * 100_000).true_count == 0


def test_a_series_of_objects_may_have_missing_ids() -> None:
    for missing in (None, float("nan"), np.nan, pd.NA):
        ids = pd.Series(["t-1", missing, "t-3"], dtype=object)
        expected = one_by_one("half", ["t-1", None, "t-3"])
        for column in (ids, ids.to_numpy(), list(ids)):
            assert MIXED.evaluate_many("half", column).to_list() == expected
    with pytest.raises(TypeError, match=r"^tenant_ids\[1\] must be a str or None, not float"):
        MIXED.evaluate_many("half", ["t-1", 1.5])  # type: ignore[list-item]


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view"])
def test_long_columns_are_decided_in_slices(kind: str) -> None:
    # More than one slice; the last one is short.
    ids = [f"t-{n % 1000}" for n in range(64 * 16_384 + 70)]
    column = MIXED.evaluate_many("half", pa.array(ids, getattr(pa, kind)()))
    few = MIXED.evaluate_many("half", ids[:1000]).to_list()
    assert len(column) == len(ids)
    assert np.array_equal(np.asarray(column), np.resize(np.array(few), len(ids)))


@pytest.mark.parametrize("work", ["dezky.preview(None, {'key': 'k', 'state': 'on'}, endless())", "flags.evaluate_many('half', endless())"])
def test_ctrl_c_ends_long_work(work: str) -> None:
    program = (
        "import dezky, itertools, _thread, threading\n"
        "flags = dezky.FlagSet.from_json([{'key': 'half', 'state': 'rollout', 'pct': 50}])\n"
        # Without a line of Python between two ids, only the call itself can hear it.
        "def endless(): return itertools.repeat('t-1')\n"
        "threading.Timer(0.5, _thread.interrupt_main).start()\n"
        f"try:\n    {work}\nexcept KeyboardInterrupt:\n    print('ended')\n"
    )
    assert run(program) == "ended\n"


def test_a_column_is_a_sequence() -> None:
    ids = [f"t-{n}" for n in range(100)] + [None]
    column = MIXED.evaluate_many("half", ids)
    values = one_by_one("half", ids)
    assert list(column) == values == [column[n] for n in range(101)]
    assert [column[n - 101] for n in range(101)] == values
    for part in (slice(3, 70), slice(None, None, -1), slice(90, 200, 3), slice(5, 2)):
        assert column[part].to_list() == values[part]
    for index in (101, -102, 1 << 70):
        with pytest.raises(IndexError, match="out of range"):
            column[index]
    with pytest.raises(TypeError, match="index must be an int or a slice, not str"):
        column["0"]  # type: ignore[call-overload]
    assert column == MIXED.evaluate_many("half", iter(ids)) and column != column[1:] and column != values
    assert True in column and repr(column).startswith("BooleanColumn(101 values:")


def test_a_column_goes_to_arrow_and_numpy() -> None:
    ids = [f"t-{n}" for n in range(1000)]
    column = MIXED.evaluate_many("half", ids)
    values = column.to_list()
    assert pa.array(column).equals(pa.array(values)) and pl.Series(column).to_list() == values
    array = np.asarray(column)
    assert array.dtype == bool and array.tolist() == values and column.to_numpy().flags.writeable
    assert np.asarray(column, dtype=np.int8).sum() == column.true_count
    with pytest.raises(ValueError, match="copy=False"):
        np.asarray(column, copy=False)
    nulls = MIXED.evaluate_many("half", [*ids, None])
    assert np.asarray(nulls).dtype == object and np.asarray(nulls)[-1] is None
    assert pa.array(nulls).null_count == 1
    part = pa.array(nulls[100:])
    part.validate(full=True)
    assert part.to_pylist() == nulls.to_list()[100:]
    # Arrow may outlive the column.
    exported = pa.array(MIXED.evaluate_many("half", ids))
    gc.collect()
    assert exported.to_pylist() == values


def test_a_list_that_changes_meanwhile_does_no_harm() -> None:
    ids = [f"t-{n}" for n in range(200_000)]
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            del ids[-100:]
            ids.extend(f"u-{n}" for n in range(100))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(5):
            assert len(MIXED.evaluate_many("half", ids)) > 0
    finally:
        stop.set()
        thread.join()


def test_an_iterable_that_fails_fails_the_column() -> None:
    def broken() -> Any:
        yield from (f"t-{n}" for n in range(50_000))
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        MIXED.evaluate_many("half", broken())


# Previews


def test_a_preview_counts_and_lists_tenants() -> None:
    old = {"key": "chat", "state": "rollout", "pct": 25}
    tenants = [f"t-{n}" for n in range(400)]
    preview = dezky.preview(old, {**old, "pct": 75}, tenants)
    gaining = [t for t in tenants if 25 <= dezky.bucket(t, "chat") < 75]
    assert (preview.total, preview.gains, preview.loses, preview.gaining) == (400, len(gaining), 0, gaining)
    assert preview.after_on == preview.before_on + preview.gains
    assert str(preview).startswith(f"~{preview.after_on} of 400 tenants")
    lost = dezky.preview(json.dumps({"key": "chat", "state": "on"}), None, [Context("t-1", plan="pro"), {"tenant_id": "t-2"}])
    assert lost.losing == ["t-1", "t-2"] and lost.to_dict()["byPlan"]["pro"]["loses"] == 1
    both = dezky.preview(MIXED, FlagSet.from_json([{"key": "always", "state": "on"}]), tenants)
    assert "always" not in both and both["all"].loses == 400


# Documentation


@pytest.mark.parametrize(
    "name",
    ["AsyncLiveFlags", "BooleanColumn", "Context", "Decision", "Explanation", "FlagSet", "LiveFlags", "bucket", "fine_bucket", "preview"],
)
def test_the_examples_of_the_documentation_run(name: str) -> None:
    documented = getattr(dezky, name)
    members = [getattr(documented, member) for member in vars(documented)] if isinstance(documented, type) else []
    parser, ran = doctest.DocTestParser(), 0
    for text in {getattr(item, "__doc__", None) for item in (documented, *members)}:
        example = parser.get_doctest(text or "", {}, name, None, None)
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(example)
        assert runner.failures == 0, text
        ran += len(example.examples)
    assert ran > 0


# Resources


def test_evaluations_leak_nothing() -> None:
    context = Context("t-1", plan="pro")
    ids = [f"t-{n}" for n in range(1000)]
    column = pa.array(ids)
    array = np.array(ids)

    def work(rounds: int) -> None:
        for n in range(rounds):
            MIXED.evaluate("half", context)
            MIXED.evaluate("pro", tenant_id=f"t-{n}", plan="pro").reason
            if n % 50 == 0:
                MIXED.evaluate_all(context)
                str(MIXED.explain("fine", context))
            if n % 5_000 == 0:
                for many in (ids, column, array):
                    result = MIXED.evaluate_many("half", many)
                    pa.array(result), np.asarray(result), result.to_list()
                with pytest.raises(TypeError):
                    LOOSE.evaluate_many("half", ["t", 7])

    work(20_000)
    gc.collect()
    before = resident()
    work(150_000)
    gc.collect()
    # One leaked object of 32 bytes per evaluation would be 9 MiB; a million take less than one.
    assert resident() - before < 3 << 20


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def test_threads_decide_at_once() -> None:
    column = pa.array([f"t-{n}" for n in range(20_000)])
    expected = MIXED.evaluate_many("half", column).to_list()
    failures: list[object] = []

    def work() -> None:
        for _ in range(20):
            if MIXED.evaluate_many("half", column).to_list() != expected:
                failures.append("column")
            if len(MIXED.evaluate_all(tenant_id="t-1")) != len(MIXED):
                failures.append("all")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures

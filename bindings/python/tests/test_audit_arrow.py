"""Events as Arrow equal the events as objects, for every library that reads Arrow."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import psycopg
import pyarrow as pa
import pytest

from dezky import Actor, ArrowEvents, AsyncAuditLog, AuditLog, Event, NewEvent, integrity

UTC = datetime.timezone.utc
T0 = datetime.datetime(2026, 11, 21, 20, 12, 21, 123000, tzinfo=UTC)
BATCH_EVENTS = 16_000

Rows = list[dict[str, Any]]


def with_nothing(number: int) -> NewEvent:
    return NewEvent("a.b", actor=Actor.system(), at=T0 + datetime.timedelta(milliseconds=number))


def with_everything(number: int) -> NewEvent:
    return NewEvent(
        "tenant.ümlaut".replace("ü", "u"),
        actor=Actor.user(f"ü-{number % 7}", email=f"u{number % 7}@acme.test", ip=f"203.0.113.{number % 250}"),
        at=T0 - datetime.timedelta(milliseconds=number),
        outcome="denied",
        resource_type="file",
        resource_id=f"r-{number}",
        resource_name=f"Bericht \U0001f4c4 {number}",
        tenant_slug=f"t-{number % 11}",
        partner_slug="nordic",
        source="ocis:eu",
        external_id=f"x-{number}",
        metadata={"number": number, "text": "ü" * (number % 5)},
    )


def expected(log: AuditLog, **filters: Any) -> Rows:
    rows = []
    for event in log.list(**filters):
        row = event.to_dict()
        row["erased"] = list(event.erased)
        row["metadata"] = event.metadata_json
        rows.append(row)
    return rows


def by_pyarrow(events: ArrowEvents) -> Rows:
    rows: Rows = pa.table(events).to_pylist()
    return rows


def by_polars(events: ArrowEvents) -> Rows:
    frame = pl.DataFrame(events)
    return frame.to_dicts()


def by_pandas(events: ArrowEvents) -> Rows:
    frame = pd.DataFrame.from_arrow(events) if hasattr(pd.DataFrame, "from_arrow") else pa.table(events).to_pandas()
    rows: Rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    for row in rows:
        row["erased"] = list(row["erased"])
        for name in ("at", "received_at"):
            row[name] = row[name].to_pydatetime()
    return rows


def by_duckdb(events: ArrowEvents) -> Rows:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        result = connection.execute("SELECT * FROM events")
        names = [column[0] for column in result.description or []]
        rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    for row in rows:
        for name in ("at", "received_at"):
            row[name] = row[name].astimezone(UTC)
    return rows


READERS = [by_pyarrow, by_polars, by_pandas, by_duckdb]


@pytest.fixture(params=READERS, ids=lambda reader: reader.__name__.removeprefix("by_"))
def read(request: pytest.FixtureRequest) -> Callable[[ArrowEvents], Rows]:
    reader: Callable[[ArrowEvents], Rows] = request.param
    return reader


def test_arrow_equals_the_list_on_every_engine(log: AuditLog, read: Callable[[ArrowEvents], Rows]) -> None:
    log.append([make(number) for number in range(600) for make in (with_nothing, with_everything)])
    assert read(log.to_arrow()) == expected(log)
    filters: dict[str, Any] = {"source": "ocis", "limit": 501, "since": T0 - datetime.timedelta(milliseconds=550)}
    rows = read(log.to_arrow(**filters))
    assert len(rows) == 501 and rows == expected(log, **filters)


def test_erased_fields_are_named(new_url: Callable[[str], str], read: Callable[[ArrowEvents], Rows]) -> None:
    url = new_url("postgres")
    with AuditLog.open(url) as log:
        log.append([with_everything(number) for number in range(3)])
        erase(url, next(log.list(actor_id="ü-1")), "actor_email")
        assert [event.erased for event in log.tail(follow=False)] == [(), ("actor_email",), ()]
        assert read(log.to_arrow()) == expected(log)


def erase(url: str, event: Event, erased: str) -> None:
    """Replaces a value by its commitment, as `docs/integrity.md` defines it."""
    with psycopg.connect(url) as connection:
        ((salt,),) = connection.execute("SELECT salt FROM dezky_audit_events WHERE seq = %s", [event.seq]).fetchall()
        erasure = b"\x01"
        for tag, field in enumerate(integrity.FIELDS, 1):
            if field not in integrity.COMMITTED:
                continue
            field_salt, kind = integrity.field_salt(salt, field), 1
            if field == erased:
                field_salt, kind = integrity.commitment(field_salt, field, str(getattr(event, field)).encode()), 2
            erasure += bytes([tag, kind]) + field_salt
        connection.execute(
            f"UPDATE dezky_audit_events SET salt = NULL, erasure = %s, {erased} = NULL WHERE seq = %s".encode(),
            [erasure, event.seq],
        )


@pytest.mark.parametrize("make", [with_nothing, with_everything])
def test_columns_that_are_all_null_or_never_null(
    make: Callable[[int], NewEvent], read: Callable[[ArrowEvents], Rows]
) -> None:
    with AuditLog.open("memory:") as log:
        log.append([make(number) for number in range(3)])
        assert read(log.to_arrow()) == expected(log)


def test_an_empty_result_has_the_columns(read: Callable[[ArrowEvents], Rows]) -> None:
    with AuditLog.open("memory:") as log:
        assert read(log.to_arrow()) == []
        log.append([with_nothing(0)])
        events = log.to_arrow(action="none.such")
        assert read(events) == []
        columns = pa.table(events).column_names
        assert columns == list(next(log.list()).to_dict())
        assert pl.DataFrame(events).columns == columns


def plain(number: int) -> NewEvent:
    at = T0 - datetime.timedelta(milliseconds=number)
    return NewEvent("a.b", actor=Actor.system(), at=at, source="ocis:eu", tenant_slug=f"t-{number % 11}")


def test_batches_are_bounded_and_dictionaries_encode_what_repeats(new_url: Callable[[str], str]) -> None:
    with AuditLog.open(new_url("sqlite")) as log:
        total = 18_000
        for start in range(0, total, 9_000):
            log.append([plain(number) for number in range(start, start + 9_000)])
        events = log.to_arrow(source="ocis")
        reader = pa.RecordBatchReader.from_stream(events)
        assert reader.schema == pa.schema(events)
        assert pa.types.is_dictionary(reader.schema.field("action").type)
        assert reader.schema.field("at").type == pa.timestamp("ms", "UTC")
        assert reader.schema.field("hash").type == pa.binary(32)
        sizes = []
        seqs: list[int] = []
        for batch in reader:
            batch.validate(full=True)
            sizes.append(batch.num_rows)
            seqs += batch.column("seq").to_pylist()
            assert len(batch.column("tenant_slug").dictionary) == 11
        assert max(sizes) < BATCH_EVENTS + 500 and len(sizes) == 2
        assert seqs == list(range(total))
        # Each reader gets a stream of its own.
        assert pl.DataFrame(events).height == total


def test_batches_are_bounded_in_bytes() -> None:
    with AuditLog.open("memory:") as log:
        text = "x" * 36_000
        log.append([NewEvent("a.b", actor=Actor.system(), metadata={"text": text}) for _ in range(600)])
        sizes = [batch.num_rows for batch in pa.RecordBatchReader.from_stream(log.to_arrow())]
        assert sum(sizes) == 600 and len(sizes) > 1


def test_a_stream_that_is_left_early_ends_quietly(new_url: Callable[[str], str]) -> None:
    with AuditLog.open(new_url("sqlite")) as log:
        for _ in range(2):
            log.append([with_nothing(number) for number in range(10_000)])
        reader = pa.RecordBatchReader.from_stream(log.to_arrow())
        reader.read_next_batch()
        del reader
        capsule = log.to_arrow().__arrow_c_stream__()
        del capsule
        assert log.verify().ok


def test_an_error_of_the_store_is_one_of_the_reader(log_url: str) -> None:
    log = AuditLog.open(log_url)
    log.append([with_nothing(number) for number in range(10)])
    reader = pa.RecordBatchReader.from_stream(log.to_arrow())
    log.close()
    with pytest.raises(OSError, match="the log is closed"):
        reader.read_all()
    with pytest.raises(ValueError, match="the log is closed"):
        log.to_arrow()


async def test_the_async_form_gives_the_same() -> None:
    async with await AsyncAuditLog.open("memory:") as log:
        await log.append([with_everything(number) for number in range(10)])
        table = await asyncio.to_thread(pa.table, log.to_arrow(limit=7))
        assert table.column("seq").to_pylist() == [event.seq async for event in log.list(limit=7)]

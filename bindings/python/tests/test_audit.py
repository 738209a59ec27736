"""The audit log, on every engine."""

from __future__ import annotations

import copy
import datetime
import ipaddress
import json
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import psycopg
import pytest
from conftest import until

import dezky
from dezky import Actor, AuditLog, Event, NewEvent

UTC = datetime.timezone.utc
T0 = datetime.datetime(2026, 11, 21, 20, 12, 21, 123000, tzinfo=UTC)


def numbered(count: int, *, prefix: str = "e") -> list[NewEvent]:
    return [
        NewEvent(
            "file.uploaded" if number % 2 else "tenant.suspended",
            actor=Actor.user(f"u-{number % 3}", email=f"U{number % 3}@acme.test"),
            at=T0 + datetime.timedelta(seconds=number),
            outcome="success" if number % 5 else "denied",
            resource_type="file",
            resource_id=str(number),
            resource_name=f"Bericht {number}",
            tenant_slug="acme" if number % 2 else None,
            partner_slug="nordic" if number % 4 else None,
            source="ocis" if number % 2 else "authentik:eu2",
            external_id=f"{prefix}-{number}",
            metadata={"number": number},
        )
        for number in range(count)
    ]


def test_a_recorded_event_is_listed_with_every_field(log: AuditLog) -> None:
    before = datetime.datetime.now(UTC)
    recorded = log.record(
        "tenant.suspended",
        actor=Actor.operator("u-7", email="ana@acme.test", ip=ipaddress.ip_address("2001:DB8::1")),
        at=T0 + datetime.timedelta(microseconds=999),
        outcome="failure",
        resource_type="tenant",
        resource_id="t1",
        resource_name="Acme GmbH",
        tenant_slug="acme",
        partner_slug="nordic",
        source="platform-api",
        external_id="x-1",
        metadata={"z": [1, 2.5, None, True, "ü"], "a": {"b": ()}},
    )
    assert (recorded.status, recorded.seq) == ("appended", 0)
    (event,) = log.list()
    assert event.id == recorded.id
    assert event.seq == 0
    assert event.at == T0 and event.at.tzinfo is UTC
    assert before - datetime.timedelta(seconds=5) < event.received_at <= datetime.datetime.now(UTC)
    assert event.actor == Actor("operator", "u-7", email="ana@acme.test", ip="2001:db8::1")
    assert (event.actor_type, event.actor_id) == ("operator", "u-7")
    assert (event.actor_email, event.actor_ip) == ("ana@acme.test", "2001:db8::1")
    assert (event.action, event.outcome) == ("tenant.suspended", "failure")
    assert (event.resource_type, event.resource_id) == ("tenant", "t1")
    assert (event.resource_name, event.tenant_slug, event.partner_slug) == ("Acme GmbH", "acme", "nordic")
    assert (event.source, event.external_id) == ("platform-api", "x-1")
    assert event.metadata == {"z": [1, 2.5, None, True, "ü"], "a": {"b": []}}
    assert event.metadata_json == '{"a":{"b":[]},"z":[1,2.5,null,true,"ü"]}'
    assert event.erased == ()
    assert event.prev_hash == bytes(32)
    assert log.head().hash == event.hash and len(event.hash) == 32
    as_dict = event.to_dict()
    assert list(as_dict)[:3] == ["seq", "id", "at"]
    assert all(as_dict[name] == getattr(event, name) for name in as_dict)
    as_json = json.loads(event.to_json())
    assert as_json["at"] == "2026-11-21T20:12:21.123Z"
    assert as_json["actorEmail"] == "ana@acme.test"
    assert as_json["hash"] == event.hash.hex()


def test_an_event_needs_nothing_but_action_and_actor(log: AuditLog) -> None:
    log.record("system.started", actor=Actor.system())
    (event,) = log.list()
    assert abs(event.at - datetime.datetime.now(UTC)) < datetime.timedelta(seconds=10)
    assert event.source == "platform-api" and event.outcome == "success"
    assert event.metadata == {}
    absent = ("actor_id", "actor_email", "actor_ip", "resource_type", "tenant_slug", "external_id")
    assert [getattr(event, name) for name in absent] == [None] * 6


def test_append_takes_events_and_mappings_and_recognises_duplicates(log: AuditLog) -> None:
    events: list[NewEvent | Mapping[str, object]] = [
        NewEvent("file.uploaded", actor=Actor.user("u-1"), external_id="a", source="ocis"),
        {"action": "file.uploaded", "actor": Actor.user("u-2"), "external_id": "b", "source": "ocis"},
        {"action": "file.uploaded", "actor": Actor.user("u-1"), "external_id": "a", "source": "ocis"},
        {"action": "file.deleted", "actor": Actor.user("u-2"), "external_id": "b", "source": "ocis"},
    ]
    receipts = log.append(event for event in events)
    assert [(r.status, r.seq, r.differs) for r in receipts] == [
        ("appended", 0, ()),
        ("appended", 1, ()),
        ("duplicate", 0, ()),
        ("conflict", 1, ("action",)),
    ]
    assert receipts[0].id == receipts[2].id
    assert log.append([]) == []
    again = log.append(events)
    assert {receipt.status for receipt in again} == {"duplicate", "conflict"}
    assert log.head().next_seq == 2


def test_append_refuses_the_whole_batch_and_names_index_and_field(log: AuditLog) -> None:
    events: list[NewEvent] = numbered(3)
    bad = NewEvent("tenant.created", actor=Actor.user("u", email="x" * 321))
    with pytest.raises(dezky.errors.EventInvalidError, match=r"^events\[3\]\.actor_email must be at most 320"):
        log.append([*events, bad])
    with pytest.raises(dezky.errors.EventInvalidError, match=r"^events\[0\]\.action must be"):
        log.append([NewEvent("Not A Verb", actor=Actor.system())])
    assert log.head().next_seq == 0


def test_append_is_bounded_and_never_exhausts_an_endless_iterable(log: AuditLog) -> None:
    def endless() -> object:
        while True:
            yield NewEvent("file.uploaded", actor=Actor.system())

    with pytest.raises(dezky.errors.TooLargeError, match="more than 10000 items"):
        log.append(endless())  # type: ignore[arg-type]
    assert log.head().next_seq == 0


def test_record_repairs_what_append_refuses(log: AuditLog) -> None:
    recorded = log.record(
        "Not A Verb!",
        actor=Actor.user("u" * 600, email="x" * 400, ip="not an address"),
        resource_name="ü" * 2000,
        tenant_slug="t" * 64,
        source="bad source",
        at=datetime.datetime(1970, 1, 1, tzinfo=UTC),
    )
    assert recorded.status == "appended"
    (event,) = log.list()
    assert event.action == "not_a_verb_"
    assert event.actor_id == "u" * 512 and event.actor_email == "x" * 320
    assert event.actor_ip is None
    assert event.resource_name == "ü" * 512
    assert event.tenant_slug is None
    notes = event.metadata["_dezky"]
    assert notes["invalid"]["action"]["head"] == "Not A Verb!"
    assert notes["rawIp"] == "not an address"
    assert notes["timeProblem"] == "too_old"


def test_lists_filter_page_and_stop(log: AuditLog) -> None:
    # More than a page.
    log.append(numbered(600))
    newest_first = [event.seq for event in log.list()]
    assert newest_first == list(range(599, -1, -1))
    assert [event.seq for event in log.list(limit=3)] == [599, 598, 597]
    assert sum(1 for _ in log.list(limit=550)) == 550

    def seqs(**filters: object) -> set[int]:
        return {event.seq for event in log.list(**filters)}  # type: ignore[arg-type]

    every = range(600)
    assert seqs(action="tenant.") == {n for n in every if n % 2 == 0}
    assert seqs(action="file.uploaded") == {n for n in every if n % 2}
    assert seqs(tenant_slug="acme", limit=2000) == {n for n in every if n % 2}
    assert seqs(tenant_slug="") == {n for n in every if n % 2 == 0}
    assert seqs(partner_slug="nordic") == {n for n in every if n % 4}
    assert seqs(actor_id="u-1") == {n for n in every if n % 3 == 1}
    assert seqs(actor_email="u2@ACME.test") == {n for n in every if n % 3 == 2}
    assert seqs(resource_type="file", resource_id="7") == {7}
    assert seqs(outcome="denied") == {n for n in every if n % 5 == 0}
    assert seqs(source="authentik") == {n for n in every if n % 2 == 0}
    assert seqs(q="bericht 59") == {n for n in every if str(n).startswith("59")}
    assert seqs(since=T0 + datetime.timedelta(seconds=595)) == {595, 596, 597, 598, 599}
    assert seqs(until=T0 + datetime.timedelta(seconds=2)) == {0, 1}
    assert seqs(before=T0 + datetime.timedelta(seconds=1)) == {0}
    assert seqs(action=None, q=None, since=None) == set(every)
    assert seqs(action="nothing.like.it") == set()


def test_lists_neither_skip_nor_repeat_while_events_come_in(log: AuditLog) -> None:
    log.append(numbered(1100))
    seen: list[int] = []
    for event in log.list():
        if len(seen) in (100, 600):
            log.append(numbered(50, prefix=f"later-{len(seen)}"))
        seen.append(event.seq)
    assert [seq for seq in seen if seq < 1100] == list(range(1099, -1, -1))
    assert len(set(seen)) == len(seen)


def test_a_tail_without_follow_ends_at_the_head(log: AuditLog) -> None:
    assert list(log.tail(follow=False)) == []
    log.append(numbered(700))
    assert [event.seq for event in log.tail(follow=False)] == list(range(700))
    assert [event.seq for event in log.tail(698, follow=False)] == [698, 699]
    assert list(log.tail(10_000, follow=False)) == []


def test_a_tail_waits_for_more_and_ends_when_the_log_is_closed(log_url: str) -> None:
    log = AuditLog.open(log_url)
    seen: list[int] = []
    ended: list[BaseException] = []

    def follow() -> None:
        try:
            for event in log.tail(1):
                seen.append(event.seq)
        except ValueError as error:
            ended.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    for number in range(5):
        log.append(numbered(1, prefix=f"p{number}"))
    until(lambda: seen == [1, 2, 3, 4])
    log.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [str(error) for error in ended] == ["the log is closed"]


def test_verify_recomputes_the_log_and_reports_progress(log: AuditLog) -> None:
    log.append(numbered(1200))
    counts: list[int] = []
    result = log.verify(progress=counts.append, head=log.head())
    assert result and result.ok
    assert (result.verified, result.finding, result.anomalies, result.problem) == (1200, None, (), None)
    assert result.head == log.head()
    assert counts == sorted(counts) and counts[-1] == 1200
    assert log.verify(head=str(log.head())).ok
    longer = f"1200:{'0' * 64}"
    cut = log.verify(head=longer)
    assert not cut and cut.finding is not None
    assert (cut.finding.kind, cut.finding.seq) == ("cut", 1200)
    assert cut.problem == str(cut.finding)


def test_the_callback_of_verify_may_raise_and_may_use_the_log(log: AuditLog) -> None:
    log.append(numbered(600))

    def stop(_: int) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        log.verify(progress=stop)
    heads: list[int] = []
    assert log.verify(progress=lambda _: heads.append(log.head().next_seq)).ok
    assert set(heads) == {600}


def test_verify_names_an_altered_row(new_url: Callable[[str], str]) -> None:
    url = new_url("postgres")
    with AuditLog.open(url) as log:
        log.append(numbered(5))
        with psycopg.connect(url) as connection:
            tables = connection.execute(
                "SELECT table_name FROM information_schema.columns WHERE column_name = 'resource_name'"
            ).fetchall()
            ((table,),) = tables
            connection.execute(f"UPDATE {table} SET resource_name = 'forged' WHERE seq = 3".encode())
        result = log.verify()
    assert result.finding is not None
    assert (result.finding.kind, result.finding.seq, result.verified) == ("altered", 3, 3)


def test_the_head_of_an_empty_log(log: AuditLog) -> None:
    head = log.head()
    assert (head.next_seq, head.seq, head.hash, str(head)) == (0, None, bytes(32), "no events")
    assert log.verify(head=head).ok and log.verify(head=str(head)).ok
    log.append(numbered(1))
    assert log.verify(head=str(head)).ok


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_events_and_results_are_pickled(protocol: int) -> None:
    def again(value: object) -> object:
        return pickle.loads(pickle.dumps(value, protocol))

    bare = NewEvent("a.b", actor=Actor.system())
    precise = NewEvent("a.b", actor=Actor.system(), metadata={"b": 1.0, "a": 2**64 - 1, "text": "ü"})
    for new in [bare, precise, *numbered(3)]:
        assert again(new) == new and copy.deepcopy(new) == new
    with AuditLog.open("memory:") as log:
        results: list[object] = [log.head(), log.record("Not A Verb", actor=Actor.anonymous(ip="::1"))]
        results += log.append([*numbered(2), *numbered(1), NewEvent("a.b", actor=Actor.system(), external_id="e-1")])
        results += log.append([NewEvent("a.c", actor=Actor.system(), source="ocis", external_id="e-1")])
        results.append(log.head())
        statuses = {getattr(result, "status", None) for result in results}
        assert statuses == {None, "appended", "duplicate", "conflict"}
        for result in results:
            assert again(result) == result and repr(again(result)) == repr(result)
        for event in log.list():
            read = again(event)
            assert isinstance(read, Event) and read.to_dict() == event.to_dict()
            assert read.to_json() == event.to_json()


def test_pickles_keep_what_a_source_noted() -> None:
    (event,) = dezky.ingest.decode_stalwart(
        b'[{"id": "1", "type": "auth.failed", "createdAt": "when?", "data": {"remoteIp": "x", "accountName": "u"}}]'
    ).events
    again = pickle.loads(pickle.dumps(event))
    assert again == event
    assert event != NewEvent(
        event.action,
        actor=event.actor,
        outcome=event.outcome,
        source=event.source,
        external_id=event.external_id,
        at=event.at,
        metadata=event.metadata,
    )


def test_pickles_reach_a_spawned_process() -> None:
    context = multiprocessing.get_context("spawn")
    with AuditLog.open("memory:") as log, context.Pool(1) as pool:
        log.append(pool.map(_renamed, ["x.y", "y.z"]))
        assert pool.map(_action, list(log.list())) == ["y.z", "x.y"]


def _renamed(action: str) -> NewEvent:
    return NewEvent(action, actor=Actor.user("u-7"), metadata={"process": action})


def _action(event: Event) -> str:
    return event.action


def test_what_is_no_pickle_is_refused() -> None:
    kind, values = NewEvent("a.b", actor=Actor.system()).__reduce__()[1]  # type: ignore[misc]
    restore = NewEvent("a.b", actor=Actor.system()).__reduce__()[0]
    assert callable(restore)
    assert restore(kind, values) == NewEvent("a.b", actor=Actor.system())
    for bad in ((kind, ()), (kind, (*values[:3], "[")), ("Head", (1, b"")), ("Receipt", ("x", 1, "", ())), ("x", ())):
        with pytest.raises((TypeError, ValueError)):
            restore(*bad)


def test_a_durable_log_is_there_when_opened_again(durable_url: str) -> None:
    with AuditLog.open(durable_url) as log:
        log.append(numbered(3))
        head = log.head()
    with AuditLog.open(durable_url) as log:
        assert log.head() == head
        assert log.verify(head=head).ok


def test_a_read_only_log_sees_later_events_and_refuses_to_write(durable_url: str) -> None:
    with AuditLog.open(durable_url) as writer, AuditLog.open(durable_url, read_only=True) as reader:
        assert list(reader.list()) == []
        writer.append(numbered(2))
        assert [event.seq for event in reader.list()] == [1, 0]
        assert reader.verify().ok
        with pytest.raises(ValueError, match=r"^the log is read-only: "):
            reader.record("tenant.created", actor=Actor.system())
        with pytest.raises(ValueError, match=r"^the log is read-only: "):
            reader.append([])
        assert "read-only" in repr(reader)


def test_a_read_only_log_must_exist(tmp_path: Path) -> None:
    with pytest.raises(dezky.errors.ConfigInvalidError, match="there is no such file"):
        AuditLog.open(f"sqlite://{tmp_path}/missing.db", read_only=True)
    with pytest.raises(ValueError, match=r"^spool has no effect"):
        AuditLog.open("memory:", spool="x.spool", read_only=True)


def test_a_closed_log_says_so(log_url: str) -> None:
    log = AuditLog.open(log_url)
    events = log.list()
    arrow = log.to_arrow()
    with log as same:
        assert same is log and not log.closed
    log.close()
    assert log.closed and "closed" in repr(log)
    for use in (
        lambda: log.head(),
        lambda: log.list(),
        lambda: log.tail(),
        lambda: log.verify(),
        lambda: log.to_arrow(),
        lambda: arrow.__arrow_c_stream__(),
        lambda: log.append([]),
        lambda: log.record("a.b", actor=Actor.system()),
        lambda: next(events),
    ):
        with pytest.raises(ValueError, match="^the log is closed$"):
            use()


def test_events_wait_in_the_spool_while_the_store_is_down(
    new_url: Callable[[str], str], tmp_path: Path
) -> None:
    url = new_url("postgres")
    spool = tmp_path / "audit.spool"
    with AuditLog.open(url, spool=spool) as log, psycopg.connect(url) as blocker:
        assert log.record("a.b", actor=Actor.system()).status == "appended"
        tables = blocker.execute(
            "SELECT tablename FROM pg_tables WHERE tablename LIKE 'dezky%' AND schemaname = 'public'"
        ).fetchall()
        blocker.execute(("LOCK TABLE " + ", ".join(name for (name,) in tables)).encode())
        spooled = log.record("c.d", actor=Actor.system())
        assert (spooled.status, spooled.seq) == ("spooled", None)
        blocker.rollback()
        until(lambda: log.head().next_seq == 2)
        (event,) = log.list(action="c.d")
        assert event.id == spooled.id
    with AuditLog.open(url, spool=str(spool)):
        with pytest.raises(dezky.Error, match="spool"):
            AuditLog.open(url, spool=spool)


def test_staged_events_are_relayed_while_the_log_is_open(new_url: Callable[[str], str]) -> None:
    url = new_url("postgres")
    with AuditLog.open(url) as log:
        log.record("a.b", actor=Actor.system())
        with psycopg.connect(url) as connection:
            (columns,) = connection.execute(
                "SELECT array_agg(column_name::text ORDER BY ordinal_position) "
                "FROM information_schema.columns WHERE table_name = 'dezky_outbox'"
            ).fetchall()[0]
        assert columns, "the outbox is a table of the log's schema"
        staged = {
            "v": 1,
            "salt": "07" * 32,
            "event": {
                "id": "01939c5e-6f2a-7000-8000-000000000001",
                "at": "2026-11-21T20:12:21.123Z",
                "receivedAt": "2026-11-21T20:12:21.123Z",
                "actorType": "system",
                "action": "c.d",
                "outcome": "success",
                "source": "platform-api",
                "metadata": {},
            },
        }
        with psycopg.connect(url) as connection:
            assert "event" in columns
            connection.execute("INSERT INTO dezky_outbox (event) VALUES (%s)", [json.dumps(staged)])
        until(lambda: log.head().next_seq == 2)
        (event,) = log.list(action="c.d")
        assert event.id == staged["event"]["id"]  # type: ignore[index]


def test_many_threads_share_a_log(log: AuditLog) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(20):
                log.record("a.b", actor=Actor.user(f"u-{number}"), external_id=f"{number}-{step}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert log.verify().verified == 160
    shared = log.tail(follow=False)
    seen: list[int] = []
    threads = [threading.Thread(target=lambda: seen.extend(e.seq for e in shared)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(160))


def test_events_are_light_immutable_values() -> None:
    with AuditLog.open("memory:") as log:
        log.append(numbered(2))
        (second, first) = log.list()
        (again, _) = log.list()
    assert second == again and second != first and hash(second) == hash(again)
    assert len({first, second, again}) == 2
    assert second != "x"
    with pytest.raises(AttributeError):
        second.action = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Event()
    assert repr(second) == (
        "Event(seq=1, at='2026-11-21T20:12:22.123Z', action='file.uploaded', "
        "actor=Actor('user', 'u-1', email='U1@acme.test'), resource_type='file', resource_id='1', "
        "tenant_slug='acme', partner_slug='nordic', source='ocis')"
    )
    new = numbered(1)[0]
    assert new == numbered(1)[0] and new != numbered(2)[1]
    assert repr(new).startswith("NewEvent('tenant.suspended', actor=Actor('user', 'u-0', ")
    assert new.metadata == {"number": 0} and new.at == T0 and new.outcome == "denied"
    with pytest.raises(TypeError, match="unhashable"):
        hash(new)


def test_actors_are_values() -> None:
    actor = Actor("user", "u-7", email="a@b", ip="203.0.113.7")
    assert actor == Actor.user("u-7", email="a@b", ip=ipaddress.IPv4Address("203.0.113.7"))
    assert (actor.type, actor.id, actor.email, actor.ip) == ("user", "u-7", "a@b", "203.0.113.7")
    assert hash(actor) == hash(copy.deepcopy(actor)) and actor != Actor.system()
    assert pickle.loads(pickle.dumps(actor)) == actor
    assert eval(repr(actor)) == actor
    assert [Actor.operator("x").type, Actor.service("x").type] == ["operator", "service"]
    assert [Actor.system().type, Actor.anonymous(ip="::1").type] == ["system", "anonymous"]
    assert "p4ss" not in repr(actor)


def test_a_password_in_a_url_is_never_shown() -> None:
    with pytest.raises(dezky.Error) as caught:
        AuditLog.open("postgres://dezky:p4ss@127.0.0.1:1/x?acquire_timeout_seconds=1")
    assert "p4ss" not in str(caught.value)
    assert isinstance(caught.value, ConnectionError) and caught.value.code == "store_unavailable"

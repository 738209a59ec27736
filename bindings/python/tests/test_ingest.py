"""Signatures, decoders and action maps."""

from __future__ import annotations

import base64
import csv
import datetime
import hashlib
import hmac
import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest

import dezky
from dezky.errors import BodyInvalidError, ConfigInvalidError, SignatureInvalidError
from dezky.ingest import (
    Batch,
    Decoded,
    Quarantined,
    append,
    authentik_action,
    decode_authentik,
    decode_ocis,
    decode_stalwart,
    ocis_action,
    ocis_class,
    stalwart_action,
    verify_signature,
)

UTC = datetime.timezone.utc
DATA = Path(__file__).parents[3] / "dezky-ingest" / "tests" / "data"
NOW = datetime.datetime(2026, 12, 1, tzinfo=UTC)
STALWART: dict[str, Any] = json.loads((DATA / "stalwart" / "manifest.json").read_bytes())


@pytest.mark.parametrize("example", STALWART["examples"], ids=lambda example: str(example["file"]))
@pytest.mark.parametrize("form", ["base64", "hex"])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_signatures_of_stalwart_are_accepted_and_others_are_not(
    example: dict[str, str], form: str, kind: type
) -> None:
    body = (DATA / "stalwart" / example["file"]).read_bytes()
    key = STALWART["key"]
    verify_signature(kind(body), example[form], key)
    verify_signature(kind(body), {"X-Signature": example[form], "Host": "x"}, ("other", key.encode()))
    verify_signature(kind(body), [(b"X-SIGNATURE", example[form].encode())], [key], scheme="stalwart")
    wrong: list[tuple[bytes, Any, Any]] = [
        (body + b"\n", example[form], key),
        (body, example[form][:-2] + "A=", key),
        (body, "", key),
        (body, None, key),
        (body, {}, key),
        (body, example[form], key + "x"),
        (body, example[form], [key + "x", "y"]),
    ]
    for wrong_body, header, secrets in wrong:
        with pytest.raises(SignatureInvalidError) as caught:
            verify_signature(wrong_body, header, secrets)
        assert key not in str(caught.value)
        assert isinstance(caught.value, PermissionError)


def test_github_signatures() -> None:
    header = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    secret = "It's a Secret to Everybody"
    verify_signature(b"Hello, World!", header, secret, scheme="github")
    with pytest.raises(SignatureInvalidError):
        verify_signature(b"Hello, World!", header[7:], secret, scheme="github")


def test_stripe_signatures_hold_for_the_tolerance() -> None:
    at = int(NOW.timestamp())
    digest = hmac.new(b"whsec_x", b"%d.{}" % at, hashlib.sha256).hexdigest()
    header = f"t={at},v1={digest},v0=00"

    def verify(**more: Any) -> None:
        verify_signature(b"{}", header, "whsec_x", scheme="stripe", **more)

    late = NOW + datetime.timedelta(seconds=301)
    verify(now=NOW)
    verify(now=late, tolerance=302)
    verify(now=late, tolerance=datetime.timedelta(minutes=6))
    for now, tolerance in [(late, 300), (late, 1.5), (NOW - datetime.timedelta(seconds=301), 300)]:
        with pytest.raises(SignatureInvalidError, match="away from our clock"):
            verify(now=now, tolerance=tolerance)
    with pytest.raises(SignatureInvalidError, match="away from our clock"):
        verify(now=late)


def test_standard_webhooks_need_all_headers() -> None:
    key = b"k" * 24
    at = str(int(NOW.timestamp()))
    digest = base64.b64encode(hmac.digest(key, f"msg_1.{at}.".encode() + b"{}", "sha256")).decode()
    headers = {"webhook-id": "msg_1", "webhook-timestamp": at, "webhook-signature": f"v1,{digest}"}
    secret = "whsec_" + base64.b64encode(key).decode()
    for form in (secret, key):
        verify_signature(b"{}", headers, form, scheme="standard-webhooks", now=NOW)
    with pytest.raises(ValueError, match="^header must be all headers"):
        verify_signature(b"{}", headers["webhook-signature"], secret, scheme="standard-webhooks")
    with pytest.raises(SignatureInvalidError, match="webhook-id"):
        verify_signature(b"{}", {**headers, "webhook-id": ""}, secret, scheme="standard-webhooks", now=NOW)
    with pytest.raises(ConfigInvalidError, match="24 to 64"):
        verify_signature(b"{}", headers, "whsec_AAAA", scheme="standard-webhooks")


def test_a_secret_may_be_any_bytes_but_not_empty() -> None:
    key = bytes(range(128, 256))
    verify_signature(b"x", hmac.new(key, b"x", hashlib.sha256).hexdigest(), key)
    for empty in ("", " ", b"", b"\n", ["a", ""]):
        with pytest.raises(ConfigInvalidError, match="empty or blank"):
            verify_signature(b"x", "0" * 64, empty)
    with pytest.raises(ValueError, match="^secrets is empty"):
        verify_signature(b"x", "0" * 64, [])


@pytest.mark.parametrize(
    ("arguments", "named", "error", "message"),
    [
        (("{}", "x", "s"), {}, TypeError, "^body must be the raw body as bytes"),
        ((b"", 7, "s"), {}, TypeError, "^header must be"),
        ((b"", [("a",)], "s"), {}, TypeError, "^header must be"),
        ((b"", [("a", 1)], "s"), {}, TypeError, "^each name and value in header must be"),
        ((b"", "x", 7), {}, TypeError, "^secrets must be"),
        ((b"", "x", [7]), {}, TypeError, "^each of secrets must be"),
        ((b"", "x", "\ud800"), {}, ValueError, "^secrets contains a lone surrogate"),
        ((b"", "x", "s"), {"scheme": "rsa"}, ValueError, "^scheme must be"),
        ((b"", "x", "s"), {"scheme": 7}, TypeError, "^scheme must be a str"),
        ((b"", "x", "s"), {"tolerance": 5}, ValueError, "^tolerance needs a scheme that signs a time"),
        ((b"", "x", "s"), {"scheme": "stripe", "tolerance": 0}, ValueError, "^tolerance must be 1 to"),
        ((b"", "x", "s"), {"scheme": "stripe", "tolerance": float("nan")}, ValueError, "^tolerance"),
        ((b"", "x", "s"), {"scheme": "stripe", "tolerance": True}, TypeError, "^tolerance"),
        ((b"", "x", "s"), {"scheme": "stripe", "tolerance": 10**400}, ValueError, "^tolerance is too large"),
        ((b"", "x", "s"), {"now": datetime.datetime(2026, 1, 1)}, ValueError, "^now has no time zone"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: tuple[Any, ...], named: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        verify_signature(*arguments, **named)


def table(name: str) -> list[dict[str, str]]:
    with open(DATA / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_every_type_of_stalwart_has_its_action_in_any_spelling() -> None:
    rows = table("stalwart/stalwart-events.tsv")
    assert len(rows) > 500
    verbs = 0
    for row in rows:
        kind, verb, note = row["event_id"], row["proposed_verb"], row["note"]
        if kind == "dsn":
            continue
        data: dict[str, Any] = {}
        if note == "only if strict=true":
            data = {"strict": True}
        elif kind == "spam.classify":
            data = {"result": "reject"}
        expected = f"stalwart.{verb or kind.replace('.', '_').replace('-', '_')}"
        verbs += bool(verb)
        for spelling in (kind, kind.replace(".", "-"), kind.replace("-", "_").replace(".", "_").upper()):
            assert stalwart_action(spelling, data) == expected, spelling
    assert verbs == 59
    assert stalwart_action("spam.classify") == "stalwart.spam_classify"
    assert stalwart_action("…") is None
    assert stalwart_action("x" * 1000) == "stalwart." + "x" * 119


def test_every_type_of_ocis_has_its_action() -> None:
    for row in table("ocis/ocis-events.tsv"):
        verb = row["proposed dotted verb"].split(" ")[0]
        if row["mutation or read"] == "mutation" and verb.startswith("ocis."):
            kind = row["go event type"]
            assert ocis_class(kind) in ("mutation", "optional"), kind
            if ocis_class(kind) == "mutation":
                assert ocis_action(kind) == verb, kind
    assert ocis_action("file_unshared") == "ocis.share_removed"
    assert ocis_action("file_unshared", share_type="link") == "ocis.link_removed"
    assert ocis_action("", has_share_owner=True) == "ocis.share_updated"
    assert ocis_class("", has_share_with=True) == "optional"
    assert ocis_action("public_link_accessed", success=False) == "ocis.link_access_failed"
    assert (ocis_class("UserSignedIn"), ocis_class("public_link_accessed"), ocis_class("x")) == (
        "login",
        "read",
        "unknown",
    )


def test_every_action_of_authentik() -> None:
    assert authentik_action("PasswordSet") == "authentik.password_changed"
    assert authentik_action("model-updated") == "authentik.model_updated"
    assert authentik_action("custom_Risk flagged!") == "authentik.custom_risk_flagged"
    assert authentik_action("") == "authentik.unknown"


def test_a_webhook_of_stalwart_becomes_events_without_secrets() -> None:
    body = (DATA / "stalwart" / "03-v0.15.5-mixed-batch.json").read_bytes()
    decoded = decode_stalwart(body, received_at=NOW)
    sent = json.loads(body)["events"]
    assert len(decoded) == len(decoded.events) == len(list(decoded)) == len(sent)
    assert [event.action for event in decoded] == [
        stalwart_action(event["type"], event["data"]) for event in sent
    ]
    assert all(event.source == "stalwart" and event.external_id for event in decoded)
    secret = b'[{"type":"x.y","createdAt":"2026-12-01T00:00:00Z","data":{"contents":"S3","url":"/?token=S3"}}]'
    [event] = decode_stalwart(secret).events
    assert "S3" not in repr(event) + json.dumps(event.metadata)


def test_a_retry_of_stalwart_with_other_ids_gives_the_same_events() -> None:
    first = decode_stalwart((DATA / "stalwart" / "05a-v0.16.18-first-delivery.json").read_bytes())
    again = decode_stalwart(
        (DATA / "stalwart" / "05b-v0.16.18-retry-same-events-new-ids.json").read_bytes()
    )
    ids = [event.external_id for event in first]
    assert ids == [event.external_id for event in again]
    other = decode_stalwart(
        (DATA / "stalwart" / "05a-v0.16.18-first-delivery.json").read_bytes(), source="stalwart:eu2"
    )
    assert ids != [event.external_id for event in other]


def test_what_is_no_event_of_stalwart_is_quarantined_alone() -> None:
    for body, reason in [(b"{oops", "not_json"), (b"{}", "no_events"), (b"\xff\x00", "not_json")]:
        decoded = decode_stalwart(body)
        assert [item.reason for item in decoded.quarantined] == [reason]
        assert (len(decoded), bool(decoded)) == (0, True)
    decoded = decode_stalwart(b'[7, {"type": "x"}, {"secret": "S3S3S3"}]', client_ip="203.0.113.7")
    assert [item.reason for item in decoded.quarantined] == ["not_an_object", "no_type"]
    assert all(b"S3S3S3" not in item.raw for item in decoded.quarantined)
    assert decoded.events[0].actor.ip == "203.0.113.7"
    v6 = decode_stalwart(b'[{"type": "x"}]', client_ip=ipaddress.ip_address("2001:db8::1"))
    assert v6.events[0].actor.ip == "2001:db8::1"
    assert not decode_authentik(b"[]")


def test_a_page_of_authentik_becomes_events() -> None:
    page = (DATA / "authentik" / "page.json").read_bytes()
    decoded = decode_authentik(page)
    results = json.loads(page)["results"]
    assert [event.external_id for event in decoded] == [result["pk"] for result in results]
    assert [event.action for event in decoded] == [authentik_action(result["action"]) for result in results]
    events = decode_authentik((DATA / "authentik" / "events.json").read_bytes(), source="authentik:eu2")
    assert {event.source for event in events} == {"authentik:eu2"}
    mixed = decode_authentik(b'[7, {"pk": "1", "created": "soon", "action": "x", "password": "S3S3S3"}]')
    assert [item.reason for item in mixed.quarantined] == ["not_an_object", "no_created"]
    assert b"S3S3S3" not in mixed.quarantined[1].raw
    for body in (b"", b"<html>", b"{}", b"7", b'"text"'):
        with pytest.raises(BodyInvalidError, match="^page is neither"):
            decode_authentik(body)


def test_lines_of_ocis_become_events_reads_are_counted_and_the_rest_is_quarantined() -> None:
    lines = (DATA / "ocis" / "event-shape.log").read_bytes()
    decoded = decode_ocis(lines, received_at=NOW)
    assert decoded.skipped >= 1
    assert all(event.action.startswith("ocis.") for event in decoded)
    assert len(decoded.events) + len(decoded.quarantined) + decoded.skipped >= lines.count(b"\n")
    unknown = decode_ocis(b'{"type": "Novel"}\n{"Action": "file_create"}\n\xff\n')
    assert [item.reason for item in unknown.quarantined] == ["unknown_type", "not_json"]
    assert [event.action for event in unknown] == ["ocis.file_uploaded"]


def test_a_file_of_ocis_in_parts_has_the_ids_of_the_whole() -> None:
    whole = (DATA / "ocis" / "first-generation.log").read_bytes()
    first_line = whole.split(b"\n", 1)[0]
    middle = whole.index(b"\n", len(whole) // 2) + 1
    parts = [
        decode_ocis(whole[:middle], received_at=NOW),
        decode_ocis(whole[middle:], offset=middle, first_line=first_line, received_at=NOW),
    ]
    ids = [event.external_id for event in decode_ocis(whole, received_at=NOW)]
    assert len(ids) > 10
    assert [event.external_id for part in parts for event in part] == ids
    assert len(set(ids)) == len(ids)
    with pytest.raises(ValueError, match="^first_line is needed"):
        decode_ocis(whole[middle:], offset=middle)


def test_optional_events_of_ocis_come_on_request() -> None:
    line = b'{"Action": "share_accepted", "Time": "2026-11-21T00:00:00Z"}\n'
    assert (decode_ocis(line).skipped, len(decode_ocis(line))) == (1, 0)
    [event] = decode_ocis(line, share_accepted=True).events
    assert event.action == "ocis.share_accepted"


def test_decoded_events_are_appended_once(log: dezky.AuditLog) -> None:
    body = b'[{"id": "7", "type": "auth.failed", "data": {"accountName": "ada@acme.example"}}, 7]'
    decoded = decode_stalwart(body)
    assert decoded.tenant_hints == [[("domain", "acme.example")]]
    first, again = append(log, decoded), append(log, decode_stalwart(body))
    assert (first.stored, first.duplicates, first.quarantined, first.received) == (1, 0, 1, 2)
    assert (again.stored, again.duplicates, again.received) == (0, 1, 2)
    actions = [event.action for event in log.list()]
    assert sorted(actions) == ["ingest.quarantined", "stalwart.auth_failed"]
    [event] = log.list(action="stalwart.")
    assert event.metadata["_dezky"]["tenantBy"] == "none"


async def test_decoded_events_are_appended_with_asyncio(log_url: str) -> None:
    async with await dezky.AsyncAuditLog.open(log_url) as log:
        summary = await append(log, decode_stalwart(b'[{"id": "7", "type": "auth.failed"}]'))
        assert summary.stored == 1


def test_a_body_of_many_events_is_appended_in_parts(new_url: Callable[[str], str]) -> None:
    # More events than one part takes.
    body = json.dumps([{"id": f"e{n}", "type": "x.y"} for n in range(4_100)] + [7] * 50).encode()
    with dezky.AuditLog.open(new_url("sqlite")) as log:
        summary = append(log, decode_stalwart(body))
        assert (summary.stored, summary.quarantined) == (4_100, 50)
        assert append(log, decode_stalwart(body)).received == 4_150


def test_quarantined_items_and_batches_refuse_what_they_cant_hold() -> None:
    item = Quarantined("odd", raw=memoryview(b"x" * 70_000), source="crm:eu", at=NOW)
    assert (len(item.raw), item.source, item.at) == (64 << 10, "crm:eu", NOW)
    assert item == Quarantined("odd", raw=b"x" * 70_000, source="crm:eu", at=NOW, key=item.key)
    assert hash(item) == hash(Quarantined("other", key=item.key, source="crm:eu"))
    assert "x" * 10 not in repr(item)
    assert Quarantined("a", raw=b"1").key != Quarantined("a", raw=b"2").key
    for named, message in [
        ({"reason": ""}, "^reason"),
        ({"reason": "a", "key": ""}, "^key"),
        ({"reason": "a", "source": "a b"}, "^source must be"),
        ({"reason": "a", "source": "platform-api"}, "^source is the platform's own"),
    ]:
        with pytest.raises(ValueError, match=message):
            Quarantined(**named)  # type: ignore[arg-type]
    for events in ("abc", b"abc", {"action": "x"}):
        with pytest.raises(TypeError, match="^events must be an iterable of events"):
            Batch(events, "1")  # type: ignore[arg-type]
    assert not issubclass(Decoded, list)

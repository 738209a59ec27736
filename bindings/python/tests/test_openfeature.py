"""dezky's flags through OpenFeature's SDK."""

from __future__ import annotations

import asyncio
import gc
import queue
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server_program import TOKEN, Server, cli, serving, set_flag
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext, clear_evaluation_context
from openfeature.event import EventDetails, ProviderEvent
from openfeature.exception import ErrorCode, ProviderFatalError, ProviderNotReadyError
from openfeature.flag_evaluation import Reason
from openfeature.provider import ProviderStatus

import dezky
from dezky import AsyncLiveFlags, FlagSet, LiveFlags
from dezky.openfeature import DezkyProvider

FLAGS: list[dict[str, Any]] = [
    {"key": "always", "state": "on"},
    {"key": "never"},
    {"key": "pro", "state": "targeted", "scope": {"plans": ["pro"]}},
    {"key": "half", "state": "rollout", "pct": 50, "options": {"pctHundredths": 25}},
    {"key": "all", "state": "rollout", "pct": 100},
    {"key": "live", "state": "on", "options": {"requireActiveTenant": True}},
]
ACME = EvaluationContext("t-1", {"plan": "pro", "email": "ana@acme.example", "tenantActive": True})


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    api.clear_providers()
    clear_evaluation_context()


@pytest.fixture
def client() -> OpenFeatureClient:
    api.set_provider_and_wait(DezkyProvider(FlagSet.from_json(FLAGS)))
    return api.get_client()


def filled(url: str, folder: Path) -> str:
    cli(folder, url, "migrate")
    set_flag(folder, url, "chat", "--create", "--state", "rollout", "--pct", "50")
    return url


class Events:
    """The events of a client, which the SDK tells on threads of its own."""

    def __init__(self, client: OpenFeatureClient) -> None:
        self._queue: queue.Queue[tuple[ProviderEvent, EventDetails]] = queue.Queue()
        for event in ProviderEvent:
            client.add_handler(event, lambda details, event=event: self._queue.put((event, details)))  # type: ignore[misc]

    def next(self, event: ProviderEvent) -> EventDetails:
        """Waits for an event; earlier ones of other kinds are dropped."""
        while True:
            kind, details = self._queue.get(timeout=60)
            # At first, the SDK's own provider is ready.
            if kind == event and details.provider_name == "dezky":
                return details


def test_decisions_are_told_in_openfeatures_terms(client: OpenFeatureClient) -> None:
    bucket = dezky.bucket("t-1", "half")
    for key, context, value, reason, ours in [
        ("always", ACME, True, Reason.STATIC, "on"),
        ("never", ACME, False, Reason.DISABLED, "off"),
        ("pro", ACME, True, Reason.TARGETING_MATCH, "targeted"),
        ("pro", EvaluationContext("t-1"), False, Reason.DEFAULT, "scope_mismatch(plan)"),
        ("live", ACME, True, Reason.STATIC, "on"),
        ("live", EvaluationContext("t-1"), False, Reason.DEFAULT, "inactive_tenant"),
    ]:
        details = client.get_boolean_details(key, not value, context)
        assert (details.value, details.reason, details.error_code) == (value, reason, None), key
        assert details.variant == ("on" if value else "off")
        assert details.flag_metadata["reason"] == ours
    half = client.get_boolean_details("half", False, ACME)
    assert (half.reason, half.value) == (Reason.SPLIT, bucket <= 50)
    assert (half.flag_metadata["bucket"], half.flag_metadata["pct"]) == (bucket, 50.25)
    assert api.get_provider_metadata().name == "dezky"


def test_the_targeting_key_is_the_tenants_id(client: OpenFeatureClient) -> None:
    for n in range(50):
        value = client.get_boolean_value("half", False, EvaluationContext(f"t-{n}"))
        assert value == (dezky.fine_bucket(f"t-{n}", "half") < 5025)
    # From the context of the program, too.
    api.set_evaluation_context(EvaluationContext("t-1", {"plan": "pro"}))
    assert client.get_boolean_value("pro", False) is True


@pytest.mark.parametrize(
    ("key", "context", "code"),
    [
        ("no-such-flag", ACME, ErrorCode.FLAG_NOT_FOUND),
        ("no-such-flag", EvaluationContext(), ErrorCode.FLAG_NOT_FOUND),
        ("half", EvaluationContext(), ErrorCode.TARGETING_KEY_MISSING),
        ("half", EvaluationContext(""), ErrorCode.TARGETING_KEY_MISSING),
        ("pro", EvaluationContext("t-1", {"plan": 7}), ErrorCode.INVALID_CONTEXT),
        ("live", EvaluationContext("t-1", {"tenantActive": "yes"}), ErrorCode.INVALID_CONTEXT),
    ],
)
def test_errors_have_their_codes_and_give_the_default(
    client: OpenFeatureClient, key: str, context: EvaluationContext, code: ErrorCode
) -> None:
    for default in (True, False):
        details = client.get_boolean_details(key, default, context)
        assert (details.value, details.reason, details.error_code) == (default, Reason.ERROR, code)
        assert details.error_message


def test_what_does_not_depend_on_the_unknown_is_decided(client: OpenFeatureClient) -> None:
    for context in (EvaluationContext(), EvaluationContext("t-1", {"environment": 7})):
        assert client.get_boolean_details("never", True, context).value is False
        assert client.get_boolean_details("always", False, context).value is True
    anybody = client.get_boolean_details("all", False)
    assert (anybody.value, anybody.reason) == (True, Reason.SPLIT)
    assert anybody.flag_metadata["reason"] == "full_rollout"


def test_every_flag_is_a_bool(client: OpenFeatureClient) -> None:
    for details in (
        client.get_string_details("always", "x", ACME),
        client.get_integer_details("always", 7, ACME),
        client.get_float_details("always", 7.5, ACME),
        client.get_object_details("always", {"a": 1}, ACME),
    ):
        assert details.error_code == ErrorCode.TYPE_MISMATCH
        assert details.value in ("x", 7, 7.5, {"a": 1})


async def test_async_resolution_agrees(client: OpenFeatureClient) -> None:
    for flag in FLAGS:
        expected = client.get_boolean_details(flag["key"], False, ACME)
        assert await client.get_boolean_details_async(flag["key"], False, ACME) == expected
    missing = await client.get_boolean_details_async("no-such-flag", True, ACME)
    assert (missing.value, missing.error_code) == (True, ErrorCode.FLAG_NOT_FOUND)
    text = await client.get_string_details_async("always", "x", ACME)
    assert text.error_code == ErrorCode.TYPE_MISMATCH


@pytest.mark.parametrize("engine", ["sqlite", "postgres", "mongodb"])
def test_changes_of_a_store_are_events(engine: str, new_url: Callable[[str], str], tmp_path: Path) -> None:
    url = filled(new_url(engine), tmp_path)
    client = api.get_client("store")
    events = Events(client)
    api.set_provider_and_wait(DezkyProvider(url, poll_interval=0.1), "store")
    events.next(ProviderEvent.PROVIDER_READY)
    assert client.get_boolean_details("chat", False, ACME).reason == Reason.SPLIT
    set_flag(tmp_path, url, "chat", "--state", "on")
    changed = events.next(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED)
    assert changed.flags_changed == ["chat"] and isinstance(changed.metadata["revision"], int)
    assert client.get_boolean_value("chat", False, ACME) is True


def test_a_server_that_goes_away_and_comes_back_is_told(new_url: Callable[[str], str], tmp_path: Path) -> None:
    url = filled(new_url("sqlite"), tmp_path)
    server = Server(tmp_path, url)
    client = api.get_client("server")
    events = Events(client)
    api.set_provider_and_wait(DezkyProvider(server.url, token=TOKEN, poll_interval=0.1), "server")
    before = client.get_boolean_details("chat", False, ACME)
    assert before.reason == Reason.SPLIT and before.error_code is None
    server.stop()
    assert events.next(ProviderEvent.PROVIDER_STALE).message
    assert client.get_provider_status() == ProviderStatus.STALE
    stale = client.get_boolean_details("chat", not before.value, ACME)
    assert stale.value == before.value
    again = Server(tmp_path, url, listen=server.address)
    try:
        events.next(ProviderEvent.PROVIDER_READY)
        assert client.get_provider_status() == ProviderStatus.READY
        set_flag(tmp_path, url, "chat", "--state", "on")
        assert "revision" in events.next(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED).metadata
        assert asyncio.run(client.get_boolean_value_async("chat", False, ACME)) is True
    finally:
        again.stop()


def test_a_rejected_token_is_an_error_event(new_url: Callable[[str], str], tmp_path: Path) -> None:
    url = filled(new_url("sqlite"), tmp_path)
    with serving(tmp_path, url) as server:
        client = api.get_client("token")
        events = Events(client)
        with pytest.raises(ProviderFatalError):
            api.set_provider_and_wait(DezkyProvider(server.url, token="wrong-token-0123456789"), "token")
        assert events.next(ProviderEvent.PROVIDER_ERROR).error_code == ErrorCode.PROVIDER_FATAL
        assert client.get_provider_status() == ProviderStatus.FATAL
        assert client.get_boolean_value("chat", True, ACME) is True
    with pytest.raises(ProviderNotReadyError):
        api.set_provider_and_wait(DezkyProvider(server.url, token=TOKEN), "away")


def test_flags_of_the_caller_stay_open(new_url: Callable[[str], str], tmp_path: Path) -> None:
    url = filled(new_url("sqlite"), tmp_path)
    with LiveFlags.open(url, poll_interval=0.1) as flags:
        api.set_provider_and_wait(DezkyProvider(flags), "own")
        client = api.get_client("own")
        events = Events(client)
        set_flag(tmp_path, url, "chat", "--state", "on")
        events.next(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED)
        api.clear_providers()
        assert flags.evaluate("chat", tenant_id="t-1").value


async def test_the_async_twin_serves_too(new_url: Callable[[str], str], tmp_path: Path) -> None:
    url = filled(new_url("sqlite"), tmp_path)
    async with await AsyncLiveFlags.open(url, poll_interval=0.1) as flags:
        provider = DezkyProvider(flags)
        provider.initialize(EvaluationContext())
        expected = flags.current().evaluate("chat", tenant_id="t-1").value
        assert provider.resolve_boolean_details("chat", not expected, ACME).value is expected
        assert (await provider.resolve_boolean_details_async("chat", not expected, ACME)).value is expected
        provider.shutdown()
        # The caller's.
        assert (await flags.evaluate("chat", tenant_id="t-1")).value is expected


def test_a_provider_that_nobody_uses_goes_away() -> None:
    with LiveFlags.open("memory:") as flags:
        provider = DezkyProvider(flags)
        provider.initialize(EvaluationContext())
        gone = weakref.ref(provider)
        del provider
        gc.collect()
        assert gone() is None


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="flags must be a FlagSet, LiveFlags, AsyncLiveFlags or a URL, not int"):
        DezkyProvider(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="token has no effect without a URL"):
        DezkyProvider(FlagSet.from_json([]), token="x")
    contexts: tuple[Any, ...] = (7, {}, "t-1")
    for context in contexts:
        with pytest.raises(TypeError, match="^evaluation_context must be an EvaluationContext or None, not "):
            DezkyProvider(FlagSet.from_json(FLAGS)).resolve_boolean_details("always", False, context)
    with pytest.raises(ProviderFatalError, match="url has an unknown scheme"):
        DezkyProvider("mysql://x").initialize(EvaluationContext())
    with pytest.raises(ProviderNotReadyError, match="not initialized"):
        DezkyProvider("memory:").resolve_boolean_details("chat", False)

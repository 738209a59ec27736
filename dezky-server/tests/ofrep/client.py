"""OpenFeature's OFREP provider for Python against a server that the test has filled."""

import json
import os
import time
import urllib.request

from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

URL, TOKEN = os.environ["OFREP_URL"], os.environ["OFREP_TOKEN"]
SPLIT = os.environ["OFREP_SPLIT"] == "true"


def client(domain: str, headers: dict[str, str]):
    api.set_provider(OFREPProvider(URL, headers_factory=lambda: headers), domain)
    return api.get_client(domain)


def patch(key: str, change: dict) -> None:
    request = urllib.request.Request(
        f"{URL}/flags/{key}",
        json.dumps(change).encode(),
        {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        method="PATCH",
    )
    urllib.request.urlopen(request).close()


def main() -> None:
    acme = EvaluationContext("t-acme", {"environment": "production"})
    by_key = client("key", {"X-API-Key": TOKEN})
    for key, value, reason in [
        ("always", True, Reason.STATIC),
        ("never", False, Reason.DISABLED),
        ("pro-only", True, Reason.TARGETING_MATCH),
        ("nobody", False, Reason.DEFAULT),
        ("staging", False, Reason.DEFAULT),
        ("some", SPLIT, Reason.SPLIT),
        ("live", True, Reason.STATIC),
    ]:
        # The default is the other value.
        details = by_key.get_boolean_details(key, not value, acme)
        assert (details.value, details.reason) == (value, reason), details
        assert details.variant == ("on" if value else "off"), details
        assert "revision" in details.flag_metadata, details
    basic = EvaluationContext("t-acme", {"plan": "basic"})
    assert by_key.get_boolean_value("pro-only", True, basic) is False

    def error(asked, key, context):
        details = asked.get_boolean_details(key, True, context)
        assert details.value is True, details
        return details.error_code

    assert error(by_key, "no-such-flag", acme) == ErrorCode.FLAG_NOT_FOUND
    assert error(by_key, "pro-only", EvaluationContext()) == ErrorCode.TARGETING_KEY_MISSING
    wrong_type = EvaluationContext("t-acme", {"plan": 7})
    assert error(by_key, "pro-only", wrong_type) == ErrorCode.INVALID_CONTEXT
    # Off stays off for a context that lacks what other flags need.
    for context in (EvaluationContext(), wrong_type):
        assert by_key.get_boolean_value("never", True, context) is False
    wrong_token = client("wrong", {"Authorization": "Bearer wrong"})
    assert error(wrong_token, "always", acme) == ErrorCode.GENERAL
    text = by_key.get_string_details("always", "text", acme)
    assert text.error_code == ErrorCode.TYPE_MISMATCH, text

    by_bearer = client("bearer", {"Authorization": f"Bearer {TOKEN}"})
    assert by_bearer.get_boolean_value("never", True, acme) is False
    patch("never", {"state": "on"})
    deadline = time.monotonic() + 30
    while not by_bearer.get_boolean_value("never", False, acme):
        assert time.monotonic() < deadline, "the change is not seen"
    print("all is well")


main()

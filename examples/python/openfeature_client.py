"""Flags through OpenFeature, decided in this process, and an event when they change.

    python examples/python/openfeature_client.py

Needs dezky and `pip install openfeature-sdk`, and nothing else: the flags come from a list. With the URL of
a store or server instead (`DezkyProvider("postgres://…")`, `DezkyProvider("https://…", token=…)`) the
provider follows it, and its changes are events.
"""

from typing import Any

from openfeature import api
from openfeature.evaluation_context import EvaluationContext

import dezky
from dezky.openfeature import DezkyProvider

FLAGS: list[dict[str, Any]] = [
    {"key": "chat", "state": "rollout", "pct": 25},
    {"key": "portal", "state": "targeted", "scope": {"plans": ["pro"]}},
]


def main() -> None:
    """Decides for a few tenants."""
    api.set_provider_and_wait(DezkyProvider(dezky.FlagSet.from_json(FLAGS)))
    client = api.get_client()

    # The targeting key is the tenant's id.
    for tenant in ("t-1", "t-2", "t-3", "t-4"):
        details = client.get_boolean_details("chat", False, EvaluationContext(tenant))
        print(f"chat for {tenant}: {details.value}, {details.reason}, {details.flag_metadata['reason']}")
        assert details.value == (dezky.bucket(tenant, "chat") < 25)

    pro = client.get_boolean_value("portal", False, EvaluationContext("t-1", {"plan": "pro"}))
    free = client.get_boolean_value("portal", False, EvaluationContext("t-1", {"plan": "free"}))
    print(f"portal on plan pro: {pro}, on plan free: {free}")
    assert pro and not free

    missing = client.get_boolean_details("no-such-flag", True, EvaluationContext("t-1"))
    print(f"no-such-flag: the default {missing.value}, because of {missing.error_code}")
    assert missing.value and missing.error_code == "FLAG_NOT_FOUND"
    api.shutdown()


if __name__ == "__main__":
    main()

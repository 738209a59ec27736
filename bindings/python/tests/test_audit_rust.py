"""A log written by Rust is read by Python, and the other way round, with identical heads.

The Rust side is the server.
"""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from server_program import BINARY, TOKEN, cli, environment, serving

from dezky import Actor, AuditLog, NewEvent

def verified_by_rust(folder: Path, url: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(cli(folder, url, "verify", "--json"))
    return report


def fetched(address: str, body: object = None) -> Any:
    """Sends a request: with a body, that of new events."""
    request = urllib.request.Request(
        f"{address}/audit" if body is not None else f"{address}/audit?limit=500",
        json.dumps(body).encode() if body is not None else None,
        {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"},
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def new_events(count: int) -> list[NewEvent]:
    return [
        NewEvent(
            "tenant.suspended",
            actor=Actor.user(f"u-{n}", email="Ünï@acme.test", ip="2001:DB8::1"),
            resource_name="Übersicht \U0001f4c4",
            tenant_slug="acme",
            external_id=f"x-{n}" if n % 2 else None,
            metadata={"float": 1e21, "small": 5e-324, "text": "\u2028", "n": n},
        )
        for n in range(count)
    ]


def test_a_log_written_by_python_is_verified_and_listed_by_rust(durable_url: str, tmp_path: Path) -> None:
    with AuditLog.open(durable_url) as log:
        log.append(new_events(50))
        log.record("Repaired!", actor=Actor.anonymous(ip="nonsense"), tenant_slug="x" * 99)
        head = log.head()
        listed = [json.loads(event.to_json()) for event in log.list()]
    report = verified_by_rust(tmp_path, durable_url)
    assert report["ok"] and report["verified"] == 51
    assert f"{report['head']['seq']}:{report['head']['hash']}" == str(head)
    with serving(tmp_path, durable_url) as server:
        assert fetched(server.url)["events"] == listed


def test_a_log_written_by_rust_is_listed_and_verified_by_python(durable_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, durable_url) as server:
        for part in range(3):
            fetched(
                server.url,
                [
                    {
                        "action": "tenant.suspended",
                        "actorType": "user",
                        "actorId": f"u-{part}-{n}",
                        "tenantSlug": "acme",
                        "externalId": f"{part}-{n}",
                        "metadata": {"n": n, "ü": [1.0, None]},
                    }
                    for n in range(20)
                ],
            )
        listed = fetched(server.url)["events"]
        # Both have the log open at once.
        with AuditLog.open(durable_url) as log:
            assert [json.loads(event.to_json()) for event in log.list()] == listed
            log.append(new_events(5))
    report = verified_by_rust(tmp_path, durable_url)
    with AuditLog.open(durable_url, read_only=True) as log:
        result = log.verify(head=f"{report['head']['seq']}:{report['head']['hash']}")
        assert result.ok and result.verified == report["verified"] == len(listed) + 5
        assert str(log.head()) == str(result.head)


def test_one_log_has_one_head_on_every_engine(tmp_path: Path, new_url: Any) -> None:
    source = new_url("sqlite")
    with AuditLog.open(source) as log:
        log.append(new_events(30))
        head = log.head()
    for engine in ("postgres", "mongodb", "sqlite"):
        target = new_url(engine)
        copied = subprocess.run(
            [BINARY, "copy", "--from", source, "--to", target],
            env=environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert copied.returncode == 0, copied.stderr
        with AuditLog.open(target) as log:
            assert log.head() == head and log.verify(head=head).ok

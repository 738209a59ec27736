"""A log written by Rust is read by Python, and the other way round, with identical heads.

The Rust side is the server: `cargo build --workspace --all-features --bin dezky-server`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dezky import Actor, AuditLog, NewEvent

SERVER = Path(
    os.environ.get("DEZKY_SERVER_BINARY") or Path(__file__).parents[3] / "target" / "debug" / "dezky-server"
)


@pytest.fixture(autouse=True)
def built() -> None:
    if not SERVER.exists():
        pytest.fail("build the server first: cargo build --workspace --all-features --bin dezky-server")


def environment(url: str, **others: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "DEZKY_STORE": url, **others}


def verified_by_rust(url: str) -> dict[str, Any]:
    done = subprocess.run(
        [SERVER, "verify", "--json"], env=environment(url), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@contextmanager
def served(url: str, folder: Path) -> Iterator[str]:
    """Runs the server, and yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        [SERVER, "serve"],
        env=environment(url, DEZKY_LISTEN=address),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://{address}/health").close()
                break
            except OSError:
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.communicate(timeout=60)


def post(address: str, events: list[dict[str, Any]]) -> Any:
    request = urllib.request.Request(
        f"{address}/audit", json.dumps(events).encode(), {"content-type": "application/json"}
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
    report = verified_by_rust(durable_url)
    assert report["ok"] and report["verified"] == 51
    assert f"{report['head']['seq']}:{report['head']['hash']}" == str(head)
    with served(durable_url, tmp_path) as address:
        with urllib.request.urlopen(f"{address}/audit?limit=500") as response:
            assert json.load(response)["events"] == listed


def test_a_log_written_by_rust_is_listed_and_verified_by_python(durable_url: str, tmp_path: Path) -> None:
    with served(durable_url, tmp_path) as address:
        for part in range(3):
            post(
                address,
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
        with urllib.request.urlopen(f"{address}/audit?limit=500") as response:
            listed = json.load(response)["events"]
        # Both have the log open at once.
        with AuditLog.open(durable_url) as log:
            assert [json.loads(event.to_json()) for event in log.list()] == listed
            log.append(new_events(5))
    report = verified_by_rust(durable_url)
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
            [SERVER, "copy", "--from", source, "--to", target],
            env={"PATH": os.environ["PATH"]},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert copied.returncode == 0, copied.stderr
        with AuditLog.open(target) as log:
            assert log.head() == head and log.verify(head=head).ok

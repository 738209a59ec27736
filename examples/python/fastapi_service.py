"""A FastAPI service with an audit log and feature flags.

    python examples/python/fastapi_service.py

Needs dezky and `pip install fastapi httpx`. It runs against itself and ends. In production, pass the
application to a server (`uvicorn --factory fastapi_service:service`), and edit flags with
`dezky-server flags set` or its API: `AsyncLiveFlags.open` with the URL of the same store follows them.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.testclient import TestClient

import dezky

FLAGS = [{"key": "exports", "state": "targeted", "scope": {"plans": ["pro"]}}]
# What a directory would know.
TENANTS = {"acme": ("t-1", "pro"), "zeta": ("t-2", "free")}


def service(store: str = "sqlite://audit.db") -> FastAPI:
    """The application on a store."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with await dezky.AsyncAuditLog.open(store) as log:
            app.state.log = log
            app.state.flags = dezky.FlagSet.from_json(FLAGS)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/tenants/{slug}/exports", status_code=202)
    async def export(slug: str, request: Request) -> dict[str, str]:
        if slug not in TENANTS:
            raise HTTPException(404, "there is no such tenant")
        tenant_id, plan = TENANTS[slug]
        decision = app.state.flags.evaluate("exports", tenant_id=tenant_id, tenant_slug=slug, plan=plan)
        # Allowed or not, it is on record. This never fails: see the argument `spool`.
        recorded = await app.state.log.record(
            "tenant.export_started",
            actor=dezky.Actor.user(request.headers.get("x-user", "unknown"), ip=address(request)),
            outcome="success" if decision else "denied",
            tenant_slug=slug,
            metadata={"decision": str(decision)},
        )
        if not decision:
            raise HTTPException(403, f"exports are not enabled: {decision}")
        return {"event": str(recorded.id)}

    @app.get("/tenants/{slug}/audit")
    async def audit(slug: str) -> list[dict[str, str]]:
        events = app.state.log.list(tenant_slug=slug, limit=50)
        return [{"action": event.action, "outcome": event.outcome} async for event in events]

    return app


def address(request: Request) -> str | None:
    """The client's IP address; a test client has none."""
    host = request.client.host if request.client else ""
    return host if host.replace(".", "").isdigit() or ":" in host else None


def main() -> None:
    """Sends a few requests to the service."""
    with tempfile.TemporaryDirectory() as folder:
        app = service(f"sqlite://{Path(folder) / 'audit.db'}")
        with TestClient(app) as client:
            allowed = client.post("/tenants/acme/exports", headers={"x-user": "u-7"})
            print("acme, on plan pro:", allowed.status_code, allowed.json())
            assert allowed.status_code == 202
            denied = client.post("/tenants/zeta/exports", headers={"x-user": "u-8"})
            print("zeta, on plan free:", denied.status_code, denied.json())
            assert denied.status_code == 403
            timeline = client.get("/tenants/zeta/audit").json()
            print("zeta's timeline:", timeline)
            assert timeline == [{"action": "tenant.export_started", "outcome": "denied"}]


if __name__ == "__main__":
    main()

"""Stores for the tests: each test has a database of its own on every engine."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pymongo
import pytest

import dezky

ENGINES = ("memory", "sqlite", "postgres", "mongodb")
DURABLE = ("sqlite", "postgres", "mongodb")
"""The engines whose logs can be opened more than once."""


def server(name: str) -> str:
    """Returns the URL of a test server; a test without its server fails."""
    url = os.environ.get(name)
    if not url:
        pytest.fail(f"{name} is not set: start the test servers and name them")
    return url


def named(url: str, database: str) -> str:
    """Returns the URL with another database."""
    address, _, options = url.partition("?")
    scheme, _, rest = address.partition("://")
    host = rest.partition("/")[0]
    return f"{scheme}://{host}/{database}" + (f"?{options}" if options else "")


def until(condition: Callable[[], object], what: str = "the condition", seconds: float = 60) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@pytest.fixture
def new_url(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Makes the URL of a new, empty database on an engine."""
    cleanup: list[Callable[[], object]] = []

    def make(engine: str) -> str:
        name = f"dezky_py_{secrets.token_hex(6)}"
        if engine == "memory":
            return "memory:"
        if engine == "sqlite":
            return f"sqlite://{tmp_path / name}.db"
        if engine == "postgres":
            admin = server("DEZKY_TEST_POSTGRES")
            with psycopg.connect(admin, autocommit=True) as connection:
                connection.execute(f'CREATE DATABASE "{name}"'.encode())
            cleanup.append(lambda: _drop_postgres(admin, name))
            return named(admin, name)
        url = server("DEZKY_TEST_MONGODB")
        cleanup.append(lambda: _drop_mongodb(url, name))
        return named(url, name)

    yield make
    for step in cleanup:
        step()


def _drop_postgres(admin: str, name: str) -> None:
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def _drop_mongodb(url: str, name: str) -> None:
    client: pymongo.MongoClient[dict[str, object]] = pymongo.MongoClient(url)
    with client:
        client.drop_database(name)


@pytest.fixture(params=ENGINES)
def log_url(request: pytest.FixtureRequest, new_url: Callable[[str], str]) -> str:
    """The URL of a new log, on each engine."""
    return new_url(request.param)


@pytest.fixture(params=DURABLE)
def durable_url(request: pytest.FixtureRequest, new_url: Callable[[str], str]) -> str:
    """The URL of a new log that can be opened again, on each such engine."""
    return new_url(request.param)


@pytest.fixture
def log(log_url: str) -> Iterator[dezky.AuditLog]:
    """A new log, open for writing, on each engine."""
    with dezky.AuditLog.open(log_url) as opened:
        yield opened


@pytest.fixture
def actor() -> dezky.Actor:
    """Somebody to act."""
    return dezky.Actor.user("u-7", email="ana@acme.test", ip="203.0.113.7")

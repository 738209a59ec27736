"""Audit log, feature flags and ingest, on SQLite, PostgreSQL or MongoDB."""

from __future__ import annotations

from dezky import errors
from dezky._dezky import __version__
from dezky.errors import Error

__all__ = ["Error", "__version__", "errors"]

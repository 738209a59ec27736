"""Audit log, feature flags and ingest, on SQLite, PostgreSQL or MongoDB."""

from __future__ import annotations

from dezky import errors, ingest
from dezky._dezky import __version__
from dezky.errors import Error

# Audit log
from dezky._dezky import (  # isort: skip
    Actor,
    Anomaly,
    ArrowEvents,
    AsyncAuditLog,
    AuditLog,
    Event,
    Finding,
    Head,
    NewEvent,
    Receipt,
    Recorded,
    Verification,
)

# Flags
from dezky._dezky import (  # isort: skip
    AsyncLiveFlags,
    BooleanColumn,
    Context,
    Decision,
    Explanation,
    FlagEvent,
    FlagSet,
    LiveFlags,
    LiveStatus,
    Preview,
    Subscription,
    bucket,
    fine_bucket,
    preview,
)

__all__ = [
    "Error",
    "__version__",
    "errors",
    # Ingest
    "ingest",
    # Audit log
    "Actor",
    "Anomaly",
    "ArrowEvents",
    "AsyncAuditLog",
    "AuditLog",
    "Event",
    "Finding",
    "Head",
    "NewEvent",
    "Receipt",
    "Recorded",
    "Verification",
    # Flags
    "AsyncLiveFlags",
    "BooleanColumn",
    "Context",
    "Decision",
    "Explanation",
    "FlagEvent",
    "FlagSet",
    "LiveFlags",
    "LiveStatus",
    "Preview",
    "Subscription",
    "bucket",
    "fine_bucket",
    "preview",
]

CREATE TABLE IF NOT EXISTS dezky_schema (
    component TEXT PRIMARY KEY,
    version   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row: the log's identity, its beginning and its head.
CREATE TABLE dezky_audit_log (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    log_id     BLOB NOT NULL,
    cursor_key BLOB NOT NULL,
    base_seq   INTEGER NOT NULL,
    base_hash  BLOB NOT NULL,
    next_seq   INTEGER NOT NULL,
    head_hash  BLOB NOT NULL
) STRICT;

CREATE TABLE dezky_audit_events (
    seq              INTEGER PRIMARY KEY,
    id               BLOB NOT NULL,
    at               INTEGER NOT NULL,
    received_at      INTEGER NOT NULL,
    actor_type       TEXT NOT NULL,
    actor_id         TEXT,
    actor_email      TEXT,
    actor_ip         TEXT,
    action           TEXT NOT NULL,
    outcome          TEXT NOT NULL,
    resource_type    TEXT,
    resource_id      TEXT,
    resource_name    TEXT,
    tenant_slug      TEXT,
    partner_slug     TEXT,
    source           TEXT NOT NULL,
    external_id      TEXT,
    -- Canonical JSON text: the evidence.
    metadata         TEXT NOT NULL,
    -- 32 random bytes; absent after an erasure, which leaves what survives.
    salt             BLOB,
    erasure          BLOB,
    prev_hash        BLOB NOT NULL,
    hash             BLOB NOT NULL,
    -- Derived, folded to lower case, compared as bytes.
    actor_email_fold TEXT,
    search           TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX dezky_audit_events_id ON dezky_audit_events (id);
CREATE UNIQUE INDEX dezky_audit_events_external ON dezky_audit_events (source, external_id) WHERE external_id IS NOT NULL;
CREATE INDEX dezky_audit_events_at ON dezky_audit_events (at, id);
CREATE INDEX dezky_audit_events_tenant ON dezky_audit_events (tenant_slug, at, id);
CREATE INDEX dezky_audit_events_actor ON dezky_audit_events (actor_id, at, id);
CREATE INDEX dezky_audit_events_action ON dezky_audit_events (action, at, id);

CREATE TABLE dezky_cursors (
    source TEXT PRIMARY KEY,
    cursor TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE dezky_leases (
    name       TEXT PRIMARY KEY,
    holder     TEXT NOT NULL,
    token      INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE dezky_quarantine (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    source TEXT NOT NULL,
    key    TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    raw    BLOB NOT NULL,
    at     INTEGER NOT NULL,
    seen   INTEGER NOT NULL,
    UNIQUE (source, key)
) STRICT;

-- Events that committed with their mutation and wait for their place.
CREATE TABLE dezky_outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    event  TEXT NOT NULL
) STRICT;

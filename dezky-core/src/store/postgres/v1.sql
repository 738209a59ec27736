-- Texts are compared as bytes, COLLATE "C", so that every engine orders and
-- matches alike and a prefix is a range of an ordinary index, which is what
-- text_pattern_ops would give.
CREATE TABLE IF NOT EXISTS dezky_schema (
    component text COLLATE "C" PRIMARY KEY,
    version   bigint NOT NULL
);

-- One row: the log's identity, its beginning and its head. Writers of the log
-- lock it. Each of them leaves a version of it behind: the free space keeps
-- those on its own page.
CREATE TABLE dezky_audit_log (
    one        smallint PRIMARY KEY CHECK (one = 1),
    log_id     uuid NOT NULL,
    cursor_key bytea NOT NULL,
    base_seq   bigint NOT NULL,
    base_hash  bytea NOT NULL,
    next_seq   bigint NOT NULL,
    head_hash  bytea NOT NULL
) WITH (fillfactor = 10);

CREATE TABLE dezky_audit_events (
    seq              bigint PRIMARY KEY,
    id               uuid NOT NULL,
    -- Milliseconds since 1970, UTC.
    at               bigint NOT NULL,
    received_at      bigint NOT NULL,
    actor_type       text COLLATE "C" NOT NULL,
    actor_id         text COLLATE "C",
    actor_email      text COLLATE "C",
    actor_ip         text COLLATE "C",
    action           text COLLATE "C" NOT NULL,
    outcome          text COLLATE "C" NOT NULL,
    resource_type    text COLLATE "C",
    resource_id      text COLLATE "C",
    resource_name    text COLLATE "C",
    tenant_slug      text COLLATE "C",
    partner_slug     text COLLATE "C",
    source           text COLLATE "C" NOT NULL,
    external_id      text COLLATE "C",
    -- Canonical JSON text: the evidence.
    metadata         text COLLATE "C" NOT NULL,
    -- 32 random bytes; absent after an erasure, which leaves what survives.
    salt             bytea,
    erasure          bytea,
    prev_hash        bytea NOT NULL,
    hash             bytea NOT NULL,
    -- Derived, folded to lower case, compared as bytes.
    actor_email_fold text COLLATE "C",
    search           text COLLATE "C" NOT NULL
);

CREATE UNIQUE INDEX dezky_audit_events_id ON dezky_audit_events (id);
CREATE UNIQUE INDEX dezky_audit_events_external ON dezky_audit_events (source, external_id) WHERE external_id IS NOT NULL;
CREATE INDEX dezky_audit_events_at ON dezky_audit_events (at, id);
CREATE INDEX dezky_audit_events_tenant ON dezky_audit_events (tenant_slug, at, id);
CREATE INDEX dezky_audit_events_actor ON dezky_audit_events (actor_id, at, id);
CREATE INDEX dezky_audit_events_action ON dezky_audit_events (action, at, id);

CREATE TABLE dezky_cursors (
    source text COLLATE "C" PRIMARY KEY,
    cursor text COLLATE "C" NOT NULL
);

CREATE TABLE dezky_leases (
    name       text COLLATE "C" PRIMARY KEY,
    holder     text COLLATE "C" NOT NULL,
    token      bigint NOT NULL,
    expires_at bigint NOT NULL
);

CREATE TABLE dezky_quarantine (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source text COLLATE "C" NOT NULL,
    key    text COLLATE "C" NOT NULL,
    reason text COLLATE "C" NOT NULL,
    detail text COLLATE "C" NOT NULL,
    raw    bytea NOT NULL,
    at     bigint NOT NULL,
    seen   bigint NOT NULL,
    UNIQUE (source, key)
);

-- Events that committed with their mutation and wait for their place.
CREATE TABLE dezky_outbox (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event  text COLLATE "C" NOT NULL
);

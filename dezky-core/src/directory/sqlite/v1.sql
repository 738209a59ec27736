CREATE TABLE dezky_tenants (
    id         TEXT PRIMARY KEY,
    slug       TEXT NOT NULL UNIQUE,
    status     TEXT NOT NULL,
    partner_id TEXT,
    version    INTEGER NOT NULL,
    -- JSON: the tenant. The columns are copies out of it, for queries.
    document   TEXT NOT NULL
) STRICT;

CREATE INDEX dezky_tenants_status ON dezky_tenants (status, slug);
CREATE INDEX dezky_tenants_partner ON dezky_tenants (partner_id, slug) WHERE partner_id IS NOT NULL;
CREATE INDEX dezky_tenants_partner_status ON dezky_tenants (partner_id, status, slug) WHERE partner_id IS NOT NULL;

-- The domains of tenants that are not deleted.
CREATE TABLE dezky_tenant_domains (
    domain    TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX dezky_tenant_domains_tenant ON dezky_tenant_domains (tenant_id);

CREATE TABLE dezky_partners (
    id       TEXT PRIMARY KEY,
    slug     TEXT NOT NULL UNIQUE,
    status   TEXT NOT NULL,
    version  INTEGER NOT NULL,
    document TEXT NOT NULL
) STRICT;

CREATE INDEX dezky_partners_status ON dezky_partners (status, slug);

CREATE TABLE dezky_users (
    id         TEXT PRIMARY KEY,
    issuer     TEXT NOT NULL,
    subject    TEXT NOT NULL,
    -- Milliseconds of the last login; the least integer for never.
    last_login INTEGER NOT NULL,
    version    INTEGER NOT NULL,
    document   TEXT NOT NULL,
    UNIQUE (issuer, subject)
) STRICT;

CREATE INDEX dezky_users_login ON dezky_users (last_login, id);

CREATE TABLE dezky_user_identities (
    system  TEXT NOT NULL,
    id      TEXT NOT NULL,
    user_id TEXT NOT NULL,
    PRIMARY KEY (system, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX dezky_user_identities_user ON dezky_user_identities (user_id);

CREATE TABLE dezky_user_tenants (
    tenant_id  TEXT NOT NULL,
    last_login INTEGER NOT NULL,
    user_id    TEXT NOT NULL,
    PRIMARY KEY (tenant_id, last_login, user_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX dezky_user_tenants_user ON dezky_user_tenants (user_id);

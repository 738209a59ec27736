-- Texts are compared as bytes, as every engine compares them.

-- One row: who changes the directory locks it first.
CREATE TABLE dezky_directory_state (
    one INTEGER PRIMARY KEY CHECK (one = 1)
);

INSERT INTO dezky_directory_state (one) VALUES (1);

CREATE TABLE dezky_tenants (
    id         TEXT COLLATE "C" PRIMARY KEY,
    slug       TEXT COLLATE "C" NOT NULL,
    status     TEXT COLLATE "C" NOT NULL,
    partner_id TEXT COLLATE "C",
    version    BIGINT NOT NULL,
    -- JSON: the tenant. The columns are copies out of it, for queries. Text, so that
    -- what is read is what was written.
    document   TEXT NOT NULL
);

CREATE UNIQUE INDEX dezky_tenants_slug ON dezky_tenants (slug);
CREATE INDEX dezky_tenants_status ON dezky_tenants (status, slug);
CREATE INDEX dezky_tenants_partner ON dezky_tenants (partner_id, slug) WHERE partner_id IS NOT NULL;
CREATE INDEX dezky_tenants_partner_status ON dezky_tenants (partner_id, status, slug) WHERE partner_id IS NOT NULL;

-- The domains of tenants that are not deleted.
CREATE TABLE dezky_tenant_domains (
    domain    TEXT COLLATE "C" PRIMARY KEY,
    tenant_id TEXT COLLATE "C" NOT NULL
);

CREATE INDEX dezky_tenant_domains_tenant ON dezky_tenant_domains (tenant_id);

CREATE TABLE dezky_partners (
    id       TEXT COLLATE "C" PRIMARY KEY,
    slug     TEXT COLLATE "C" NOT NULL,
    status   TEXT COLLATE "C" NOT NULL,
    version  BIGINT NOT NULL,
    document TEXT NOT NULL
);

CREATE UNIQUE INDEX dezky_partners_slug ON dezky_partners (slug);
CREATE INDEX dezky_partners_status ON dezky_partners (status, slug);

CREATE TABLE dezky_users (
    id         TEXT COLLATE "C" PRIMARY KEY,
    issuer     TEXT COLLATE "C" NOT NULL,
    subject    TEXT COLLATE "C" NOT NULL,
    -- Milliseconds of the last login; the least integer for never.
    last_login BIGINT NOT NULL,
    version    BIGINT NOT NULL,
    document   TEXT NOT NULL
);

CREATE UNIQUE INDEX dezky_users_subject ON dezky_users (subject, issuer);
CREATE INDEX dezky_users_login ON dezky_users (last_login, id);

CREATE TABLE dezky_user_identities (
    system  TEXT COLLATE "C" NOT NULL,
    id      TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (id, system)
);

CREATE INDEX dezky_user_identities_user ON dezky_user_identities (user_id);

CREATE TABLE dezky_user_tenants (
    tenant_id  TEXT COLLATE "C" NOT NULL,
    last_login BIGINT NOT NULL,
    user_id    TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, last_login, user_id)
);

CREATE INDEX dezky_user_tenants_user ON dezky_user_tenants (user_id);

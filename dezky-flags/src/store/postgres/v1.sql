-- A flag as JSON text, and the version that its key has come to. Without a flag the
-- key's one was removed.
CREATE TABLE dezky_flags (
    key     TEXT COLLATE "C" PRIMARY KEY,
    version BIGINT NOT NULL,
    flag    TEXT
);

-- One row: who changes flags locks it first.
CREATE TABLE dezky_flags_state (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    revision BIGINT NOT NULL,
    -- How many rows of dezky_flags have a flag, and how many there are.
    flags    BIGINT NOT NULL,
    keys     BIGINT NOT NULL
);

INSERT INTO dezky_flags_state (one, revision, flags, keys) VALUES (1, 0, 0, 0);

-- A flag as JSON, and the version that its key has come to. Without a flag the
-- key's one was removed.
CREATE TABLE dezky_flags (
    key     TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    flag    TEXT
) STRICT, WITHOUT ROWID;

-- One row.
CREATE TABLE dezky_flags_state (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    revision INTEGER NOT NULL,
    -- How many rows of dezky_flags have a flag, and how many there are.
    flags    INTEGER NOT NULL,
    keys     INTEGER NOT NULL
) STRICT;

INSERT INTO dezky_flags_state (one, revision, flags, keys) VALUES (1, 0, 0, 0);

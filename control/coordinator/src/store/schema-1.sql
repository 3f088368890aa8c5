-- Keys are raw bytes, lists are JSON, times are seconds since 1970, addresses are integers.
CREATE TABLE sites (
    public_key      BLOB    NOT NULL PRIMARY KEY CHECK (length(public_key) = 32),
    name            TEXT    NOT NULL,
    virtual_address INTEGER NOT NULL UNIQUE,
    subnets         TEXT    NOT NULL,
    tags            TEXT    NOT NULL,
    state           TEXT    NOT NULL CHECK (state IN ('pending', 'approved', 'revoked')),
    created         INTEGER NOT NULL,
    last_seen       INTEGER
) STRICT;

-- A revoked site's name may be given to another.
CREATE UNIQUE INDEX site_names ON sites (name) WHERE state <> 'revoked';

CREATE TABLE enrolment_keys (
    id               BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 4),
    hash             BLOB    NOT NULL CHECK (length(hash) = 32),
    uses_left        INTEGER NOT NULL CHECK (uses_left >= 0),
    expires          INTEGER NOT NULL,
    tags             TEXT    NOT NULL,
    approve_manually INTEGER NOT NULL CHECK (approve_manually IN (0, 1)),
    created          INTEGER NOT NULL
) STRICT;

-- At most one row: the policy, as JSON.
CREATE TABLE policy (
    only_one INTEGER NOT NULL PRIMARY KEY CHECK (only_one = 1),
    document TEXT    NOT NULL
) STRICT;

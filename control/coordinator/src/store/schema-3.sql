-- The subnets in force, and the subnets that the site may offer; NULL: nothing was decided yet.
ALTER TABLE sites ADD COLUMN in_force TEXT NOT NULL DEFAULT '[]';
ALTER TABLE sites ADD COLUMN granted TEXT;
UPDATE sites SET in_force = subnets, granted = subnets WHERE state = 'approved';

-- The site has proved its key in the TLS connection itself: from then on it always has to.
ALTER TABLE sites ADD COLUMN bound INTEGER NOT NULL DEFAULT 0;

-- Prefixes that the sites of a key may offer at first, whatever they are.
ALTER TABLE enrolment_keys ADD COLUMN subnets TEXT NOT NULL DEFAULT '[]';

-- Whose overlay it is: the first key of its authority. No lease has a serial above lease_serial.
CREATE TABLE authority (
    only_one     INTEGER NOT NULL PRIMARY KEY CHECK (only_one = 1),
    root         BLOB    NOT NULL,
    lease_serial INTEGER NOT NULL
) STRICT;

-- What the authority has signed and is in force, as text.
CREATE TABLE documents (
    number   INTEGER NOT NULL PRIMARY KEY,
    kind     TEXT    NOT NULL,
    subject  BLOB    NOT NULL,
    serial   INTEGER NOT NULL,
    document TEXT    NOT NULL,
    UNIQUE (kind, subject)
) STRICT;

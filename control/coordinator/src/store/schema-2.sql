-- When the site is cut off, and for how long the sites of a key are let in; none: for good.
ALTER TABLE sites ADD COLUMN ends INTEGER;
ALTER TABLE enrolment_keys ADD COLUMN site_lifetime INTEGER;

-- Who changed what; before and after are JSON. Nothing in it is ever changed.
CREATE TABLE audit (
    number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    time   INTEGER NOT NULL,
    who    TEXT    NOT NULL,
    what   TEXT    NOT NULL,
    before TEXT,
    after  TEXT
) STRICT;

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;

CREATE TRIGGER audit_is_not_shortened BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;

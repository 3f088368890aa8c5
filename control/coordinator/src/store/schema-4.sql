-- Whether the audit log says that the key has expired.
ALTER TABLE enrolment_keys ADD COLUMN ended INTEGER NOT NULL DEFAULT 0;
UPDATE enrolment_keys SET ended = 1 WHERE expires <= CAST(strftime('%s', 'now') AS INTEGER);

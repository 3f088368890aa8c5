-- Whether the site has to prove its key in the TLS connection itself; 'auto': as soon as it has done so once.
ALTER TABLE sites ADD COLUMN channel_binding TEXT NOT NULL DEFAULT 'auto'
    CHECK (channel_binding IN ('auto', 'required', 'off'));
UPDATE sites SET channel_binding = 'required' WHERE bound <> 0;
ALTER TABLE sites DROP COLUMN bound;

-- After an older state of the database was accepted, attempts are not numbered as those were that it
-- does not know: their output lies on disk, and they may still run.
ALTER TABLE mesh ADD COLUMN first_attempt integer NOT NULL DEFAULT 1;

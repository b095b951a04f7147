-- After an older state of the database was accepted, jobs are not numbered as those were that it
-- does not know: their output lies on disk, and their attempts may still run.
ALTER TABLE mesh ADD COLUMN first_job bigint NOT NULL DEFAULT 1;

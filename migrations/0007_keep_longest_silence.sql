-- How long silent nodes are borne at the most under the leases that may still run: a leader whose
-- `offline_after` is shorter must not replace what lives on a lease that an earlier one gave.
ALTER TABLE mesh ADD COLUMN silence_ms bigint NOT NULL DEFAULT 0;

-- Beside the level of the sandbox, what held an attempt to its limits.
ALTER TABLE attempts ADD COLUMN limits smallint;      -- mesh.v1.Limits

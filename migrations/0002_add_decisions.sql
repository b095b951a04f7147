-- Why tasks went where they went: one record for a class of like tasks and a tenth of a second.
CREATE TABLE decisions (
    id   bigint PRIMARY KEY,
    at   timestamptz NOT NULL,
    data bytea NOT NULL CHECK (length(data) <= 512)   -- mesh.v1.Decision
);

ALTER TABLE attempts ADD COLUMN decision bigint;

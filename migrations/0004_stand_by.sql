-- What a second coordinator needs to stand by: where the others are reached, the CA's key, and a
-- name for the store that they share.

-- Every coordinator of the mesh says here itself where it is reached. Who leads is in `leader`.
CREATE TABLE coordinators (
    id             uuid PRIMARY KEY,
    endpoints      text[] NOT NULL,       -- host:port of the members' port
    join_endpoints text[] NOT NULL,       -- host:port of the port for joining
    seen_at        timestamptz NOT NULL
);

-- The CA, its key sealed by the secret that the operator gives to each coordinator.
CREATE TABLE authority (
    singleton   boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    certificate text NOT NULL,            -- PEM
    salt        bytea NOT NULL CHECK (length(salt) = 16),
    rounds      integer NOT NULL CHECK (rounds > 0),
    nonce       bytea NOT NULL CHECK (length(nonce) = 12),
    sealed_key  bytea NOT NULL,           -- PEM, AES-256-GCM
    created_at  timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE mesh
    ADD COLUMN store  uuid,               -- in the marker file of the shared directory, once there is one
    ADD COLUMN halted text;               -- why nothing is dispatched: the database went back in time

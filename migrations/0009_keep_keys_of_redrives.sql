-- What was redriven under which key, so that a redrive whose answer was lost can be told again.
CREATE TABLE redrives (
    job             bigint NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    actor           text NOT NULL,
    idempotency_key text NOT NULL,
    payload_digest  bytea NOT NULL CHECK (length(payload_digest) = 32),
    redriven        bigint NOT NULL,
    resumed         bigint NOT NULL,
    at              timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job, actor, idempotency_key)
);

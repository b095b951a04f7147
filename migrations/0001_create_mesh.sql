-- Everything that the coordinator must not forget. See docs/state-machines.md for the states.

CREATE TYPE job_state AS ENUM ('queued', 'running', 'completed', 'partially_completed', 'failed', 'cancelled');
CREATE TYPE task_state AS ENUM ('blocked', 'queued', 'assigned', 'running', 'retrying', 'completed', 'failed', 'cancelled');
CREATE TYPE attempt_state AS ENUM ('assigned', 'running', 'ended');
CREATE TYPE end_cause AS ENUM ('exit', 'signal', 'timeout', 'oom', 'disk', 'output', 'staging', 'sandbox', 'infra', 'lost', 'cancelled', 'fenced');

-- The mesh's identity, made once.
CREATE TABLE mesh (
    singleton  boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id         uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Who leads. Every commit of the leader begins by raising seq under its own epoch: zero rows
-- means that somebody else leads. A logged table, so that a crash cannot lower it.
CREATE TABLE leader (
    singleton   boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    incarnation uuid NOT NULL,
    epoch       bigint NOT NULL CHECK (epoch >= 0),
    seq         bigint NOT NULL CHECK (seq >= 0),
    holder      uuid                      -- the coordinator; null: laid down in good order
);
INSERT INTO leader (incarnation, epoch, seq) VALUES (gen_random_uuid(), 0, 0);

CREATE TABLE nodes (
    id              uuid PRIMARY KEY,
    name            text NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9_][a-z0-9._-]{0,63}$'),
    key_fingerprint bytea NOT NULL UNIQUE CHECK (length(key_fingerprint) = 32),
    boot_id         uuid,
    cordoned        boolean NOT NULL DEFAULT false,
    draining        boolean NOT NULL DEFAULT false,
    tags            jsonb NOT NULL DEFAULT '{}',     -- the operator's; they win over the agent's
    facts           bytea,                           -- mesh.v1.NodeFacts of the last registration
    joined_at       timestamptz NOT NULL DEFAULT now(),
    registered_at   timestamptz
);

CREATE TABLE join_tokens (
    id          text PRIMARY KEY,
    secret_hash bytea NOT NULL CHECK (length(secret_hash) = 32),
    node_name   text,                                -- bound to this name
    uses        integer NOT NULL CHECK (uses > 0),
    used        integer NOT NULL DEFAULT 0 CHECK (used BETWEEN 0 AND uses),
    created_by  text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL,
    revoked_at  timestamptz
);

-- What a token gave to which key, so that a lost reply is answered again.
CREATE TABLE enrolments (
    token_id        text NOT NULL REFERENCES join_tokens (id),
    key_fingerprint bytea NOT NULL,
    node_id         uuid NOT NULL REFERENCES nodes (id),
    certificate     bytea NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (token_id, key_fingerprint)
);

-- Security events: append only.
CREATE TABLE audit (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT now(),
    actor   text NOT NULL,
    action  text NOT NULL,
    subject text NOT NULL,
    detail  text NOT NULL DEFAULT ''
);

CREATE TABLE jobs (
    number          bigint PRIMARY KEY CHECK (number > 0),
    uuid            uuid NOT NULL UNIQUE,
    name            text NOT NULL,
    owner           text NOT NULL,
    state           job_state NOT NULL,
    ending          job_state CHECK (ending IN ('failed', 'cancelled')),  -- decided, waiting for processes to go
    priority        smallint NOT NULL CHECK (priority BETWEEN 0 AND 9),
    keep_going      boolean NOT NULL,                -- on_failure: continue
    idempotency_key text,
    payload_digest  bytea NOT NULL,
    spec            bytea NOT NULL,                  -- mesh.v1.JobSpec without its tasks
    reason          text NOT NULL DEFAULT '',
    counts          bigint[] NOT NULL CHECK (array_length(counts, 1) = 8),
    created_at      timestamptz NOT NULL,
    started_at      timestamptz,
    finished_at     timestamptz,
    CHECK ((finished_at IS NOT NULL) = (state NOT IN ('queued', 'running')))
);
CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_by_owner ON jobs (owner, number DESC);
CREATE INDEX jobs_unfinished ON jobs (number) WHERE finished_at IS NULL;

-- A task's definition in its job file; counts has one entry per task_state, in its order.
CREATE TABLE task_definitions (
    job    bigint NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    task   integer NOT NULL CHECK (task >= 0),
    name   text NOT NULL,
    total  integer NOT NULL CHECK (total > 0),
    spec   bytea NOT NULL,                           -- mesh.v1.TaskSpec
    counts bigint[] NOT NULL CHECK (array_length(counts, 1) = 8),
    PRIMARY KEY (job, task)
);

-- A task has a row from its first assignment on; elements that were never assigned have none.
-- No foreign keys here and below: the engine alone writes these rows, ten thousand a second.
CREATE TABLE tasks (
    job          bigint NOT NULL,
    task         integer NOT NULL,
    index        integer NOT NULL CHECK (index >= 0),
    state        task_state NOT NULL,
    attempt      integer NOT NULL CHECK (attempt > 0),
    node         uuid,
    own_failures integer NOT NULL DEFAULT 0,
    losses       integer NOT NULL DEFAULT 0,
    cause        end_cause,
    exit_code    integer,
    signal       integer,
    message      text,
    started_at   timestamptz,
    finished_at  timestamptz,
    PRIMARY KEY (job, task, index)
);
CREATE INDEX tasks_live ON tasks (job, task, index) WHERE state NOT IN ('completed', 'failed', 'cancelled');

CREATE TABLE attempts (
    job           bigint NOT NULL,
    task          integer NOT NULL,
    index         integer NOT NULL,
    number        integer NOT NULL CHECK (number > 0),
    state         attempt_state NOT NULL,
    node          uuid NOT NULL,
    boot_id       uuid NOT NULL,
    cause         end_cause,
    exit_code     integer,
    signal        integer,
    message       text,
    sandbox       smallint,                          -- mesh.v1.SandboxLevel
    assigned_at   timestamptz NOT NULL,
    started_at    timestamptz,
    ended_at      timestamptz,
    run_ms        bigint,
    cpu_ms        bigint,
    max_rss_bytes bigint,
    outputs       bytea,                             -- mesh.v1.FileList
    output_length bigint NOT NULL DEFAULT 0,         -- bytes of the spool
    output        bytea,                             -- the spool itself when it is short
    PRIMARY KEY (job, task, index, number),
    CHECK ((state = 'ended') = (cause IS NOT NULL)),
    CHECK ((state = 'ended') = (ended_at IS NOT NULL))
);

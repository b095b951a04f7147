INSERT INTO tasks AS t (
    job, task, index, state, attempt, node, own_failures, losses,
    cause, exit_code, signal, message, started_at, finished_at
)
SELECT
    job, task, index, state::task_state, attempt, node, own_failures, losses,
    cause::end_cause, exit_code, signal, message, started_at, finished_at
FROM UNNEST(
    $1::bigint[], $2::int[], $3::int[], $4::text[], $5::int[], $6::uuid[], $7::int[], $8::int[],
    $9::text[], $10::int[], $11::int[], $12::text[], $13::timestamptz[], $14::timestamptz[]
) AS u (
    job, task, index, state, attempt, node, own_failures, losses,
    cause, exit_code, signal, message, started_at, finished_at
)
ON CONFLICT (job, task, index) DO UPDATE SET
    state = excluded.state,
    attempt = excluded.attempt,
    node = excluded.node,
    own_failures = excluded.own_failures,
    losses = excluded.losses,
    cause = excluded.cause,
    exit_code = excluded.exit_code,
    signal = excluded.signal,
    message = excluded.message,
    started_at = excluded.started_at,
    finished_at = excluded.finished_at
WHERE t.state NOT IN ('completed', 'failed', 'cancelled') AND t.attempt <= excluded.attempt

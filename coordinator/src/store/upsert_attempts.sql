INSERT INTO attempts AS a (
    job, task, index, number, state, node, boot_id, cause, exit_code, signal, message, sandbox,
    assigned_at, started_at, ended_at, run_ms, cpu_ms, max_rss_bytes, outputs, output_length, output, decision
)
SELECT
    job, task, index, number, state::attempt_state, node, boot_id, cause::end_cause, exit_code, signal, message,
    sandbox, assigned_at, started_at, ended_at, run_ms, cpu_ms, max_rss_bytes, outputs, output_length, output, decision
FROM UNNEST(
    $1::bigint[], $2::int[], $3::int[], $4::int[], $5::text[], $6::uuid[], $7::uuid[], $8::text[],
    $9::int[], $10::int[], $11::text[], $12::smallint[], $13::timestamptz[], $14::timestamptz[],
    $15::timestamptz[], $16::bigint[], $17::bigint[], $18::bigint[], $19::bytea[], $20::bigint[], $21::bytea[], $22::bigint[]
) AS u (
    job, task, index, number, state, node, boot_id, cause, exit_code, signal, message, sandbox,
    assigned_at, started_at, ended_at, run_ms, cpu_ms, max_rss_bytes, outputs, output_length, output, decision
)
ON CONFLICT (job, task, index, number) DO UPDATE SET
    state = excluded.state,
    cause = excluded.cause,
    exit_code = excluded.exit_code,
    signal = excluded.signal,
    message = excluded.message,
    sandbox = excluded.sandbox,
    started_at = excluded.started_at,
    ended_at = excluded.ended_at,
    run_ms = excluded.run_ms,
    cpu_ms = excluded.cpu_ms,
    max_rss_bytes = excluded.max_rss_bytes,
    outputs = excluded.outputs,
    output_length = excluded.output_length,
    output = excluded.output
WHERE a.state <> 'ended' AND a.node = excluded.node

-- One commit: what a batch of events wrote, each key once. Every part reads the fence, so under
-- an epoch that is over none writes a row. The parts see the database as it was before the
-- statement; no two of them touch the same row.
WITH fence AS (
    UPDATE leader SET seq = seq + 1 WHERE epoch = $1 RETURNING seq
), new_jobs AS (
    INSERT INTO jobs (
        number, uuid, name, owner, state, ending, priority, keep_going, idempotency_key,
        payload_digest, spec, reason, counts, created_at, started_at, finished_at
    )
    SELECT
        n.number, n.uuid, n.name, n.owner, n.state::job_state, n.ending::job_state, n.priority, n.keep_going,
        n.idempotency_key, n.payload_digest, n.spec, n.reason, n.counts::bigint[], n.created_at, n.started_at,
        n.finished_at
    FROM fence, UNNEST(
        $2::bigint[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::smallint[], $9::boolean[],
        $10::text[], $11::bytea[], $12::bytea[], $13::text[], $14::text[], $15::timestamptz[],
        $16::timestamptz[], $17::timestamptz[]
    ) AS n (
        number, uuid, name, owner, state, ending, priority, keep_going, idempotency_key,
        payload_digest, spec, reason, counts, created_at, started_at, finished_at
    )
    RETURNING 1
), new_definitions AS (
    INSERT INTO task_definitions (job, task, name, total, spec, counts)
    SELECT n.job, n.task, n.name, n.total, n.spec, n.counts::bigint[]
    FROM fence, UNNEST($18::bigint[], $19::int[], $20::text[], $21::int[], $22::bytea[], $23::text[])
        AS n (job, task, name, total, spec, counts)
    RETURNING 1
), changed_jobs AS (
    UPDATE jobs AS j SET
        state = n.state::job_state,
        ending = n.ending::job_state,
        reason = n.reason,
        counts = n.counts::bigint[],
        started_at = n.started_at,
        finished_at = n.finished_at
    FROM fence, UNNEST(
        $24::bigint[], $25::text[], $26::text[], $27::text[], $28::text[], $29::timestamptz[], $30::timestamptz[]
    ) AS n (number, state, ending, reason, counts, started_at, finished_at)
    WHERE j.number = n.number AND j.finished_at IS NULL
    RETURNING 1
), changed_definitions AS (
    UPDATE task_definitions AS d SET counts = n.counts::bigint[]
    FROM fence, UNNEST($31::bigint[], $32::int[], $33::text[]) AS n (job, task, counts)
    WHERE d.job = n.job AND d.task = n.task
    RETURNING 1
), written_tasks AS (
    INSERT INTO tasks AS t (
        job, task, index, state, attempt, node, own_failures, losses,
        cause, exit_code, signal, message, started_at, finished_at
    )
    SELECT
        n.job, n.task, n.index, n.state::task_state, n.attempt, n.node, n.own_failures, n.losses,
        n.cause::end_cause, n.exit_code, n.signal, n.message, n.started_at, n.finished_at
    FROM fence, UNNEST(
        $34::bigint[], $35::int[], $36::int[], $37::text[], $38::int[], $39::uuid[], $40::int[], $41::int[],
        $42::text[], $43::int[], $44::int[], $45::text[], $46::timestamptz[], $47::timestamptz[]
    ) AS n (
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
    RETURNING 1
), written_attempts AS (
    INSERT INTO attempts AS a (
        job, task, index, number, state, node, boot_id, cause, exit_code, signal, message, sandbox, limits,
        assigned_at, started_at, ended_at, run_ms, cpu_ms, max_rss_bytes, outputs, output_length, output, decision
    )
    SELECT
        n.job, n.task, n.index, n.number, n.state::attempt_state, n.node, n.boot_id, n.cause::end_cause,
        n.exit_code, n.signal, n.message, n.sandbox, n.limits, n.assigned_at, n.started_at, n.ended_at, n.run_ms, n.cpu_ms,
        n.max_rss_bytes, n.outputs, n.output_length, n.output, n.decision
    FROM fence, UNNEST(
        $48::bigint[], $49::int[], $50::int[], $51::int[], $52::text[], $53::uuid[], $54::uuid[], $55::text[],
        $56::int[], $57::int[], $58::text[], $59::smallint[], $60::smallint[], $61::timestamptz[], $62::timestamptz[],
        $63::timestamptz[], $64::bigint[], $65::bigint[], $66::bigint[], $67::bytea[], $68::bigint[],
        $69::bytea[], $70::bigint[]
    ) AS n (
        job, task, index, number, state, node, boot_id, cause, exit_code, signal, message, sandbox, limits,
        assigned_at, started_at, ended_at, run_ms, cpu_ms, max_rss_bytes, outputs, output_length, output, decision
    )
    ON CONFLICT (job, task, index, number) DO UPDATE SET
        state = excluded.state,
        cause = excluded.cause,
        exit_code = excluded.exit_code,
        signal = excluded.signal,
        message = excluded.message,
        sandbox = excluded.sandbox,
        limits = excluded.limits,
        started_at = excluded.started_at,
        ended_at = excluded.ended_at,
        run_ms = excluded.run_ms,
        cpu_ms = excluded.cpu_ms,
        max_rss_bytes = excluded.max_rss_bytes,
        outputs = excluded.outputs,
        output_length = excluded.output_length,
        output = excluded.output
    WHERE a.state <> 'ended' AND a.node = excluded.node
    RETURNING 1
), changed_nodes AS (
    UPDATE nodes AS m SET
        boot_id = n.boot_id,
        cordoned = n.cordoned,
        draining = n.draining,
        tags = n.tags,
        facts = COALESCE(n.facts, m.facts),
        registered_at = CASE WHEN n.facts IS NULL THEN m.registered_at ELSE now() END
    FROM fence, UNNEST($71::uuid[], $72::uuid[], $73::boolean[], $74::boolean[], $75::jsonb[], $76::bytea[])
        AS n (id, boot_id, cordoned, draining, tags, facts)
    WHERE m.id = n.id
    RETURNING 1
), new_decisions AS (
    INSERT INTO decisions (id, at, data)
    SELECT n.id, n.at, n.data
    FROM fence, UNNEST($77::bigint[], $78::timestamptz[], $79::bytea[]) AS n (id, at, data)
    RETURNING 1
)
-- Fewer rows than were sent: memory and database disagree, and nothing of it is written.
SELECT seq FROM fence
WHERE expect_rows('jobs', cardinality($24), (SELECT count(*) FROM changed_jobs))
    AND expect_rows('task definitions', cardinality($31), (SELECT count(*) FROM changed_definitions))
    AND expect_rows('tasks', cardinality($34), (SELECT count(*) FROM written_tasks))
    AND expect_rows('attempts', cardinality($48), (SELECT count(*) FROM written_attempts))
    AND expect_rows('nodes', cardinality($71), (SELECT count(*) FROM changed_nodes))

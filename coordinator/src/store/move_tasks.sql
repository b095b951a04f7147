UPDATE tasks AS t SET
    state = $4::text::task_state,
    own_failures = CASE WHEN $6 THEN 0 ELSE t.own_failures END,
    losses = CASE WHEN $6 THEN 0 ELSE t.losses END,
    started_at = CASE WHEN $6 THEN NULL ELSE t.started_at END,
    finished_at = CASE WHEN $4 = 'cancelled' THEN $7::timestamptz END,
    cause = CASE WHEN $4 = 'cancelled' THEN 'cancelled' ELSE t.cause END,
    exit_code = CASE WHEN $4 = 'cancelled' THEN NULL ELSE t.exit_code END,
    signal = CASE WHEN $4 = 'cancelled' THEN NULL ELSE t.signal END,
    message = CASE WHEN $4 = 'cancelled' THEN $8 ELSE t.message END
FROM UNNEST($1::bigint[], $2::int[], $3::int[]) AS u (job, task, index)
WHERE t.job = u.job AND t.task = u.task AND t.index = u.index AND t.state = $5::text::task_state

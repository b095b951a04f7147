SELECT j.name AS job_name, d.name, t.task, t.index, t.state::text AS "state!", t.attempt, n.name AS "node?", t.own_failures, t.losses,
    t.cause::text AS cause, t.exit_code, t.signal, t.message, t.started_at, t.finished_at, a.sandbox AS "sandbox?",
    a.limits AS "limits?"
FROM jobs j
JOIN task_definitions d ON d.job = j.number AND d.counts[7] > 0
JOIN tasks t ON t.job = d.job AND t.task = d.task AND t.state = 'failed'
LEFT JOIN nodes n ON n.id = t.node
LEFT JOIN attempts a ON (a.job, a.task, a.index, a.number) = (t.job, t.task, t.index, t.attempt)
WHERE j.number = $1
    AND ($2::int IS NULL OR t.task = $2)
    AND ($3::int IS NULL OR t.index = $3)
    AND t.job = $1
    AND (t.task, t.index) > ($4, $5)
ORDER BY t.task, t.index
LIMIT $6

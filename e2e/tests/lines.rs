//! Short tasks that follow each other at once, while everything around them is killed: each begins once.

use std::collections::BTreeSet;

use mesh_e2e::{
    Mesh,
    wait::{self, secs},
};

/// Tasks of the job.
const TASKS: usize = 1200;
/// After so many more have begun, something is killed.
const EVERY: usize = 150;

#[test]
fn short_tasks_begin_once_whoever_is_killed_meanwhile() {
    let (mut mesh, [mut attic]) = Mesh::with_agents(["attic"]);
    let witness = mesh.witness();
    let text = format!(
        r#"
        name: short
        array: {{range: "1-{TASKS}"}}
        command: [/bin/sh, -c, 'echo "start $MESH_TASK.$MESH_INDEX $MESH_ATTEMPT $MESH_NODE" >> {path}']
        "#,
        path = witness.path()
    );
    let job = mesh.submit(&text).number;
    for round in 1..TASKS / EVERY {
        wait::until(secs(60), "more begin", || (witness.count("start") >= round * EVERY).then_some(()));
        if round % 3 == 0 {
            mesh.kill_coordinator();
            mesh.start_coordinator();
        } else {
            attic.kill_daemon();
            attic.restart();
        }
    }
    let done = mesh.job(job).completes();
    assert_eq!(done["counts"]["completed"], TASKS);
    let starts = witness.all("start");
    let tasks: BTreeSet<&str> = starts.iter().map(|event| event.task.as_str()).collect();
    assert_eq!((tasks.len(), starts.len()), (TASKS, TASKS), "a task began twice, or never");
    assert!(starts.iter().all(|event| event.attempt == 1), "an attempt was lost");
}

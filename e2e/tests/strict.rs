//! Faults at the level that tasks have unless somebody says otherwise. What the tasks do is seen through a
//! directory that the node lets them write.

use mesh_e2e::{
    Agent, AgentOptions, Job, Mesh, MeshOptions, Witness,
    wait::{self, secs},
};

/// A mesh with the product's own level, and its node.
fn mesh() -> (Mesh, Agent) {
    let mesh = Mesh::start_with(MeshOptions { own_sandbox: true, ..MeshOptions::default() });
    let attic = mesh.agent("attic", mesh.shows_files(AgentOptions::default()));
    (mesh, attic)
}

/// Submits a job of one task.
fn submit<'a>(mesh: &'a Mesh, witness: &Witness, grace: &str, script: &str) -> Job<'a> {
    let text = serde_json::json!({
        "name": "held",
        "grace": grace,
        "mounts": [{"name": "files", "to": "/files"}],
        "script": mesh.inside(&format!("{}\n{script}", witness.shell())),
    });
    mesh.submit(&text.to_string())
}

fn is_strict(job: Job<'_>) -> bool {
    job.task("held")["sandbox"] == "strict"
}

#[test]
fn a_strict_task_outlives_a_killed_daemon() {
    let (mesh, mut attic) = mesh();
    if !mesh.is_strict("attic") {
        return;
    }
    let witness = mesh.witness();
    let gate = mesh.gate("task").shell();
    let job = submit(
        &mesh,
        &witness,
        "1s",
        &format!("saw start; echo before; {gate}; echo after; saw end; exit 5"),
    );
    for round in 0..2 {
        wait::until(secs(30), "it runs", || (witness.count("start") == 1).then_some(()));
        let tasks = attic.tasks();
        assert!(!tasks.is_empty(), "its processes are not found");
        attic.kill_daemon();
        attic.restart();
        mesh.node_becomes("attic", "HEALTHY");
        assert!(attic.tasks().intersection(&tasks).next().is_some(), "round {round}: it is another");
    }
    assert!(is_strict(job));
    mesh.gate("task").open();
    mesh.meshctl(&["wait", &job.id()]).exits(1);
    let task = job.task("held");
    assert_eq!(
        (&task["cause"], &task["exit_code"], &task["attempt"]),
        (&"exit".into(), &5.into(), &1.into())
    );
    assert_eq!((witness.count("start"), witness.count("end")), (1, 1));
    assert_eq!(job.log("held"), "before\nafter\n");
    attic.settles();
}

#[test]
fn a_cancel_reaches_strict_tasks_with_their_grace_and_all_their_processes() {
    let (mesh, attic) = mesh();
    if !mesh.is_strict("attic") {
        return;
    }
    let witness = mesh.witness();
    let polite = submit(
        &mesh,
        &witness,
        "20s",
        "trap 'saw term; exit 0' TERM; saw polite; while :; do sleep 0.1; done",
    );
    let deaf = submit(
        &mesh,
        &witness,
        "200ms",
        "trap '' TERM; (setsid sh -c 'while :; do sleep 1; done' &); saw deaf; while :; do sleep 1; done",
    );
    wait::until(secs(30), "both run", || {
        (witness.count("polite") + witness.count("deaf") == 2).then_some(())
    });
    for job in [polite, deaf] {
        mesh.meshctl(&["cancel", &job.id()]).ok();
        job.becomes("CANCELLED");
        assert!(is_strict(job));
    }
    assert_eq!(witness.count("term"), 1, "SIGTERM comes first, and its trap has time");
    attic.settles();
    // Cancelled means gone: the slots serve others.
    wait::until(secs(10), "its slots are free", || (mesh.node("attic")?["slots"]["free"] == 2).then_some(()));
}

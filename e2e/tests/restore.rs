//! An older copy takes the place of the database: whoever has seen more halts the mesh.

use std::{path::Path, process::Command};

use mesh_e2e::{
    Mesh,
    wait::{self, secs},
};

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(done.success(), "cp: {done}");
}

/// Puts the copy where the database was; nobody runs.
fn restore(old: &Path, database: &Path) {
    std::fs::remove_dir_all(database).unwrap();
    copy(old, database);
}

#[test]
fn a_database_that_went_back_in_time_halts_the_mesh_until_an_operator_accepts_it() {
    let (mut mesh, [attic]) = Mesh::with_agents(["attic"]);
    let witness = mesh.witness();
    let gate = mesh.gate("task");
    let kept = mesh.submit(&format!(
        "{{name: kept, script: '{}; saw start; {}; saw end'}}",
        witness.shell(),
        gate.shell()
    ));
    let kept = kept.number;
    wait::until(secs(30), "it runs", || (witness.count("start") == 1).then_some(()));
    let seen = || {
        let text = std::fs::read_to_string(attic.data_dir().join("seen.json")).ok()?;
        serde_json::from_str::<serde_json::Value>(&text).ok()?["seq"].as_u64()
    };
    mesh.stop_coordinator();
    let (database, old) = (mesh.data_dir().join("postgres"), mesh.path("old-postgres"));
    copy(&database, &old);
    let before = seen().expect("the agent keeps what it has seen");
    mesh.start_coordinator();
    mesh.node_becomes("attic", "HEALTHY");
    let lost = mesh.submit("{name: lost, command: ['true']}");
    let lost = (lost.completes(), lost.number).1;
    // More commits than an idle leader makes until the agent is back.
    wait::until(secs(60), "the agent has seen many commits", || {
        mesh.meshctl(&["tag", "attic", "turn=one"]).ok();
        mesh.meshctl(&["tag", "attic", "turn=two"]).ok();
        (seen()? > before + 60).then_some(())
    });
    mesh.stop_coordinator();
    restore(&old, &database);
    // As when the coordinator's machine was lost with its disk.
    std::fs::remove_file(mesh.data_dir().join("seen")).expect("the coordinator keeps what it has seen");

    mesh.start_coordinator();
    wait::until(secs(30), "the mesh halts", || (mesh.figure("mesh_halted") == 1).then_some(()));
    let ready = mesh.http("/readyz").unwrap();
    assert_eq!((ready.status, ready.body.contains("went back in time")), (503, true), "{}", ready.body);
    let status = mesh.json(&["status"]);
    let reason = status["halted"].as_str().expect("status says it").to_owned();
    assert!(reason.contains("attic") && reason.contains("meshctl accept-database"), "{reason}");
    let file = mesh.job_file("{name: never, command: ['true']}");
    let refused = mesh.meshctl(&["submit", file.to_str().unwrap()]).exits(6);
    assert!(refused.stderr.contains("went back in time"), "{refused}");
    assert!(mesh.log().contains("nothing is dispatched until an operator accepts it"));
    // It holds over a restart, also before any agent is back.
    mesh.kill_coordinator();
    mesh.start_coordinator();
    assert_eq!(mesh.http("/readyz").unwrap().status, 503);
    assert_eq!(mesh.figure("mesh_halted"), 1);
    assert_eq!(witness.count("start"), 1);

    mesh.meshctl(&["accept-database"]).ok();
    mesh.node_becomes("attic", "HEALTHY");
    assert_eq!(mesh.figure("mesh_halted"), 0);
    gate.open();
    mesh.job(kept).completes();
    assert_eq!((witness.count("start"), witness.count("end")), (1, 1), "what both histories know goes on");
    mesh.meshctl(&["job", &lost.to_string()]).exits(3);
    let next = mesh.submit("{name: next, command: ['true']}");
    assert!(next.number > lost, "the number of a lost job is given again");
    next.completes();
    mesh.meshctl(&["accept-database"]).exits(6);
}

#[test]
fn a_coordinator_notices_after_its_restart_that_its_database_went_back_though_no_agent_remembers() {
    let mut mesh = Mesh::start();
    mesh.stop_coordinator();
    let (database, old) = (mesh.data_dir().join("postgres"), mesh.path("old-postgres"));
    copy(&database, &old);
    mesh.start_coordinator();
    let lost = mesh.submit("{name: lost, command: ['true']}").number;
    // It dies; what it had seen is on disk all the same.
    let file = mesh.data_dir().join("seen");
    let before = std::fs::read_to_string(&file).expect("it was stopped in good order");
    wait::until(secs(20), "it keeps what it has seen", || {
        (std::fs::read_to_string(&file).ok()? != before).then_some(())
    });
    mesh.kill_coordinator();
    restore(&old, &database);

    mesh.start_coordinator();
    wait::until(secs(30), "the mesh halts", || (mesh.figure("mesh_halted") == 1).then_some(()));
    let status = mesh.json(&["status"]);
    let reason = status["halted"].as_str().expect("status says it");
    assert!(reason.contains("this coordinator has seen commit"), "{reason}");
    let file = mesh.job_file("{name: never, command: ['true']}");
    mesh.meshctl(&["submit", file.to_str().unwrap()]).exits(6);
    mesh.meshctl(&["accept-database"]).ok();
    let next = wait::until(secs(20), "the mesh serves", || {
        let out = mesh.meshctl(&["submit", file.to_str().unwrap()]);
        (out.code == 0).then(|| out.stdout.trim().parse::<u64>().expect("a job's number"))
    });
    assert!(next > lost, "the number of a lost job is given again");
    // A history that was accepted is accepted for good.
    mesh.stop_coordinator();
    mesh.start_coordinator();
    assert_eq!(mesh.figure("mesh_halted"), 0);
}

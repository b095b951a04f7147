//! The agent's daemon: what its tasks do not feel of its death, its restart and a cut cable.

use mesh_e2e::{
    Agent, AgentOptions, Job, Mesh, MeshOptions, Proxy, Signal, Witness,
    wait::{self, secs},
};

/// A job whose one task prints, waits at the gate, prints again.
fn held<'a>(mesh: &'a Mesh, witness: &Witness, gate: &str) -> Job<'a> {
    let text = format!(
        r"
        name: held
        script: |
          {saw}
          saw start
          echo before
          {wait}
          echo after
          echo aside >&2
          saw end
          exit 5
        ",
        saw = witness.shell(),
        wait = mesh.gate(gate).shell(),
    );
    mesh.submit(&text)
}

fn runs(witness: &Witness, count: usize) {
    wait::until(secs(30), "the task runs", || (witness.count("start") == count).then_some(()));
}

#[track_caller]
fn ended_once_with_its_true_status(mesh: &Mesh, job: Job<'_>, witness: &Witness) {
    mesh.meshctl(&["wait", &job.id()]).exits(1);
    let task = job.task("held");
    assert_eq!(task["cause"], "exit", "{task:#}");
    assert_eq!(task["exit_code"], 5, "{task:#}");
    assert_eq!(task["attempt"], 1, "{task:#}");
    assert_eq!(witness.count("start"), 1, "it was started again");
    assert_eq!(job.log("held"), "before\nafter\n", "output is missing");
}

#[test]
fn tasks_outlive_a_killed_daemon() {
    let (mesh, [mut attic]) = Mesh::with_agents(["attic"]);
    let witness = mesh.witness();
    let job = held(&mesh, &witness, "killed");
    runs(&witness, 1);
    attic.kill_daemon();
    attic.restart();
    mesh.node_becomes("attic", "HEALTHY");
    mesh.gate("killed").open();
    ended_once_with_its_true_status(&mesh, job, &witness);
}

#[test]
fn what_ends_while_the_daemon_is_down_is_told_afterwards() {
    let (mesh, [mut attic]) = Mesh::with_agents(["attic"]);
    let witness = mesh.witness();
    let job = held(&mesh, &witness, "down");
    runs(&witness, 1);
    attic.signal(Signal::SIGTERM);
    let status = attic.exit();
    assert!(status.success(), "SIGTERM detaches: {status}");
    mesh.gate("down").open();
    wait::until(secs(10), "the task ends by itself", || (witness.count("end") == 1).then_some(()));
    attic.restart();
    ended_once_with_its_true_status(&mesh, job, &witness);
}

#[test]
fn a_cut_cable_costs_no_attempt() {
    let proxy = Proxy::start();
    let mesh =
        Mesh::start_with(MeshOptions { advertise: vec![proxy.address().to_owned()], ..Default::default() });
    proxy.set_target(mesh.address("grpc"));
    let _attic = mesh.agent("attic", AgentOptions::slots(1));
    let witness = mesh.witness();
    let job = held(&mesh, &witness, "cable");
    runs(&witness, 1);
    for _ in 0..3 {
        proxy.flap();
        mesh.node_becomes("attic", "HEALTHY");
    }
    proxy.cut();
    // A credential of the same addresses: meshctl goes through the same cable.
    let direct = mesh.address("grpc").to_owned();
    let state = || {
        let nodes = mesh.meshctl(&["nodes", "-o", "json", "--endpoint", &direct]).ok().json();
        nodes[0]["state"].as_str().map(str::to_owned)
    };
    wait::until(secs(20), "the node is missed", || state().filter(|state| state == "OFFLINE"));
    mesh.gate("cable").open();
    wait::until(secs(10), "the task ends by itself", || (witness.count("end") == 1).then_some(()));
    proxy.heal();
    ended_once_with_its_true_status(&mesh, job, &witness);
}

#[test]
fn stop_drains_and_stop_kill_ends_the_tasks() {
    let mesh = Mesh::start();
    let mut attic: Agent = mesh.agent("attic", AgentOptions::slots(1));
    let witness = mesh.witness();
    let job = held(&mesh, &witness, "stop");
    runs(&witness, 1);
    attic.call(&["stop", "--kill"]).ok();
    attic.exit();
    wait::until(secs(10), "nothing of it is left", || attic.processes().is_empty().then_some(()));
    // Its node ended it, not the task: it is given again.
    let _lab = mesh.agent("lab", AgentOptions::slots(1));
    runs(&witness, 2);
    mesh.gate("stop").open();
    mesh.meshctl(&["wait", &job.id()]).exits(1);
    assert_eq!(job.task("held")["exit_code"], 5);
}

/// A rolling upgrade as an operator does it: the node drains, both sides are replaced under the
/// running tasks, in either order, and no task notices.
#[test]
fn a_draining_node_and_its_coordinator_are_replaced_under_running_tasks() {
    for agent_first in [true, false] {
        let mut mesh = Mesh::start();
        let mut attic = mesh.agent("attic", AgentOptions::slots(1));
        let witness = mesh.witness();
        let number = held(&mesh, &witness, "upgrade").number;
        runs(&witness, 1);
        let behind = mesh.submit("{name: behind, command: ['true']}").number;
        mesh.meshctl(&["drain", "attic"]).ok();
        let replace_agent = |attic: &mut Agent| {
            attic.signal(Signal::SIGTERM);
            assert!(attic.exit().success());
            attic.restart();
        };
        if agent_first {
            replace_agent(&mut attic);
        }
        assert!(mesh.stop_coordinator().success());
        mesh.start_coordinator();
        if !agent_first {
            replace_agent(&mut attic);
        }
        mesh.node_becomes("attic", "HEALTHY");
        let node = mesh.node("attic").expect("it is listed");
        assert_eq!((node["draining"].as_bool(), node["running"].as_u64()), (Some(true), Some(1)), "{node:#}");
        assert_eq!(mesh.job(behind).state(), "QUEUED", "a draining node takes nothing");

        let waiting = mesh.spawn(&["drain", "attic", "--wait"]);
        mesh.gate("upgrade").open();
        let outcome = waiting.outcome();
        assert_eq!(outcome.code, 0, "{outcome}");
        ended_once_with_its_true_status(&mesh, mesh.job(number), &witness);
        assert_eq!(mesh.job(behind).state(), "QUEUED");
        mesh.meshctl(&["uncordon", "attic"]).ok();
        let behind = mesh.job(behind);
        behind.completes();
        assert_eq!(behind.task("behind")["attempt"], 1, "a drain is no failed attempt");
    }
}

//! Nodes: where tasks may go, what operators do to a node, and nodes that fall silent.

use mesh_e2e::{
    AgentOptions, Mesh, Signal,
    wait::{self, holds, secs},
};

#[test]
fn tasks_go_where_the_job_says() {
    let mesh = Mesh::start();
    let _attic = mesh.agent("attic", AgentOptions::slots(2).tag("room", "attic").tag("disk", "ssd"));
    let _lab = mesh.agent("lab", AgentOptions::slots(2).tag("room", "lab").flag("--capability=camera"));
    let node = |wher: &str| {
        let job = mesh.submit(&format!("{{name: placed, command: ['true'], where: {wher}}}"));
        job.completes();
        job.task("placed")["node"].as_str().unwrap_or("-").to_owned()
    };
    for _ in 0..2 {
        assert_eq!(node("{tags: {room: lab}}"), "lab");
        assert_eq!(node("{tags: {room: attic, disk: ssd}}"), "attic");
        assert_eq!(node("{capabilities: [camera]}"), "lab");
        assert_eq!(node("{node: attic}"), "attic");
    }
    let nowhere = mesh.submit("{name: nowhere, command: ['true'], where: {tags: {room: cellar}}}");
    assert_eq!(nowhere.state(), "QUEUED", "no node has that tag: it waits");
    let why = mesh.meshctl(&["why", &nowhere.id()]).ok().stdout;
    assert!(why.contains("room"), "why does not name what is missing: {why}");

    let nodes = mesh.json(&["nodes"]);
    let lab = nodes.as_array().unwrap().iter().find(|node| node["name"] == "lab").expect("lab is listed");
    assert_eq!(lab["tags"]["room"], "lab");
    assert_eq!(lab["capabilities"][0], "camera");
    assert_eq!(lab["slots"]["total"], 2);
    assert!(lab["memory"]["total"].as_u64().is_some_and(|bytes| bytes > 0), "{lab:#}");
    assert!(lab["load"].as_f64().is_none_or(|load| (0.0..=1.0).contains(&load)), "{lab:#}");
    wait::until(secs(30), "the round trip is measured", || {
        mesh.node("lab").and_then(|node| node["rtt_ms"].as_f64()).filter(|rtt| *rtt > 0.0)
    });
}

#[test]
fn a_cordoned_node_gets_nothing_and_a_drained_one_empties() {
    let mesh = Mesh::start();
    let attic = mesh.agent("attic", AgentOptions::slots(1));
    let gate = mesh.gate("task");
    let witness = mesh.witness();
    mesh.meshctl(&["cordon", "attic"]).ok();
    let job =
        mesh.submit(&format!("{{name: held, script: '{}; saw start; {}'}}", witness.shell(), gate.shell()));
    let lab = mesh.agent("lab", AgentOptions::slots(1));
    job.becomes("RUNNING");
    wait::until(secs(20), "it runs", || (witness.count("start") == 1).then_some(()));
    assert_eq!(witness.events()[0].node, "lab");

    // Draining lets what runs end; what would come goes elsewhere.
    mesh.meshctl(&["drain", "lab"]).ok();
    mesh.meshctl(&["uncordon", "attic"]).ok();
    let next = mesh.submit("{name: next, command: ['true']}");
    next.completes();
    assert_eq!(next.task("next")["node"], "attic");
    gate.open();
    job.completes();
    assert_eq!(job.task("held")["attempt"], 1, "a drain is no failure");
    mesh.meshctl(&["uncordon", "lab"]).ok();
    mesh.meshctl(&["cordon", "nobody"]).exits(3);
    let there = mesh.json(&["node", "attic"]);
    assert_eq!(there["id"], attic.id());
    drop(lab);
}

#[test]
fn a_silent_node_is_suspected_then_offline_then_back() {
    let (mesh, agents) = Mesh::with_agents(["attic"]);
    agents[0].signal(Signal::SIGSTOP);
    mesh.node_becomes("attic", "SUSPECT");
    mesh.node_becomes("attic", "OFFLINE");
    assert_eq!(mesh.figure(r#"mesh_nodes{state="offline"}"#), 1);
    assert_eq!(mesh.figure(r#"mesh_nodes{state="healthy"}"#), 0);
    agents[0].signal(Signal::SIGCONT);
    mesh.node_becomes("attic", "HEALTHY");
    mesh.submit("{name: back, command: ['true']}").completes();
}

#[test]
fn a_lost_node_has_its_tasks_done_elsewhere() {
    let mesh = Mesh::start();
    let mut attic = mesh.agent("attic", AgentOptions::slots(1).tag("first", "yes"));
    let witness = mesh.witness();
    let gate = mesh.gate("task");
    let job = mesh.submit(&format!(
        "{{name: moved, script: '{}; saw start; {}; echo done'}}",
        witness.shell(),
        gate.shell()
    ));
    wait::until(secs(30), "it runs", || (witness.count("start") == 1).then_some(()));
    let _lab = mesh.agent("lab", AgentOptions::slots(1));
    attic.kill_all();
    wait::until(secs(30), "it runs again", || (witness.count("start") == 2).then_some(()));
    gate.open();
    job.completes();
    let task = job.task("moved");
    assert_eq!(task["node"], "lab");
    assert_eq!(task["attempt"], 2);
    assert_eq!(witness.all("start")[1].attempt, 2);
    assert_eq!(job.log("moved"), "done\n");
    assert!(mesh.figure(r#"mesh_task_retries_total{cause="lost"}"#) >= 1);

    // The machine comes back: it is a healthy member again, and nothing is run twice.
    attic.restart();
    mesh.node_becomes("attic", "HEALTHY");
    holds(secs(1), "nothing starts again", || witness.count("start") == 2);
}

#[test]
fn a_silent_node_keeps_its_task_when_it_is_back_in_time() {
    let (mesh, agents) = Mesh::with_agents(["attic"]);
    let witness = mesh.witness();
    let gate = mesh.gate("task");
    let job = mesh.submit(&format!(
        "{{name: patient, script: '{}; saw start; {}; saw end'}}",
        witness.shell(),
        gate.shell()
    ));
    wait::until(secs(30), "it runs", || (witness.count("start") == 1).then_some(()));
    agents[0].signal(Signal::SIGSTOP);
    mesh.node_becomes("attic", "OFFLINE");
    // There is no other node, so no replacement was committed: the attempt is still current.
    agents[0].signal(Signal::SIGCONT);
    mesh.node_becomes("attic", "HEALTHY");
    gate.open();
    job.completes();
    assert_eq!(job.task("patient")["attempt"], 1);
    assert_eq!(witness.count("start"), 1);
    assert_eq!(witness.count("end"), 1);
}

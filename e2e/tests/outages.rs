//! The mesh loses what it stands on while somebody waits for it: the database of others, the leader, an
//! answer on its way.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    time::{Duration, Instant},
};

use mesh_e2e::{
    AgentOptions, Mesh, MeshOptions, Proxy, Second, Way, Witness,
    wait::{self, secs},
};

/// A Postgres that came back serves the mesh again so soon.
const BACK: Duration = Duration::from_secs(10);

/// The words of a task that says so when it starts, waits for the gate, and says so when it ends.
fn gated(mesh: &Mesh, witness: &Witness) -> String {
    let (saw, gate) = (witness.shell(), mesh.gate("task").shell());
    format!("{saw}; echo before; saw start; {gate}; saw end; echo behind")
}

fn leads(mesh: &Mesh, second: Option<&Second>) -> usize {
    let first = mesh.http("/readyz").is_some_and(|reply| reply.status == 200);
    usize::from(first) + usize::from(second.is_some_and(Second::leads))
}

/// The database is nobody's of the mesh: it dies whole, and comes back when somebody starts it.
fn rides_out_a_killed_database(with_stand_by: bool) {
    let mut mesh = Mesh::shared();
    let attic = mesh.agent("attic", AgentOptions::default());
    let second = with_stand_by.then(|| mesh.second("second"));
    let witness = mesh.witness();
    let script = gated(&mesh, &witness);
    let number = mesh.submit(&format!("{{name: through, script: '{script}'}}")).number;
    wait::until(secs(30), "it runs", || (witness.count("start") == 1).then_some(()));

    mesh.kill_database();
    let file = mesh.job_file("{name: refused, command: ['true']}");
    let refused = mesh.meshctl(&["submit", file.to_str().unwrap(), "--endpoint", mesh.address("grpc")]);
    assert_eq!(refused.code, 5, "{refused}");
    wait::until(secs(10), "nobody leads", || (leads(&mesh, second.as_ref()) == 0).then_some(()));
    // Longer than a silent node is borne, and than a stand-by waits.
    wait::holds(secs(4), "nobody leads, and the task runs on", || {
        leads(&mesh, second.as_ref()) == 0 && witness.count("end") == 0
    });
    mesh.start_database();
    let up = Instant::now();
    wait::until(BACK, "one of them leads", || (leads(&mesh, second.as_ref()) == 1).then_some(()));
    mesh.meshctl(&["jobs"]).ok();
    let took = up.elapsed();
    println!("serves {took:?} after the database is back (with a stand-by: {with_stand_by})");
    assert!(took <= BACK, "it took {took:?}");

    mesh.node_becomes("attic", "HEALTHY");
    mesh.gate("task").open();
    let job = mesh.job(number);
    job.completes();
    assert_eq!(job.log("through"), "before\nbehind\n");
    assert_eq!(job.task("through")["attempt"], 1);
    assert_eq!((witness.count("start"), witness.count("end")), (1, 1));
    let known = mesh.json(&["jobs"]);
    assert_eq!(known.as_array().map(Vec::len), Some(1), "a refused job is there: {known:#}");
    mesh.submit("{name: after, command: ['true']}").completes();
    assert_eq!(leads(&mesh, second.as_ref()), 1);
    attic.settles();
    for node in mesh.json(&["nodes"]).as_array().unwrap() {
        assert_eq!(node["slots"]["free"], node["slots"]["total"], "a slot is not given back: {node:#}");
    }
}

#[test]
fn a_killed_external_database_is_waited_for() {
    rides_out_a_killed_database(false);
}

#[test]
fn a_killed_external_database_is_waited_for_by_a_stand_by_too() {
    rides_out_a_killed_database(true);
}

#[test]
fn who_waits_for_a_job_goes_on_with_the_next_leader() {
    let mut mesh = Mesh::shared();
    let attic = mesh.agent("attic", AgentOptions::slots(4));
    let second = mesh.second("second");
    // Who has heard of the stand-by finds it.
    for file in [attic.data_dir().join("identity/node.json"), mesh.credential()] {
        wait::until(secs(20), "the stand-by is known", || {
            std::fs::read_to_string(&file).ok()?.contains(second.address("grpc")).then_some(())
        });
    }
    let witness = mesh.witness();
    let script = gated(&mesh, &witness);
    let number = mesh.submit(&format!("{{name: through, script: '{script}'}}")).number.to_string();
    let file = mesh.job_file(&format!("{{name: awaited, script: '{script}'}}"));

    let waits = mesh.spawn(&["wait", &number]);
    let submits = mesh.spawn(&["submit", file.to_str().unwrap(), "--wait"]);
    let runs = mesh.spawn(&["run", "--", "sh", "-c", &script]);
    let mut follows = mesh.spawn(&["logs", "-f", &format!("{number}/through")]);
    let mut followed = BufReader::new(follows.stdout());
    let mut log = String::new();
    followed.read_line(&mut log).unwrap();
    assert_eq!(log, "before\n");
    // Three jobs run; four look at them.
    wait::until(secs(30), "all jobs run", || (witness.count("start") == 3).then_some(()));
    for command in [&waits, &submits, &runs, &follows] {
        wait::until(secs(30), "it is connected", || command.is_connected(mesh.address("grpc")).then_some(()));
    }

    mesh.kill_coordinator();
    wait::until(secs(30), "the stand-by leads", || second.leads().then_some(()));
    mesh.node_becomes("attic", "HEALTHY");
    mesh.gate("task").open();
    let runs = runs.outcome().ok();
    assert_eq!(runs.stdout, "before\nbehind\n", "{runs}");
    let submitted = submits.outcome().ok();
    waits.outcome().ok();
    followed.read_to_string(&mut log).unwrap();
    assert_eq!(log, "before\nbehind\n", "a line is missing, or there twice");
    follows.outcome().ok();
    assert_eq!((witness.count("start"), witness.count("end")), (3, 3));
    let awaited: u64 = submitted.stdout.lines().next().and_then(|line| line.trim().parse().ok()).unwrap();
    assert_eq!(mesh.job(awaited).state(), "COMPLETED");
}

#[test]
fn a_submit_whose_answer_is_lost_on_the_cable_makes_one_job() {
    let proxy = Proxy::start();
    let mesh =
        Mesh::start_with(MeshOptions { advertise: vec![proxy.address().to_owned()], ..Default::default() });
    proxy.set_target(mesh.address("grpc"));
    let file = mesh.job_file("{name: once, array: {range: '1-7'}, command: ['true']}");
    // The answer is on its way for so long.
    proxy.delay(Duration::from_millis(500));
    let mut submit = mesh.spawn(&["submit", file.to_str().unwrap()]);
    wait::until(secs(30), "it is committed", || {
        (mesh.figure(r#"mesh_tasks{state="queued"}"#) == 7).then_some(())
    });
    proxy.swallow(Way::Down);
    wait::holds(secs(1), "meshctl has no answer", || submit.is_running());
    proxy.delay(Duration::ZERO);
    proxy.heal();
    let out = submit.outcome().ok();
    let jobs = mesh.json(&["jobs"]);
    let jobs = jobs.as_array().unwrap();
    assert_eq!(jobs.len(), 1, "{jobs:#?}");
    assert_eq!(out.stdout.trim(), jobs[0]["id"].to_string(), "{jobs:#?}");
    assert_eq!(mesh.figure(r#"mesh_tasks{state="queued"}"#), 7);
}

//! The coordinator: what its death costs (nothing that was acknowledged), its restart and
//! what it tells the operator.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Instant,
};

use mesh_e2e::{
    AgentOptions, Mesh,
    wait::{self, secs},
};

/// Ten tasks on two slots, each waiting at the gate.
fn ten(mesh: &Mesh) -> (mesh_e2e::Job<'_>, mesh_e2e::Witness) {
    let witness = mesh.witness();
    let job = mesh.submit(&format!(
        r#"
        name: ten
        tasks:
          - name: part
            array: {{range: "1-10"}}
            script: |
              {saw}
              saw start
              {wait}
              echo "part $MESH_ITEM" | tee out.txt
              saw end
            outputs: [out.txt]
          - {{name: all, needs: [part], script: "cat inputs/part/*/out.txt | sort | tee all.txt", outputs: [all.txt]}}
        "#,
        saw = witness.shell(),
        wait = mesh.gate("ten").shell()
    ));
    wait::until(secs(30), "two run", || (witness.count("start") == 2).then_some(()));
    (job, witness)
}

fn ran_once(mesh: &Mesh, number: u64, witness: &mesh_e2e::Witness) {
    let job = mesh.job(number);
    let done = job.completes();
    assert_eq!(done["counts"]["completed"], 11);
    let mut parts: Vec<String> = witness.all("start").into_iter().map(|event| event.task).collect();
    parts.sort();
    parts.dedup();
    assert_eq!(parts.len(), 10);
    assert_eq!(witness.count("start"), 10, "a task was started twice: {:#?}", witness.events());
    assert_eq!(witness.count("end"), 10);
    assert!(job.tasks().iter().all(|task| task["attempt"] == 1), "{:#?}", job.tasks());
    assert_eq!(job.log("all").lines().count(), 10);
}

#[test]
fn a_killed_coordinator_loses_nothing() {
    let (mut mesh, _agents) = Mesh::with_agents(["attic"]);
    let (job, witness) = ten(&mesh);
    let number = job.number;
    mesh.kill_coordinator();
    mesh.meshctl(&["jobs"]).exits(5);
    let started = Instant::now();
    mesh.start_coordinator();
    mesh.meshctl(&["jobs"]).ok();
    assert!(started.elapsed() < secs(10), "back only after {:?}", started.elapsed());
    mesh.node_becomes("attic", "HEALTHY");
    assert_eq!(mesh.job(number).state(), "RUNNING");
    mesh.gate("ten").open();
    ran_once(&mesh, number, &witness);
    // And once more: what is done stays done.
    mesh.kill_coordinator();
    mesh.start_coordinator();
    assert_eq!(mesh.job(number).state(), "COMPLETED");
    assert_eq!(mesh.job(number).log("part.3"), "part 4\n", "the log outlives the coordinator");
}

#[test]
fn a_result_that_comes_while_the_coordinator_is_away_counts() {
    let (mut mesh, _agents) = Mesh::with_agents(["attic"]);
    let (job, witness) = ten(&mesh);
    let number = job.number;
    let status = mesh.stop_coordinator();
    assert!(status.success(), "SIGTERM ends it in order: {status}");
    assert!(
        !mesh.data_dir().join("postgres/postmaster.pid").exists(),
        "the private Postgres is stopped with it"
    );
    mesh.gate("ten").open();
    wait::until(secs(10), "the two end", || (witness.count("end") == 2).then_some(()));
    mesh.start_coordinator();
    ran_once(&mesh, number, &witness);
}

#[test]
fn health_and_metrics_tell_the_truth() {
    let (mesh, _agents) = Mesh::with_agents(["attic"]);
    assert_eq!(mesh.http("/healthz").expect("somebody answers").status, 200);
    assert_eq!(mesh.http("/readyz").expect("somebody answers").status, 200);
    assert_eq!(mesh.figure(r#"mesh_jobs{state="running"}"#), 0);
    mesh.submit("{name: good, array: {range: '1-3'}, command: ['true']}").completes();
    let bad = mesh.submit("{name: bad, command: ['false']}");
    mesh.meshctl(&["wait", &bad.id()]).exits(1);

    // Gauges are those of the last tick.
    wait::until(secs(10), "a tick after the last end", || {
        let healthy = mesh.figure(r#"mesh_nodes{state="healthy"}"#) == 1;
        (healthy && mesh.figure(r#"mesh_tasks{state="running"}"#) == 0).then_some(())
    });
    let page = mesh.http("/metrics").expect("somebody answers");
    assert_eq!(page.status, 200);
    for (line, value) in [
        (r#"mesh_nodes{state="healthy"}"#, 1),
        (r#"mesh_nodes{state="suspect"}"#, 0),
        (r#"mesh_tasks{state="running"}"#, 0),
        (r#"mesh_tasks_finished_total{cause="exit"}"#, 4),
        (r#"mesh_tasks_assigned_total{node="attic"}"#, 4),
        ("mesh_leader", 1),
    ] {
        assert_eq!(page.figure(line), Some(value), "{line} in\n{}", page.body);
    }
    for family in [
        "mesh_jobs{",
        "mesh_task_queue_seconds_count",
        "mesh_task_run_seconds_count",
        "mesh_job_seconds_count",
        "mesh_commit_seconds_count",
        "mesh_commit_batch_size_count",
        "mesh_grpc_requests_total{",
        "mesh_build_info{",
    ] {
        assert!(page.body.lines().any(|line| line.starts_with(family)), "no {family} in\n{}", page.body);
    }
    assert!(!page.body.contains(r#"job=""#), "no job is ever a label");

    let status = mesh.json(&["status"]);
    assert!(status.to_string().contains("healthy"), "{status:#}");
}

/// Where `scripts/setup` put it, or the machine has it.
fn promtool() -> Option<Command> {
    let fetched = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/promtool");
    [fetched, "promtool"].into_iter().find_map(|program| {
        Command::new(program).arg("--version").output().ok()?.status.success().then(|| Command::new(program))
    })
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let Some(mut promtool) = promtool() else {
        mesh_skip::skip("there is no promtool here (scripts/setup fetches it on Debian and Ubuntu)");
        return;
    };
    let (mesh, _agents) = Mesh::with_agents(["attic"]);
    mesh.submit("{name: good, array: {range: '1-3'}, command: ['true']}").completes();
    let bad = mesh.submit("{name: bad, command: ['false']}");
    mesh.meshctl(&["wait", &bad.id()]).exits(1);
    let page = mesh.http("/metrics").expect("somebody answers");

    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut checks = promtool.spawn().expect("promtool starts");
    checks.stdin.take().expect("it is piped").write_all(page.body.as_bytes()).expect("promtool reads");
    let found = checks.wait_with_output().expect("promtool ends");
    let said = [found.stdout, found.stderr].concat();
    assert!(found.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn without_postgres_binaries_it_says_what_to_do() {
    let mesh = Mesh::start();
    let out = mesh.coordinator_call(&["serve", "--pg-bin-dir", "/nonexistent/pg", "--listen", "127.0.0.1:0"]);
    assert_ne!(out.code, 0);
    assert!(out.stderr.contains("/nonexistent/pg"), "{out}");
}

#[test]
fn a_configuration_with_a_mistake_is_refused() {
    let mesh = Mesh::start();
    let file = mesh.write("wrong.toml", "[timings]\nheartbeet = \"5s\"\n");
    let out = mesh.coordinator_call(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(out.code, 78, "the unit would start it again and again: {out}");
    assert!(out.stderr.contains("heartbeet"), "{out}");
    assert!(out.stdout.is_empty(), "{out}");
}

#[test]
fn an_agent_that_starts_first_waits_for_its_coordinator() {
    let (mut mesh, [mut attic]) = Mesh::with_agents(["attic"]);
    mesh.kill_coordinator();
    attic.kill_daemon();
    attic.start_unready();
    mesh.start_coordinator();
    mesh.node_becomes("attic", "HEALTHY");
    mesh.submit("{name: after, command: ['true']}").completes();
    let _lab = mesh.agent("lab", AgentOptions::slots(1));
}

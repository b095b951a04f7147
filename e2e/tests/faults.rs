//! Faults under load: what dies is started again, and afterwards every task has run as often
//! as its attempts say, has one result, and nothing is left.

use std::collections::BTreeMap;

use mesh_e2e::{
    AgentOptions, Mesh, MeshOptions, Signal, Witness, can_mount, signal,
    wait::{self, secs},
};

fn busy(mesh: &Mesh, witness: &Witness, count: u32) -> u64 {
    let job = mesh.submit(&format!(
        r#"
        name: busy
        tasks:
          - name: part
            array: {{range: "1-{count}"}}
            script: |
              {saw}
              saw start
              sleep 0.1
              echo "$MESH_ITEM" > out.txt
              saw end
            outputs: [out.txt]
          - name: sum
            needs: [part]
            script: cat inputs/part/*/out.txt | awk '{{ n += $1 }} END {{ print n }}'
        "#,
        saw = witness.shell()
    ));
    job.number
}

/// The job is done, its sum right, and no task ran to its end more than once.
#[track_caller]
fn whole(mesh: &Mesh, number: u64, count: u32, witness: &Witness) {
    let job = mesh.job(number);
    job.completes();
    assert_eq!(job.log("sum"), format!("{}\n", count * (count + 1) / 2));
    for what in ["start", "end"] {
        let mut times = BTreeMap::new();
        for event in witness.all(what) {
            *times.entry((event.task, event.attempt)).or_insert(0) += 1;
        }
        assert!(times.values().all(|times| *times == 1), "an attempt ran twice: {times:?}");
        // The mesh knows of every one of them.
        let known: u64 = job.tasks().iter().filter_map(|task| task["attempt"].as_u64()).sum();
        assert!(times.len() as u64 <= known, "{} attempts, and the mesh knows of {known}", times.len());
    }
    nothing_runs(mesh);
}

/// Nothing is said to run, and every slot is free.
#[track_caller]
fn nothing_runs(mesh: &Mesh) {
    wait::until(secs(30), "no task is said to run", || {
        (mesh.figure(r#"mesh_tasks{state="running"}"#) == 0).then_some(())
    });
    for node in mesh.json(&["nodes"]).as_array().unwrap() {
        assert_eq!(node["slots"]["free"], node["slots"]["total"], "a slot is not given back: {node:#}");
    }
}

#[test]
fn a_coordinator_that_dies_again_and_again_loses_nothing() {
    let (mut mesh, agents) = Mesh::with_agents(["attic", "lab"]);
    let witness = mesh.witness();
    let number = busy(&mesh, &witness, 60);
    for round in 1..=3 {
        wait::until(secs(60), "some are done", || (witness.count("end") >= round * 10).then_some(()));
        mesh.kill_coordinator();
        mesh.start_coordinator();
    }
    whole(&mesh, number, 60, &witness);
    assert_eq!(witness.count("start"), 60, "the death of the coordinator started a task again");
    for agent in &agents {
        agent.settles();
    }
}

#[test]
fn daemons_that_die_again_and_again_lose_nothing() {
    let (mesh, mut agents) = Mesh::with_agents(["attic", "lab"]);
    let witness = mesh.witness();
    let number = busy(&mesh, &witness, 40);
    for round in 1..=3 {
        wait::until(secs(60), "some are done", || (witness.count("end") >= round * 8).then_some(()));
        for agent in &mut agents {
            agent.kill_daemon();
            agent.restart();
        }
    }
    whole(&mesh, number, 40, &witness);
    assert_eq!(witness.count("start"), 40, "the death of a daemon started a task again");
    for agent in &agents {
        agent.settles();
    }
}

#[test]
fn a_killed_postgres_comes_back_and_tasks_never_notice() {
    let (mesh, [attic]) = Mesh::with_agents(["attic"]);
    let witness = mesh.witness();
    let gate = mesh.gate("task");
    let job = mesh.submit(&format!(
        "{{name: through, script: '{}; saw start; {}; saw end; echo still here'}}",
        witness.shell(),
        gate.shell()
    ));
    wait::until(secs(30), "it runs", || (witness.count("start") == 1).then_some(()));
    let file = mesh.data_dir().join("postgres/postmaster.pid");
    let text = std::fs::read_to_string(&file).expect("the private Postgres runs");
    let postmaster: u32 = text.lines().next().unwrap().parse().unwrap();
    signal(postmaster, Signal::SIGKILL);
    gate.open();
    wait::until(secs(30), "the task ends by itself", || (witness.count("end") == 1).then_some(()));
    let back = || mesh.meshctl(&["jobs"]).code == 0;
    wait::until(secs(20), "the mesh serves again", || back().then_some(()));
    job.completes();
    assert_eq!(witness.count("start"), 1);
    assert_eq!(job.log("through"), "still here\n");
    assert_eq!(job.task("through")["attempt"], 1);
    mesh.submit("{name: after, command: ['true']}").completes();
    attic.settles();
    nothing_runs(&mesh);
}

/// Ends the coordinator's connections, so that it needs new ones.
const DISCONNECT: &str =
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mesh-coordinator'";

/// While Postgres is unusable nothing is changed and no task or node is given up; afterwards the mesh
/// goes on by itself.
fn rides_out(breaks: impl FnOnce(&Mesh), mends: impl FnOnce(&Mesh)) {
    let (mesh, _agents) = Mesh::with_agents(["attic"]);
    let witness = mesh.witness();
    let gate = mesh.gate("task");
    let job = mesh.submit(&format!(
        "{{name: through, script: '{}; saw start; {}; saw end'}}",
        witness.shell(),
        gate.shell()
    ));
    wait::until(secs(30), "it runs", || (witness.count("start") == 1).then_some(()));
    breaks(&mesh);
    let file = mesh.job_file("{name: refused, command: ['true']}");
    let refused = mesh.meshctl(&["submit", file.to_str().unwrap()]);
    assert_eq!(refused.code, 5, "{refused}");
    assert_eq!(mesh.http("/healthz").unwrap().status, 200);
    // Longer than a silent node is borne.
    wait::holds(secs(4), "the task runs on", || witness.count("start") == 1 && witness.count("end") == 0);
    mends(&mesh);
    let mended = std::time::Instant::now();
    mesh.node_becomes("attic", "HEALTHY");
    mesh.submit("{name: after, command: ['true']}").completes();
    assert!(mended.elapsed() < secs(15), "it took {:?}", mended.elapsed());
    gate.open();
    job.completes();
    assert_eq!((witness.count("start"), witness.count("end")), (1, 1));
    assert_eq!(job.task("through")["attempt"], 1);
}

#[test]
fn a_database_that_is_read_only_for_a_while_costs_nothing() {
    rides_out(
        |mesh| {
            mesh.sql("ALTER SYSTEM SET default_transaction_read_only = on");
            mesh.sql("SELECT pg_reload_conf()");
        },
        |mesh| {
            mesh.sql("ALTER SYSTEM RESET default_transaction_read_only");
            mesh.sql("SELECT pg_reload_conf()");
        },
    );
}

#[test]
fn a_database_that_has_no_connection_left_for_a_while_costs_nothing() {
    rides_out(
        |mesh| {
            mesh.sql("ALTER DATABASE mesh CONNECTION LIMIT 0");
            mesh.sql(DISCONNECT);
        },
        |mesh| mesh.sql("ALTER DATABASE mesh CONNECTION LIMIT -1"),
    );
}

/// The lead and how often it was taken.
fn epoch(mesh: &Mesh) -> String {
    mesh.query("SELECT epoch FROM leader")
}

#[test]
fn a_database_that_stands_still_for_seconds_costs_no_task_and_no_epoch() {
    let (mesh, agents) = Mesh::with_agents(["attic", "lab"]);
    let witness = mesh.witness();
    let number = busy(&mesh, &witness, 60);
    let before = epoch(&mesh);
    let some_more = |ends: usize| {
        wait::until(secs(60), "some are done", || (witness.count("end") >= ends).then_some(()));
    };
    some_more(5);
    // Longer than a silent node is borne, and than a stand-by would wait.
    for table in ["tasks", "leader"] {
        mesh.sql(&format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(4); COMMIT"));
        some_more(witness.count("end") + 5);
    }
    // The one server process that commits, while the others answer.
    let writer = mesh.query(
        "SELECT pid FROM pg_stat_activity
         WHERE application_name = 'mesh-coordinator' AND query LIKE '%UPDATE leader%' ORDER BY backend_start LIMIT 1",
    );
    let writer = writer.parse().expect("the coordinator commits");
    signal(writer, Signal::SIGSTOP);
    let file = mesh.job_file("{name: patient, command: ['true']}");
    let submit = mesh.spawn(&["submit", file.to_str().unwrap(), "--wait"]);
    wait::holds(secs(4), "nobody is given up", || {
        mesh.http("/readyz").is_some_and(|ready| ready.status == 200)
    });
    signal(writer, Signal::SIGCONT);
    let waited = submit.outcome();
    assert_eq!(waited.code, 0, "{waited}");
    whole(&mesh, number, 60, &witness);
    assert_eq!(witness.count("start"), 60, "a task was started again");
    assert_eq!(epoch(&mesh), before, "the lead was lost without need");
    for agent in &agents {
        agent.settles();
    }
}

#[test]
fn a_full_disk_is_named_and_what_was_acknowledged_is_there_once_there_is_space() {
    if !can_mount() {
        return mesh_skip::skip("this machine lets no test mount a small disk");
    }
    let mesh = Mesh::start_with(MeshOptions { disk: Some(300), ..MeshOptions::default() });
    let _agent = mesh.agent("attic", AgentOptions::default());
    let witness = mesh.witness();
    let gate = mesh.gate("task");
    let job = mesh.submit(&format!(
        "{{name: through, script: '{}; saw start; {}; saw end'}}",
        witness.shell(),
        gate.shell()
    ));
    wait::until(secs(30), "it runs", || (witness.count("start") == 1).then_some(()));
    let filler = mesh.fill_disk();
    // Nothing that compresses away, so that the database soon needs another page.
    let noise: String = (0..60_000_u32)
        .map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8 % 26))
        .collect();
    let submit = |number: usize| {
        let env = format!("{{NUMBER: '{number}', NOISE: {noise}}}");
        let file = mesh.job_file(&format!("{{name: large, command: ['true'], env: {env}}}"));
        mesh.meshctl(&["submit", file.to_str().unwrap()])
    };
    let mut taken: Vec<u64> = Vec::new();
    let refused = wait::until(secs(60), "a submit is refused", || {
        let out = submit(taken.len());
        if out.code != 0 {
            return Some(out);
        }
        taken.push(out.stdout.trim().parse().expect("a job's number"));
        None
    });
    assert_eq!(refused.code, 5, "{refused}");
    assert!(refused.stderr.contains("disk is full"), "{refused}");
    assert_eq!(mesh.http("/healthz").unwrap().status, 200);
    // Postgres itself ends when its log cannot grow, and cannot be started before there is space.
    wait::until(secs(30), "Postgres ends", || {
        filler.fill();
        (!mesh.psql("SELECT pg_switch_wal()").output().expect("psql runs").status.success()).then_some(())
    });
    let refused = wait::until(secs(30), "the disk is named again", || {
        filler.fill();
        Some(submit(taken.len())).filter(|out| out.stderr.contains("disk is full"))
    });
    assert_eq!(refused.code, 5, "{refused}");
    wait::holds(secs(2), "the task runs on", || witness.count("start") == 1 && witness.count("end") == 0);
    drop(filler);
    let freed = std::time::Instant::now();
    mesh.node_becomes("attic", "HEALTHY");
    mesh.submit("{name: after, command: ['true']}").completes();
    assert!(freed.elapsed() < secs(20), "it took {:?}", freed.elapsed());
    for number in taken {
        mesh.job(number).completes();
    }
    gate.open();
    job.completes();
    assert_eq!((witness.count("start"), witness.count("end")), (1, 1));
    assert_eq!(job.task("through")["attempt"], 1);
}

#[test]
fn a_coordinator_that_was_stuck_blames_no_node() {
    let (mesh, _agents) = Mesh::with_agents(["attic", "lab"]);
    let witness = mesh.witness();
    let gate = mesh.gate("task");
    let job = mesh.submit(&format!(
        "{{name: calm, script: '{}; saw start; {}; saw end'}}",
        witness.shell(),
        gate.shell()
    ));
    wait::until(secs(30), "it runs", || (witness.count("start") == 1).then_some(()));
    // Longer than a silent node is borne.
    mesh.stun(secs(5));
    mesh.node_becomes("attic", "HEALTHY");
    mesh.node_becomes("lab", "HEALTHY");
    wait::holds(secs(2), "the task is not started again", || witness.count("start") == 1);
    gate.open();
    job.completes();
    assert_eq!(job.task("calm")["attempt"], 1);
    assert_eq!(witness.count("end"), 1);
}

#[test]
fn a_submit_whose_answer_was_lost_is_not_done_twice() {
    let mut mesh = Mesh::start();
    let file = mesh.job_file("{name: once, array: {range: '1-1000'}, command: ['true']}");
    let args = ["submit", file.to_str().unwrap(), "--idempotency-key", "k"];
    let submit = mesh.spawn(&args);
    mesh.kill_coordinator();
    drop(submit);
    mesh.start_coordinator();
    let first = mesh.meshctl(&args).ok().stdout;
    assert_eq!(mesh.meshctl(&args).ok().stdout, first);
    let jobs = mesh.json(&["jobs"]);
    assert_eq!(jobs.as_array().or_else(|| jobs["items"].as_array()).unwrap().len(), 1, "{jobs:#}");
    let agent = mesh.agent("attic", AgentOptions::slots(4));
    drop(agent);
}

#[test]
fn a_cancel_that_races_the_end_leaves_one_terminal_state() {
    let (mesh, [attic]) = Mesh::with_agents(["attic"]);
    let witness = mesh.witness();
    let job = |number: u32| {
        // Ends from before the cancel is sent to well after it arrives.
        let nap = f64::from(number % 10) * 0.02;
        let script = format!("{}; saw start; sleep {nap}; saw end", witness.shell());
        mesh.submit(&format!("{{name: race-{number}, script: '{script}'}}"))
    };
    let jobs: Vec<_> = (0..30)
        .map(|number| {
            let job = job(number);
            // Too late is an answer too.
            let _ = mesh.meshctl(&["cancel", &job.id()]);
            (number, job)
        })
        .collect();
    let over = |state: &str| matches!(state, "COMPLETED" | "CANCELLED");
    let ends: Vec<String> = jobs
        .iter()
        .map(|(_, job)| wait::until(secs(30), "it is over", || Some(job.state()).filter(|state| over(state))))
        .collect();
    let task = |number: u32, job: &mesh_e2e::Job<'_>| {
        job.task(&format!("race-{number}"))["state"].as_str().expect("a task has a state").to_owned()
    };
    let first: Vec<String> = jobs.iter().map(|(number, job)| task(*number, job)).collect();
    for (((number, job), end), first) in jobs.iter().zip(&ends).zip(&first) {
        // A task may have been through when its job was cancelled, never the other way round.
        assert!(over(first) && (end == "CANCELLED" || first == "COMPLETED"), "job {end}, task {first}");
        assert_eq!((&job.state(), &task(*number, job)), (end, first), "a terminal state changed");
    }
    let completed = first.iter().filter(|state| *state == "COMPLETED").count();
    assert!(witness.count("end") >= completed, "completed, and never ran to its end");
    assert!(witness.count("start") <= jobs.len(), "something was started again");
    attic.settles();
}

#[test]
fn dead_letters_survive_a_crash_of_the_coordinator_and_are_redriven() {
    let mut mesh = Mesh::start();
    let _agent = mesh.agent("attic", AgentOptions::default());
    let repaired = mesh.path("repaired");
    let number = mesh
        .submit(&format!(
            r#"
            name: fragile
            tasks:
              - name: part
                array: {{range: "0-3"}}
                script: |
                  [ "$MESH_ITEM" = 0 ] || [ -e {repaired} ] || exit 3
                  echo "$MESH_ITEM $MESH_ATTEMPT" > out.txt
                outputs: [out.txt]
              - name: sum
                needs: [part]
                script: cat inputs/part/*/out.txt
            on_failure: continue
            "#,
            repaired = repaired.display()
        ))
        .number;
    mesh.job(number).becomes("PARTIALLY_COMPLETED");
    mesh.kill_coordinator();
    mesh.start_coordinator();
    mesh.node_becomes("attic", "HEALTHY");
    let dead = mesh.json(&["dead", &number.to_string()]);
    let refs: Vec<&str> =
        dead["items"].as_array().into_iter().flatten().filter_map(|one| one["ref"].as_str()).collect();
    assert_eq!(refs, ["1/part.1", "1/part.2", "1/part.3"]);
    let first = &dead["items"][0];
    assert_eq!(first["cause"], "exit", "{first:#}");
    assert_eq!(
        (first["exit_code"].as_i64(), first["failures"].as_i64(), first["losses"].as_i64()),
        (Some(3), Some(1), Some(0))
    );
    assert_eq!(first["node"], "attic");

    std::fs::write(&repaired, "").expect("write a file");
    let out = mesh.meshctl(&["redrive", &format!("{number}/part.1")]).ok();
    assert_eq!(out.stdout, format!("{number} 1 redriven\n"), "sum needs the other two as well");
    mesh.job(number).becomes("PARTIALLY_COMPLETED");
    // The second crash finds the job open.
    let out = mesh.meshctl(&["redrive", &number.to_string()]).ok();
    assert_eq!(out.stdout, format!("{number} 2 redriven, 1 come back with them\n"));
    mesh.kill_coordinator();
    mesh.start_coordinator();
    let job = mesh.job(number);
    job.completes();
    assert_eq!(job.log("sum"), "0 1\n1 2\n2 2\n3 2\n");
    assert_eq!(mesh.meshctl(&["redrive", &number.to_string()]).code, 6);
    assert_eq!(mesh.json(&["dead"])["items"].as_array().map(Vec::len), Some(0));
}

//! Two coordinators of one mesh: one leads, the other stands by and takes over.

use std::time::{Duration, Instant};

use mesh_e2e::{
    Agent, AgentOptions, Job, Mesh, MeshOptions, Second, Signal, Witness, signal,
    wait::{self, secs},
};

/// A stand-by leads so soon after the leader is dead or frozen.
const TAKEOVER: Duration = Duration::from_secs(5);

/// A task that runs until the gate is opened.
fn waiting<'a>(mesh: &'a Mesh, witness: &Witness) -> Job<'a> {
    let script = format!("{}; saw start; {}; saw end; echo here", witness.shell(), mesh.gate("task").shell());
    let job = mesh.submit(&format!("{{name: through, script: '{script}'}}"));
    wait::until(secs(30), "it runs", || (witness.count("start") == 1).then_some(()));
    job
}

/// An agent that has been told of the stand-by.
fn knows(mesh: &Mesh, agent: &Agent, second: &Second) {
    let file = agent.data_dir().join("identity/node.json");
    wait::until(secs(20), "the agent knows both coordinators", || {
        let text = std::fs::read_to_string(&file).ok()?;
        [mesh.address("grpc"), second.address("grpc")].iter().all(|one| text.contains(*one)).then_some(())
    });
}

#[track_caller]
fn leads_soon(second: &Second, since: Instant) {
    wait::until(secs(30), "the stand-by leads", || second.leads().then_some(()));
    let took = since.elapsed();
    assert!(took <= TAKEOVER, "it took {took:?}");
    eprintln!("took over after {took:?}");
}

#[test]
fn a_stand_by_takes_over_from_a_killed_leader_and_tasks_never_notice() {
    let mut mesh = Mesh::shared();
    assert_eq!(mesh.ready()["role"], "leader");
    let attic = mesh.agent("attic", AgentOptions::default());
    let mut second = mesh.second("second");
    assert_eq!(second.ready()["role"], "standby");
    assert_eq!(second.http("/healthz").unwrap().status, 200);
    let ready = second.http("/readyz").unwrap();
    assert_eq!((ready.status, ready.body.contains("standby")), (503, true), "{}", ready.body);
    assert_eq!(second.http("/metrics").unwrap().figure("mesh_leader"), Some(0));
    // Who asks the stand-by is sent on to the leader.
    mesh.meshctl(&["jobs", "--endpoint", second.address("grpc")]).ok();
    let witness = mesh.witness();
    let number = waiting(&mesh, &witness).number;
    knows(&mesh, &attic, &second);
    // Token and credential name both as well.
    let credential = std::fs::read_to_string(mesh.credential()).unwrap();
    assert!(credential.contains(second.address("grpc")), "{credential}");
    let token = mesh.token(&[]);

    mesh.kill_coordinator();
    let died = Instant::now();
    mesh.meshctl(&["jobs"]).ok();
    leads_soon(&second, died);
    mesh.node_becomes("attic", "HEALTHY");
    mesh.gate("task").open();
    let job = mesh.job(number);
    job.completes();
    assert_eq!(job.log("through"), "here\n");
    assert_eq!((witness.count("start"), witness.count("end")), (1, 1));
    assert_eq!(job.task("through")["attempt"], 1);
    // A token of the dead leader is good with its successor.
    let joined = mesh.agent_call("lab", &["join", &token, "--name", "lab"]);
    assert_eq!(joined.code, 0, "{joined}");

    mesh.start_coordinator();
    assert_eq!(mesh.ready()["role"], "standby", "the first comes back behind the second");
    mesh.submit("{name: after, command: [echo, after]}").completes();
    second.kill();
    let died = Instant::now();
    wait::until(secs(30), "the first leads again", || (mesh.http("/readyz")?.status == 200).then_some(()));
    assert!(died.elapsed() <= TAKEOVER, "{:?}", died.elapsed());
    assert_eq!(mesh.job(number).log("through"), "here\n", "output written under both leaders");
    mesh.submit("{name: again, command: ['true']}").completes();
}

#[test]
fn a_stand_by_takes_over_from_a_frozen_leader_which_then_stands_by() {
    let mesh = Mesh::shared();
    let attic = mesh.agent("attic", AgentOptions::default());
    let mut second = mesh.second("second");
    let witness = mesh.witness();
    let number = waiting(&mesh, &witness).number;
    knows(&mesh, &attic, &second);
    signal(mesh.coordinator_pid(), Signal::SIGSTOP);
    let frozen = Instant::now();
    leads_soon(&second, frozen);
    // The agent comes over, though the frozen leader still holds its connection.
    mesh.node_becomes("attic", "HEALTHY");
    mesh.gate("task").open();
    mesh.job(number).completes();
    mesh.submit("{name: meanwhile, command: ['true']}").completes();
    signal(mesh.coordinator_pid(), Signal::SIGCONT);
    wait::until(secs(30), "the woken leader stands by", || {
        let ready = mesh.http("/readyz")?;
        (ready.status == 503 && ready.body.contains("standby")).then_some(())
    });
    assert_eq!(mesh.figure("mesh_leader"), 0);
    assert!(second.leads(), "the woken one took the lead back");
    assert_eq!((witness.count("start"), witness.count("end")), (1, 1));
    assert_eq!(mesh.job(number).task("through")["attempt"], 1);
    // A lead that is laid down in good order needs no waiting.
    second.stop();
    let stopped = Instant::now();
    wait::until(secs(30), "the first leads", || (mesh.http("/readyz")?.status == 200).then_some(()));
    assert!(stopped.elapsed() < secs(2), "{:?}", stopped.elapsed());
    mesh.submit("{name: again, command: ['true']}").completes();
}

#[test]
fn a_second_coordinator_that_shares_too_little_is_refused() {
    let mesh = Mesh::shared();
    let mut args = mesh.sharing();
    let refused = |args: &[String], says: &str| {
        let mut all = vec!["serve", "--listen", "127.0.0.1:0", "--join-listen", "127.0.0.1:0"];
        all.extend(["--http-listen", "127.0.0.1:0"]);
        all.extend(args.iter().map(String::as_str));
        let out = mesh.coordinator_call(&all);
        assert_ne!(out.code, 0, "{out}");
        assert!(out.stderr.contains(says), "{says}: {out}");
        assert!(out.stdout.is_empty(), "{out}");
    };
    refused(&args[..2], "give this one the --mesh-secret-file and the --store-dir");
    refused(&args[..4], "give --store-dir as well");
    let other = mesh.path("other-store");
    args[5] = other.display().to_string();
    refused(&args, "is not the store of this mesh's other coordinators");
    let wrong = mesh.write("wrong-secret", "another secret, as long as it should be");
    args[3] = wrong.display().to_string();
    refused(&args, "the secret in");
    assert_eq!(mesh.figure("mesh_leader"), 1, "the leader was disturbed");
}

#[test]
fn beside_a_leader_that_shares_nothing_a_second_coordinator_is_refused() {
    let mesh = Mesh::start_with(MeshOptions { lonely: true, ..MeshOptions::default() });
    let mut args = mesh.sharing();
    let refused = |args: &[String]| {
        let mut all = vec!["serve", "--listen", "127.0.0.1:0", "--join-listen", "127.0.0.1:0"];
        all.extend(["--http-listen", "127.0.0.1:0"]);
        all.extend(args.iter().map(String::as_str));
        let out = mesh.coordinator_call(&all);
        assert_ne!(out.code, 0, "{out}");
        assert!(out.stdout.is_empty(), "{out}");
        for says in ["neither in", "start that one with --mesh-secret-file and --store-dir first"] {
            assert!(out.stderr.contains(says), "{says}: {out}");
        }
    };
    // Whatever it brings along itself.
    refused(&args);
    let secret = mesh.write("secret", "a secret of the second one alone");
    args.extend(["--mesh-secret-file".to_owned(), secret.display().to_string()]);
    args.extend(["--store-dir".to_owned(), mesh.path("store").display().to_string()]);
    refused(&args);
    assert_eq!(mesh.figure("mesh_leader"), 1, "the leader was disturbed");
    let _attic = mesh.agent("attic", AgentOptions::default());
    mesh.submit("{name: after, command: ['true']}").completes();
}

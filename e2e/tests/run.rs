//! `meshctl run`: a command on the mesh that feels like a command here.

use std::fs;

use mesh_e2e::{
    Mesh, Signal,
    wait::{self, secs},
};

#[test]
fn it_exits_as_the_command_did() {
    let (mesh, _agents) = Mesh::with_agents(["attic"]);
    let out = mesh.meshctl(&["run", "--", "sh", "-c", "echo out; echo err >&2"]).ok();
    assert_eq!(out.stdout, "out\n");
    assert!(out.stderr.contains("err\n"), "{out}");
    mesh.meshctl(&["run", "--", "sh", "-c", "exit 42"]).exits(42);
    mesh.meshctl(&["run", "--", "sh", "-c", "kill -TERM $$"]).exits(128 + 15);
    mesh.meshctl(&["run", "--timeout", "300ms", "--", "sleep", "60"]).exits(124);
    mesh.meshctl(&["run", "--", "no-such-program"]).exits(127);
    mesh.meshctl(&["run", "--out", "never-made", "--", "true"]).exits(125);
    mesh.meshctl(&["run"]).exits(2);
}

#[test]
fn it_takes_files_there_and_brings_files_back() {
    let (mesh, _agents) = Mesh::with_agents(["attic"]);
    mesh.write("in.txt", "hello\n");
    mesh.write("tree/a/b.txt", "deep\n");
    let args = ["run", "--in", "in.txt", "--in", "tree", "--out", "results/", "--"];
    let command = ["sh", "-c", "tr a-z A-Z < in.txt > results/out.txt; cp tree/a/b.txt results/"];
    mesh.meshctl(&args.iter().chain(&command).copied().collect::<Vec<_>>()).ok();
    assert_eq!(fs::read_to_string(mesh.path("results/out.txt")).unwrap(), "HELLO\n");
    assert_eq!(fs::read_to_string(mesh.path("results/b.txt")).unwrap(), "deep\n");
}

#[test]
fn ctrl_c_ends_the_command_over_there() {
    let (mesh, agents) = Mesh::with_agents(["attic"]);
    let witness = mesh.witness();
    let script = format!("{}; saw start; while :; do sleep 1; done", witness.shell());
    let run = mesh.spawn(&["run", "--", "sh", "-c", &script]);
    wait::until(secs(30), "it runs", || (witness.count("start") == 1).then_some(()));
    run.signal(Signal::SIGINT);
    run.outcome().exits(130);
    agents[0].settles();
    assert_eq!(mesh.json(&["job", "last"])["state"], "CANCELLED");
}

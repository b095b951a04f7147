//! Output: seen while it happens, kept whole, and told apart.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
};

use mesh_e2e::Mesh;

#[test]
fn a_follower_sees_lines_while_the_task_runs() {
    let (mesh, _agents) = Mesh::with_agents(["attic"]);
    let gate = mesh.gate("line");
    let job = mesh.submit(&format!(
        "{{name: talk, script: 'echo first; {}; echo second; echo aside >&2'}}",
        gate.shell()
    ));
    let mut follower = mesh.spawn(&["logs", "-f", &format!("{}/talk", job.id())]);
    let mut lines = BufReader::new(follower.stdout());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "first\n");
    assert_eq!(job.task("talk")["state"], "RUNNING", "the line came before the end");
    gate.open();
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "second\n", "standard output alone, and the follower ends with the task");
    let out = follower.outcome().ok();
    assert_eq!(out.stderr, "aside\n", "standard error goes to its own descriptor");
}

#[test]
fn output_is_whole_and_raw_for_one_task_and_prefixed_for_several() {
    let (mesh, _agents) = Mesh::with_agents(["attic"]);
    let job = mesh.submit(
        r#"
        name: words
        tasks:
          - {name: pair, array: {range: "1-2"}, command: [echo, "this is {item}"]}
          - {name: raw, command: [printf, 'a\000b\377\033[1mc']}
          - {name: long, script: "seq 1 200000; echo end >&2"}
        "#,
    );
    job.completes();
    assert_eq!(job.log("pair.1"), "this is 2\n");
    let both = mesh.meshctl(&["logs", &format!("{}/pair", job.id())]).ok().stdout;
    let mut lines: Vec<&str> = both.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["pair.0| this is 1", "pair.1| this is 2"]);

    let mut raw = mesh.command(&["logs", &format!("{}/raw", job.id())]);
    assert_eq!(raw.output().unwrap().stdout, b"a\0b\xff\x1b[1mc", "bytes are not touched in a pipe");

    let long = mesh.meshctl(&["logs", &format!("{}/long", job.id())]).ok();
    let expected = (1..=200_000).fold(String::new(), |text, n| text + &n.to_string() + "\n");
    assert!(long.stdout == expected, "{} bytes of {}", long.stdout.len(), expected.len());
    assert_eq!(long.stderr, "end\n");
    let only = mesh.meshctl(&["logs", &format!("{}/long", job.id()), "--stderr"]).ok();
    assert_eq!((only.stdout.as_str(), only.stderr.as_str()), ("", "end\n"));

    let objects = mesh.meshctl(&["logs", &format!("{}/pair.0", job.id()), "-o", "json"]).ok().json_lines();
    assert_eq!(objects.len(), 1, "{objects:#?}");
    assert_eq!(objects[0]["task"], "pair");
    assert_eq!(objects[0]["index"], 0);
    assert_eq!(objects[0]["stream"], "stdout");
    assert_eq!(objects[0]["offset"], 0);
    assert_eq!(objects[0]["data"], "this is 1\n");

    mesh.meshctl(&["logs", &format!("{}/nothing", job.id())]).exits(3);
}

#[test]
fn each_attempt_keeps_its_own_output() {
    let (mesh, _agents) = Mesh::with_agents(["attic"]);
    let job = mesh.submit(
        r#"
        name: twice
        retry: {attempts: 2, backoff: 50ms}
        script: |
          echo "attempt $MESH_ATTEMPT"
          test "$MESH_ATTEMPT" = 2
        "#,
    );
    job.completes();
    assert_eq!(job.log("twice"), "attempt 2\n", "the latest unless one is named");
    let first = mesh.meshctl(&["logs", &format!("{}/twice", job.id()), "--attempt", "1"]).ok();
    assert_eq!(first.stdout, "attempt 1\n");
}

#[test]
fn who_does_not_read_holds_up_nobody_and_misses_nothing() {
    const BYTES: usize = 48 * 1024 * 1024;
    let (mesh, _agents) = Mesh::with_agents(["attic"]);
    let pid = mesh.coordinator_pid();
    let gate = mesh.gate("begin");
    let job =
        mesh.submit(&format!("{{name: much, script: '{}; yes 0123456789 | head -c {BYTES}'}}", gate.shell()));
    let task = format!("{}/much", job.id());
    // Its pipe fills, then its window, then its place on the coordinator.
    let mut slow = mesh.spawn(&["logs", "-f", &task]);
    job.task_becomes("much", "RUNNING");
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    let before = memory(pid, "VmRSS:");
    gate.open();
    job.completes();
    assert_eq!(mesh.meshctl(&["logs", &task]).ok().stdout.len(), BYTES, "another reader has it all");
    let cost = memory(pid, "VmHWM:").saturating_sub(before);
    assert!(cost < 40 * 1024 * 1024, "one who does not read cost {cost} bytes");
    let mut kept = Vec::new();
    slow.stdout().read_to_end(&mut kept).unwrap();
    assert_eq!(kept.len(), BYTES, "what was kept for the slow one");
    slow.outcome().ok();
}

/// A figure of a process's memory, in bytes.
fn memory(pid: u32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap() * 1024
}

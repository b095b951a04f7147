//! `run`: a command on the mesh as if it ran here.

use mesh_proto::{
    digest::Digest,
    v1::{self, Cause, JobState, TaskState},
};
use rstest::rstest;

use super::fake::{Fake, Fate, chunk};

fn fate(state: JobState, cause: Cause, exit_code: Option<i32>, signal: Option<i32>) -> Fate {
    let task = v1::TaskInfo {
        state: if state == JobState::Completed { TaskState::Completed } else { TaskState::Failed }.into(),
        cause: cause.into(),
        exit_code,
        signal,
        ..v1::TaskInfo::default()
    };
    Fate { state, task, ..Fate::default() }
}

fn completed() -> Fate {
    fate(JobState::Completed, Cause::Exit, Some(0), None)
}

#[test]
fn output_comes_raw_and_nothing_else_does() {
    let fake = Fake::start();
    fake.world(|world| {
        world.next = completed();
        world.next.chunks =
            vec![chunk("echo", 0, false, false, "hi\x1b[0m"), chunk("echo", 0, false, true, "oops")];
    });
    let outcome = fake.run(&["run", "--", "echo", "hi"]).exits(0);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("hi\x1b[0m", "oops"));
    fake.world(|world| {
        let spec = &world.jobs[0].spec;
        assert_eq!((spec.name.as_str(), spec.tasks[0].name.as_str()), ("echo", "echo"));
        assert_eq!(spec.tasks[0].command, ["echo", "hi"]);
    });
}

#[rstest]
#[case(Cause::Exit, Some(3), None, 3, "")]
#[case(Cause::Signal, None, Some(11), 139, "meshctl: job 1: signal 11\n")]
#[case(Cause::Timeout, None, Some(15), 124, "meshctl: job 1: timeout\n")]
#[case(Cause::Oom, None, Some(9), 137, "meshctl: job 1: oom\n")]
#[case(Cause::Infra, None, None, 125, "meshctl: job 1: infra\n")]
#[case(Cause::Output, Some(0), None, 125, "meshctl: job 1: output\n")]
fn it_exits_as_the_command_did(
    #[case] cause: Cause,
    #[case] exit_code: Option<i32>,
    #[case] signal: Option<i32>,
    #[case] status: i32,
    #[case] stderr: &str,
) {
    let fake = Fake::start();
    fake.world(|world| world.next = fate(JobState::Failed, cause, exit_code, signal));
    let outcome = fake.run(&["run", "false"]).exits(status);
    assert_eq!(outcome.stderr, stderr);
}

#[test]
fn a_command_that_was_cancelled_before_it_began_says_so() {
    let fake = Fake::start();
    fake.world(|world| {
        let task = v1::TaskInfo { state: TaskState::Cancelled.into(), ..v1::TaskInfo::default() };
        let reason = "not today".to_owned();
        world.next = Fate { state: JobState::Cancelled, reason, task, ..Fate::default() };
    });
    let outcome = fake.run(&["run", "true"]).exits(125);
    assert_eq!(outcome.stderr, "meshctl: job 1: cancelled: not today\n");
}

#[test]
fn every_flag_arrives() {
    let fake = Fake::start();
    fake.world(|world| world.next = completed());
    fake.run(&[
        "run",
        "--cpu",
        "0.5",
        "--memory",
        "512MiB",
        "--resource",
        "licence=2",
        "--env",
        "A=b=c",
        "--env",
        "HOME",
        "--timeout",
        "1m30s",
        "--grace",
        "0s",
        "--attempts",
        "3",
        "--priority",
        "9",
        "--tag",
        "zone=a",
        "--capability",
        "ssd",
        "--node",
        "attic",
        "--os",
        "linux",
        "--arch",
        "x86_64",
        "--limits",
        "cgroup",
        "--sandbox",
        "none",
        "--network",
        "host",
        "--name",
        "mine",
        "true",
        "--not-a-flag",
    ])
    .exits(0);
    fake.world(|world| {
        let spec = &world.jobs[0].spec;
        assert_eq!((spec.name.as_str(), spec.priority), ("mine", 9));
        let task = &spec.tasks[0];
        assert_eq!(task.command, ["true", "--not-a-flag"]);
        assert_eq!(task.env["A"], "b=c");
        assert_eq!(task.env["HOME"], fake.path().to_str().unwrap());
        let resources = task.resources.as_ref().unwrap();
        assert_eq!((resources.cpu_millis, resources.memory_bytes), (500, 512 << 20));
        assert_eq!(resources.named["licence"], 2);
        let conditions = task.r#where.as_ref().unwrap();
        assert_eq!(conditions.tags["zone"], "a");
        assert_eq!(conditions.capabilities, ["ssd"]);
        let words = [&conditions.node, &conditions.os, &conditions.arch, &conditions.limits];
        assert_eq!(words, ["attic", "linux", "x86_64", "cgroup"]);
        assert_eq!((task.timeout_ms, task.grace_ms), (90_000, 0));
        assert_eq!(task.retry.as_ref().unwrap().attempts, 3);
        assert_eq!((task.sandbox(), task.network()), (v1::SandboxLevel::None, v1::Network::Host));
    });
}

#[test]
fn braces_on_the_command_line_are_meant_as_they_stand() {
    let fake = Fake::start();
    fake.world(|world| world.next = completed());
    fake.run(&["run", "jq", "{name}", "--env-of", "{params.x}"]).exits(0);
    fake.world(|world| {
        let spec = &world.jobs[0].spec;
        let words: Vec<String> = spec.tasks[0]
            .command
            .iter()
            .map(|word| mesh_proto::template::replace(word, None, &spec.params).unwrap())
            .collect();
        assert_eq!(words, ["jq", "{name}", "--env-of", "{params.x}"]);
    });
}

#[test]
fn files_go_and_come_to_their_places() {
    let fake = Fake::start();
    fake.write("data/x.csv", "1,2");
    fake.write("y.csv", "3");
    let result = b"result";
    fake.world(|world| {
        world.next = completed();
        world.blobs.insert(Digest::of(result), (&result[..]).into());
        let files = vec![v1::FileEntry {
            path: "results/r.txt".into(),
            digest: Digest::of(result).to_vec(),
            size: 6,
            ..v1::FileEntry::default()
        }];
        world.next.outputs =
            vec![v1::TaskOutputs { task: "sum".into(), files, ..v1::TaskOutputs::default() }];
    });
    fake.run(&["run", "--in", "data/x.csv", "--in", "y.csv:in/z.csv", "--out", "./results/", "--", "sum"])
        .exits(0);
    assert_eq!(fake.read("results/r.txt"), "result");
    fake.world(|world| {
        let task = &world.jobs[0].spec.tasks[0];
        let paths: Vec<_> = task.inputs.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["data/x.csv", "in/z.csv"]);
        assert_eq!(task.outputs, ["results/"]);
        assert!(world.blobs.contains_key(&Digest::of(b"1,2")));
    });
    let outcome = fake.run(&["run", "--in", "nope", "true"]).exits(2);
    assert!(outcome.stderr.starts_with("meshctl: there is no file \"nope\""), "{}", outcome.stderr);
}

#[test]
fn ctrl_c_cancels_and_waits_for_the_end() {
    for signal in ["-INT", "-TERM"] {
        let fake = Fake::start();
        fake.world(|world| world.next.state = JobState::Running);
        let running = fake.spawn(&["run", "sleep", "1000"]);
        fake.wait_for_call("watch", 1);
        let killed = std::process::Command::new("kill").args([signal, &running.pid().to_string()]).status();
        assert!(killed.unwrap().success());
        let outcome = running.finish().exits(130);
        assert!(outcome.stderr.contains("cancelling job 1"), "{}", outcome.stderr);
        fake.world(|world| {
            assert_eq!(world.cancels, ["interrupted"]);
            assert_eq!(world.jobs[0].shown.state(), JobState::Cancelled);
        });
    }
}

#[test]
fn a_job_cancelled_by_another_is_not_the_commands_failure() {
    let fake = Fake::start();
    fake.world(|world| {
        world.next = fate(JobState::Cancelled, Cause::Cancelled, None, None);
        world.next.reason = "cancelled by bob".into();
    });
    let outcome = fake.run(&["run", "sleep", "1"]).exits(125);
    assert_eq!(outcome.stderr, "meshctl: job 1: cancelled: cancelled by bob\n");
}

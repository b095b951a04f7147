//! submit, jobs, job, tasks, wait, cancel.

use mesh_proto::v1::{self, Cause, JobState, TaskState};

use super::fake::{Fake, Job, chunk, summary};

fn thumbnails() -> Job {
    let counts = v1::Counts { running: 2, queued: 5, completed: 3, failed: 1, ..v1::Counts::default() };
    let mut resize = summary("resize", 10, true);
    resize.counts = Some(counts);
    let mut sheet = summary("sheet", 1, false);
    sheet.needs = vec!["resize".into()];
    sheet.counts = Some(v1::Counts { blocked: 1, ..v1::Counts::default() });
    Job {
        shown: v1::Job {
            number: 12,
            uuid: "0190aaaa-0000-7000-8000-000000000012".into(),
            name: "thumbnails".into(),
            owner: "ann".into(),
            state: JobState::Running.into(),
            priority: 5,
            on_failure: v1::OnFailure::Continue.into(),
            created_at_ms: 1_762_000_000_000,
            started_at_ms: 1_762_000_001_500,
            counts: Some(v1::Counts { blocked: 1, ..counts }),
            tasks: vec![resize, sheet],
            progress: 0.375,
            run_ms: 83_456,
            ..v1::Job::default()
        },
        tasks: vec![
            v1::TaskInfo {
                key: Some(v1::TaskKey { job: 12, task: 0, index: 0 }),
                name: "resize".into(),
                array: true,
                item: "photos/\x1b[31ma.jpg".into(),
                state: TaskState::Failed.into(),
                attempt: 2,
                node: "attic".into(),
                cause: Cause::Exit.into(),
                exit_code: Some(3),
                started_at_ms: 1_762_000_001_500,
                finished_at_ms: 1_762_000_002_900,
                message: "exited with status 3".into(),
                queued_at_ms: 1_762_000_000_000,
                sandbox: v1::SandboxLevel::Strict.into(),
                limits: v1::Limits::Cgroup.into(),
                ..v1::TaskInfo::default()
            },
            v1::TaskInfo {
                key: Some(v1::TaskKey { job: 12, task: 0, index: 1 }),
                name: "resize".into(),
                array: true,
                item: "photos/b.jpg".into(),
                state: TaskState::Running.into(),
                attempt: 1,
                node: "office".into(),
                progress: Some(40),
                progress_message: "resizing".into(),
                started_at_ms: 1_762_000_001_500,
                queued_at_ms: 1_762_000_000_000,
                ..v1::TaskInfo::default()
            },
            v1::TaskInfo {
                key: Some(v1::TaskKey { job: 12, task: 0, index: 2 }),
                name: "resize".into(),
                array: true,
                item: "photos/c.jpg".into(),
                state: TaskState::Retrying.into(),
                attempt: 1,
                node: "lab".into(),
                cause: Cause::Signal.into(),
                signal: Some(9),
                ..v1::TaskInfo::default()
            },
            v1::TaskInfo {
                key: Some(v1::TaskKey { job: 12, task: 1, index: 0 }),
                name: "sheet".into(),
                state: TaskState::Blocked.into(),
                ..v1::TaskInfo::default()
            },
        ],
        ..Job::default()
    }
}

fn with_thumbnails() -> Fake {
    let fake = Fake::start();
    fake.world(|world| world.jobs.push(thumbnails()));
    fake
}

#[test]
fn jobs_are_shown_to_people_and_programs() {
    let fake = with_thumbnails();
    fake.world(|world| {
        let mut hello = Job::default();
        hello.shown =
            v1::Job { number: 13, name: "hello".into(), state: JobState::Queued.into(), ..hello.shown };
        world.jobs.push(hello);
    });
    insta::assert_snapshot!("jobs", fake.run(&["jobs"]).exits(0).stdout);
    insta::assert_snapshot!("job", fake.run(&["job", "12"]).exits(0).stdout);
    insta::assert_json_snapshot!("job_json", fake.json(&["job", "12"]));
    insta::assert_json_snapshot!("jobs_json", fake.json(&["jobs"]));
    assert_eq!(fake.json(&["job", "last"])["id"], 13);
    let outcome = fake.run(&["job", "99"]).exits(3);
    assert_eq!(outcome.stderr, "meshctl: there is no job 99\n");
}

#[test]
fn tasks_are_shown_page_by_page() {
    let fake = with_thumbnails();
    insta::assert_snapshot!("tasks", fake.run(&["tasks", "12"]).exits(0).stdout);
    insta::assert_json_snapshot!("tasks_json", fake.json(&["tasks", "12"]));
    let page = fake.json(&["tasks", "12", "--limit", "2"]);
    assert_eq!((page["items"].as_array().unwrap().len(), page["next"].as_str()), (2, Some("2")));
    let rest = fake.json(&["tasks", "12", "--after", "2"]);
    assert_eq!((rest["items"][0]["ref"].as_str(), rest["next"].is_null()), (Some("12/resize.2"), true));
    let outcome = fake.run(&["tasks", "12", "--limit", "1"]).exits(0);
    assert_eq!(outcome.stderr, "meshctl: there are more: --after 1\n");
}

#[test]
fn submit_prints_the_number_and_sends_what_is_missing() {
    let fake = Fake::start();
    fake.write("photos/a.jpg", "aaa");
    fake.write("photos/b.jpg", "bbb");
    fake.write("same.jpg", "aaa");
    fake.write(
        "thumbs.yaml",
        "command: [convert, \"{item}\"]\narray: {files: \"photos/*.jpg\"}\ninputs: [same.jpg]\n",
    );
    let outcome = fake.run(&["submit", "thumbs.yaml"]).exits(0);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("1\n", ""));
    fake.world(|world| {
        assert_eq!(world.calls.iter().filter(|call| *call == "put").count(), 2);
        assert_eq!(world.blobs.len(), 2);
        assert_eq!(world.jobs[0].spec.name, "thumbs");
        assert!(!world.jobs[0].key.is_empty(), "a retry could submit twice");
    });
    let again = fake.json(&["submit", "thumbs.yaml"]);
    assert_eq!((&again["id"], &again["existed"]), (&2.into(), &false.into()));
    fake.world(|world| assert_eq!(world.calls.iter().filter(|call| *call == "put").count(), 2));
}

#[test]
fn the_same_key_is_the_same_job() {
    let fake = Fake::start();
    fake.write("a.yaml", "command: [a]\n");
    fake.write("b.yaml", "command: [b]\n");
    for _ in 0..2 {
        assert_eq!(fake.run(&["submit", "a.yaml", "--idempotency-key", "k"]).exits(0).stdout, "1\n");
    }
    let outcome = fake.run(&["submit", "b.yaml", "--idempotency-key", "k"]).exits(6);
    assert_eq!(outcome.stderr, "meshctl: the key belongs to another job\n");
}

#[test]
fn a_job_comes_from_standard_input_with_name_and_parameters() {
    use std::io::Write as _;

    let fake = Fake::start();
    let mut command = fake.command(&["submit", "-", "--name", "other", "--set", "k=v=w"]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"params: {k: x}\ncommand: [\"{params.k}\"]\n").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"1\n");
    fake.world(|world| {
        assert_eq!(world.jobs[0].spec.name, "other");
        assert_eq!(world.jobs[0].spec.params["k"], "v=w");
    });
}

#[test]
fn submit_can_wait_and_follow() {
    let fake = Fake::start();
    fake.write("job.yaml", "command: [a]\n");
    fake.world(|world| world.next.state = JobState::Completed);
    assert_eq!(fake.run(&["submit", "--wait", "job.yaml"]).exits(0).stdout, "1\n");
    fake.world(|world| {
        world.next.state = JobState::Failed;
        world.next.reason = "job.0 failed".into();
        world.next.chunks =
            vec![chunk("job", 0, false, false, "out\n"), chunk("job", 0, false, true, "err\n")];
    });
    let outcome = fake.run(&["submit", "--wait", "job.yaml"]).exits(1);
    assert_eq!(
        (outcome.stdout.as_str(), outcome.stderr.as_str()),
        ("2\n", "meshctl: job 2 FAILED: job.0 failed\n")
    );
    let outcome = fake.run(&["submit", "--follow", "job.yaml"]).exits(1);
    assert_eq!(outcome.stdout, "3\n", "nothing but the number");
    assert_eq!(outcome.stderr, "out\nerr\nmeshctl: job 3 FAILED: job.0 failed\n");
    let outcome = fake.run(&["submit", "--wait", "job.yaml", "-o", "json"]).exits(1);
    let job: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!((&job["id"], &job["state"]), (&4.into(), &"FAILED".into()));
}

#[test]
fn wait_is_0_only_when_every_job_completed() {
    let fake = Fake::start();
    fake.write("job.yaml", "command: [a]\n");
    for (number, state) in
        [JobState::Completed, JobState::PartiallyCompleted, JobState::Completed].iter().enumerate()
    {
        fake.world(|world| world.next.state = *state);
        assert_eq!(fake.run(&["submit", "job.yaml"]).exits(0).stdout, format!("{}\n", number + 1));
    }
    fake.run(&["wait", "1", "last"]).exits(0);
    let outcome = fake.run(&["wait", "1", "2"]).exits(1);
    let mut lines: Vec<&str> = outcome.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["1 COMPLETED", "2 PARTIALLY_COMPLETED"]);
    fake.run(&["wait", "4"]).exits(3);
}

#[test]
fn cancel_tells_what_was_there_to_cancel() {
    let fake = Fake::start();
    fake.write("job.yaml", "command: [a]\n");
    for state in [JobState::Running, JobState::Completed] {
        fake.world(|world| world.next.state = state);
        fake.run(&["submit", "job.yaml"]).exits(0);
    }
    assert_eq!(fake.run(&["cancel", "1", "--reason", "no need"]).exits(0).stdout, "1 cancelled\n");
    assert_eq!(fake.run(&["cancel", "1"]).exits(0).stdout, "1 already cancelled\n");
    fake.world(|world| assert_eq!(world.cancels[0], "no need"));
    fake.run(&["cancel", "2"]).exits(6);
    fake.run(&["cancel", "3"]).exits(3);
    let outcome = fake.run(&["cancel", "3", "2", "1"]).exits(6);
    assert_eq!(outcome.stdout, "1 already cancelled\n", "the others are cancelled all the same");
}

#[test]
fn why_says_sentences_first_and_numbers_under_them() {
    let fake = with_thumbnails();
    insta::assert_snapshot!("why", fake.run(&["why", "12"]).exits(0).stdout);
    insta::assert_json_snapshot!("why_json", fake.json(&["why", "12/resize.1"]));
    let supposed = fake.run(&["why", "12", "--if", "cpu=2,tag.site=lab"]).exits(0).stdout;
    assert!(supposed.starts_with("With Some(2000) cpu."), "{supposed}");
    let bad = fake.run(&["why", "12", "--if", "cpu=lots"]).exits(2).stderr;
    assert!(bad.contains("cpu is a number, not `lots`"), "{bad}");
}

#[test]
fn dead_letters_are_shown_page_by_page() {
    let fake = with_thumbnails();
    fake.world(|world| {
        let mut other = thumbnails();
        other.shown.number = 13;
        other.tasks.truncate(1);
        other.tasks[0].key = Some(v1::TaskKey { job: 13, task: 0, index: 4 });
        (other.tasks[0].cause, other.tasks[0].exit_code) = (Cause::Lost.into(), None);
        world.jobs.push(other);
    });
    insta::assert_snapshot!("dead", fake.run(&["dead"]).exits(0).stdout);
    insta::assert_json_snapshot!("dead_json", fake.json(&["dead", "12"]));
    assert_eq!(fake.json(&["dead", "12/sheet"])["items"].as_array().map(Vec::len), Some(0));
    let outcome = fake.run(&["dead", "--limit", "1"]).exits(0);
    assert_eq!(outcome.stderr, "meshctl: there are more: --after 1\n");
    fake.run(&["dead", "12/nothing"]).exits(3);
}

#[test]
fn what_is_redriven_of_a_job_is_asked_for_at_once() {
    let fake = with_thumbnails();
    fake.world(|world| {
        let mut other = thumbnails();
        other.shown.number = 13;
        world.jobs.push(other);
    });
    let outcome = fake.run(&["redrive", "12/resize.0", "13", "12/sheet"]).exits(0);
    assert_eq!(outcome.stdout, "12 3 redriven\n13 3 redriven, 1 come back with them\n");
    assert_eq!(fake.world(|world| world.redrives.clone()), ["12: resize.0 sheet", "13: "]);
    fake.run(&["redrive", "12/resize", "12"]).exits(0);
    assert_eq!(fake.world(|world| world.redrives.pop()).as_deref(), Some("12: "), "all of it was named");
    let outcome = fake.run(&["redrive", "13"]).exits(6);
    assert_eq!(outcome.stderr, "meshctl: nothing that was named in job 13 is a dead letter\n");
    let one = &fake.json(&["redrive", "13/sheet"])[0];
    assert_eq!(
        (one["id"].as_u64(), one["state"].as_str(), one["redriven"].as_u64(), one["existed"].as_bool()),
        (Some(13), Some("RUNNING"), Some(3), Some(false))
    );
}

#[test]
fn a_redrive_whose_answer_was_lost_is_told_again_under_its_key() {
    let fake = with_thumbnails();
    fake.world(|world| world.lost_answers = vec![tonic::Status::unavailable("gone away"); 2]);
    assert_eq!(fake.run(&["redrive", "12"]).exits(0).stdout, "12 3 redriven\n");
    assert_eq!(fake.world(|world| world.redrives.clone()), ["12: "], "it was done once");
    assert_eq!(fake.world(|world| world.calls.iter().filter(|call| *call == "redrive").count()), 3);
    // A key of the person's own holds over commands.
    let keyed = ["redrive", "12/sheet", "--idempotency-key", "mine"];
    fake.run(&keyed).exits(0);
    assert_eq!(fake.json(&keyed)[0]["existed"].as_bool(), Some(true));
    fake.run(&["redrive", "12", "--idempotency-key", ""]).exits(2);
}

#[test]
fn who_waits_for_what_no_node_takes_is_told_why_once() {
    let fake = Fake::start();
    fake.world(|world| {
        world.next.state = JobState::Queued;
        world.unsuited = true;
    });
    fake.write("job.yaml", "command: [\"true\"]\n");
    let mut waiting = fake.spawn(&["submit", "job.yaml", "--wait"]);
    let said = waiting.stderr_until("meshctl why 1");
    assert_eq!(
        said,
        "meshctl: It waits\\x1b[2J for a node. (`meshctl why 1` says more; the job goes on waiting)\n"
    );
    fake.world(|world| world.jobs[0].shown.set_state(JobState::Completed));
    let outcome = waiting.finish().exits(0);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("1\n", ""));
}

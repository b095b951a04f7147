//! What `logs` writes, and where.

use std::io::{BufRead as _, BufReader};

use mesh_proto::v1::{self, JobState};

use super::fake::{Fake, Job, chunk, summary};

fn fake() -> Fake {
    let fake = Fake::start();
    fake.world(|world| {
        let mut second = chunk("resize", 1, true, false, "again\n");
        second.attempt = 2;
        world.jobs.push(Job {
            shown: v1::Job {
                number: 12,
                state: JobState::Completed.into(),
                tasks: vec![summary("resize", 2, true), summary("sheet", 1, false)],
                ..v1::Job::default()
            },
            chunks: vec![
                chunk("resize", 0, true, false, "one\ntw"),
                chunk("resize", 1, true, true, "oops\n"),
                chunk("sheet", 0, false, false, "a\x1b[1mb"),
                chunk("sheet", 0, false, true, "warn"),
                second,
            ],
            ..Job::default()
        });
    });
    fake
}

#[test]
fn one_task_is_raw_on_its_own_descriptors() {
    let fake = fake();
    for reference in ["12/sheet", "12/sheet.0", "last/sheet"] {
        let outcome = fake.run(&["logs", reference]).exits(0);
        assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("a\x1b[1mb", "warn"), "{reference}");
    }
    assert_eq!(fake.run(&["logs", "12/resize.0"]).exits(0).stdout, "one\ntw");
    assert_eq!(fake.run(&["logs", "12/sheet", "--stderr"]).exits(0).stdout, "");
    assert_eq!(fake.run(&["logs", "12/sheet", "--stdout"]).exits(0).stderr, "");
    assert_eq!(fake.run(&["logs", "12/resize.1", "--attempt", "2"]).exits(0).stdout, "again\n");
}

#[test]
fn several_tasks_are_told_apart() {
    let fake = fake();
    let outcome = fake.run(&["logs", "12"]).exits(0);
    assert_eq!(outcome.stdout, "resize.0| one\nresize.1| again\nresize.0| tw\nsheet| a\x1b[1mb\n");
    assert_eq!(outcome.stderr, "resize.1| oops\nsheet| warn\n");
    let outcome = fake.run(&["logs", "12/resize"]).exits(0);
    assert_eq!(outcome.stdout, "resize.0| one\nresize.1| again\nresize.0| tw\n");
}

#[test]
fn what_is_not_there_ends_with_3() {
    let fake = fake();
    for reference in ["13", "12/nope", "12/resize.2", "12/sheet.1"] {
        fake.run(&["logs", reference]).exits(3);
    }
}

#[test]
fn json_is_one_object_a_line() {
    let fake = fake();
    let outcome = fake.run(&["logs", "12/sheet", "-o", "json"]).exits(0);
    let lines: Vec<serde_json::Value> =
        outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(outcome.stderr, "");
    assert_eq!(lines.len(), 2);
    assert_eq!(
        lines[1],
        serde_json::json!({
            "task": "sheet", "index": null, "attempt": 1, "stream": "stderr", "offset": 0,
            "time": "2025-11-01T12:26:40.000Z", "data": "warn", "encoding": "utf8",
        })
    );
}

#[test]
fn a_follower_sees_output_as_it_comes_and_the_end() {
    let fake = fake();
    fake.world(|world| world.jobs[0].shown.set_state(JobState::Running));
    let mut following = fake.spawn(&["logs", "-f", "12/resize.0"]);
    let mut stdout = BufReader::new(following.child.as_mut().unwrap().stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "one\n");
    fake.world(|world| {
        let mut more = chunk("resize", 0, true, false, "o\nlive\n");
        more.offset = 6;
        world.jobs[0].chunks.push(more);
    });
    line.clear();
    stdout.read_line(&mut line).unwrap();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "two\nlive\n", "the job still runs");
    fake.world(|world| world.jobs[0].shown.set_state(JobState::Completed));
    following.finish().exits(0);
}

#[test]
fn a_reader_who_leaves_is_no_error() {
    let fake = fake();
    let big: &'static str = "x".repeat(1 << 20).leak();
    fake.world(|world| {
        for at in 0..8 {
            let mut more = chunk("sheet", 0, false, false, big);
            more.offset = 6 + at * (1 << 20);
            world.jobs[0].chunks.push(more);
        }
    });
    let mut reading = fake.spawn(&["logs", "12/sheet"]);
    drop(reading.child.as_mut().unwrap().stdout.take());
    let outcome = reading.finish();
    assert_eq!((outcome.status, outcome.stderr.replace("warn", "")), (0, String::new()));
}

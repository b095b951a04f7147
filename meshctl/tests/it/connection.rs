//! When the coordinator is away, refuses, or comes back.

use std::time::{Duration, Instant};

use mesh_certs::Ca;
use mesh_proto::{code::Code, ids::MeshId, v1::JobState};

use super::fake::{Fake, chunk};

#[test]
fn an_unreachable_coordinator_ends_with_5_and_says_what_was_tried() {
    let fake = Fake::start();
    fake.kill();
    let started = Instant::now();
    let outcome = fake.run(&["jobs"]).exits(5);
    let expected = format!("meshctl: the coordinator is not reachable (tried {}): ", fake.addr);
    assert!(outcome.stderr.starts_with(&expected), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("Connection refused"), "{}", outcome.stderr);
    assert!(started.elapsed() < Duration::from_secs(20));

    let outcome = fake.run(&["wait", "1", "-o", "json"]).exits(5);
    let error: serde_json::Value = serde_json::from_str(&outcome.stderr).unwrap();
    assert_eq!(error["error"]["code"], "unavailable");
}

#[test]
fn an_endpoint_on_the_command_line_takes_the_credentials_place() {
    let fake = Fake::start();
    let outcome = fake.run(&["jobs", "--endpoint", "127.0.0.1:1"]).exits(5);
    assert!(outcome.stderr.contains("(tried 127.0.0.1:1)"), "{}", outcome.stderr);
    let there = fake.addr.to_string();
    fake.run(&["jobs", "--endpoint", "127.0.0.1:1", "--endpoint", &there]).exits(0);
}

#[test]
fn a_foreign_credential_is_refused_with_the_reason() {
    let fake = Fake::start();
    let foreign = Ca::generate(MeshId::generate()).unwrap();
    let path = fake.credential(&foreign, "foreign");
    let outcome = fake.run(&["jobs", "--credential", path.to_str().unwrap()]).exits(5);
    assert!(outcome.stderr.contains("not of this mesh's CA"), "{}", outcome.stderr);
    assert!(fake.world(|world| world.calls.is_empty()));
}

#[test]
fn a_certificate_that_the_coordinator_refuses_ends_with_4() {
    let fake = Fake::start();
    let forger = Ca::generate(fake.ca.mesh()).unwrap();
    let path = fake.mixed_credential(&fake.ca, &forger, "forged");
    let outcome = fake.run(&["jobs", "--credential", path.to_str().unwrap()]).exits(4);
    assert!(outcome.stderr.contains("refused the connection"), "{}", outcome.stderr);
    let outcome = fake.run(&["jobs", "-o", "json", "--credential", path.to_str().unwrap()]).exits(4);
    assert!(outcome.stderr.starts_with("{\"error\":{\"code\":\"unauthenticated\""), "{}", outcome.stderr);
}

#[test]
fn a_credential_of_two_meshes_is_an_invalid_file() {
    let fake = Fake::start();
    let other = Ca::generate(MeshId::generate()).unwrap();
    let path = fake.mixed_credential(&fake.ca, &other, "mixed");
    let outcome = fake.run(&["jobs", "--credential", path.to_str().unwrap()]).exits(2);
    assert!(outcome.stderr.contains("not of this mesh"), "{}", outcome.stderr);
}

#[test]
fn credentials_are_looked_for_in_order() {
    let fake = Fake::start();
    let mut command = fake.command(&["jobs"]);
    command.env_remove("MESH_CREDENTIAL");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let expected = fake.path().join(".config/mesh/credential");
    assert!(stderr.contains(expected.to_str().unwrap()), "{stderr}");

    std::fs::create_dir_all(expected.parent().unwrap()).unwrap();
    std::fs::copy(fake.path().join("credential"), &expected).unwrap();
    assert_eq!(command.output().unwrap().status.code(), Some(0));

    fake.write("broken", "{}");
    let outcome = fake.run(&["jobs", "--credential", "broken"]).exits(2);
    assert!(outcome.stderr.contains("broken"), "{}", outcome.stderr);
}

#[test]
fn a_call_is_tried_again_for_a_moment() {
    let fake = Fake::start();
    fake.world(|world| {
        world.refusals = vec![Code::Unavailable.status("the database is away"); 3];
    });
    fake.run(&["jobs"]).exits(0);
    fake.world(|world| {
        assert_eq!(world.calls, ["jobs"; 4]);
        world.refusals = vec![Code::Denied.status("you may not see jobs")];
    });
    let outcome = fake.run(&["jobs"]).exits(4);
    assert_eq!(outcome.stderr, "meshctl: you may not see jobs\n");
    for (code, status) in
        [(Code::Conflict, 6), (Code::Exhausted, 4), (Code::NotFound, 3), (Code::Internal, 1)]
    {
        fake.world(|world| world.refusals = vec![code.status("no")]);
        fake.run(&["jobs"]).exits(status);
    }
}

#[test]
fn a_strangers_message_cannot_steer_the_terminal() {
    let fake = Fake::start();
    fake.world(|world| world.refusals = vec![Code::NotFound.status("no job \x1b[2J\nmeshctl: all is well")]);
    let outcome = fake.run(&["jobs"]).exits(3);
    assert_eq!(outcome.stderr, "meshctl: no job \\x1b[2J\\x0ameshctl: all is well\n");
}

#[test]
fn waiting_rides_out_a_restart() {
    let fake = Fake::start();
    fake.world(|world| world.next.state = JobState::Running);
    fake.write("job.yaml", "command: [sleep, \"9\"]\n");
    fake.run(&["submit", "job.yaml"]).exits(0);
    let mut waiting = fake.spawn(&["wait", "1"]);
    fake.wait_for_call("watch", 1);
    fake.kill();
    fake.world(|world| world.jobs[0].shown.set_state(JobState::Completed));
    waiting.stderr_until("; trying again");
    fake.revive();
    let outcome = waiting.finish().exits(0);
    assert_eq!(outcome.stdout, "1 COMPLETED\n");
    assert!(outcome.stderr.ends_with("meshctl: the coordinator answers again\n"), "{}", outcome.stderr);
}

#[test]
fn a_follower_rides_out_a_restart_and_repeats_nothing() {
    let fake = Fake::start();
    fake.world(|world| {
        world.next.state = JobState::Running;
        world.next.chunks = vec![chunk("job", 0, false, false, "before\n")];
    });
    fake.write("job.yaml", "command: [sleep, \"9\"]\n");
    fake.run(&["submit", "job.yaml"]).exits(0);
    let following = fake.spawn(&["logs", "-f", "last"]);
    fake.wait_for_call("logs", 1);
    fake.kill();
    fake.revive();
    fake.wait_for_call("logs", 2);
    fake.world(|world| {
        let mut after = chunk("job", 0, false, false, "after\n");
        after.offset = 7;
        world.jobs[0].chunks.push(after);
        world.jobs[0].shown.set_state(JobState::Completed);
    });
    assert_eq!(following.finish().exits(0).stdout, "before\nafter\n");
}

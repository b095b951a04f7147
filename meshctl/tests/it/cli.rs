//! The command line itself: usage, the job file's errors, completions.

use super::fake::Fake;

#[test]
fn a_mistake_in_the_command_line_ends_with_2() {
    let fake = Fake::start();
    for args in [
        &["frobnicate"][..],
        &["job", "twelve"],
        &["logs", "12/"],
        &["tasks", "1", "--state", "asleep"],
        &["wait"],
        &["run"],
        &["submit", "x", "--set", "novalue"],
        &["token", "create", "--ttl", "5"],
        &["blob", "get", "abc"],
        &["tag", "n1"],
        &["--endpoint", "nowhere", "jobs"],
    ] {
        let outcome = fake.run(args).exits(2);
        assert_eq!(outcome.stdout, "", "{args:?}");
        assert!(!outcome.stderr.is_empty(), "{args:?}");
    }
    assert!(fake.world(|world| world.calls.is_empty()));
}

#[test]
fn usage_errors_are_json_when_json_is_wanted() {
    let fake = Fake::start();
    for args in [&["frobnicate", "-o", "json"][..], &["-ojson", "job", "twelve"]] {
        let outcome = fake.run(args).exits(2);
        let error: serde_json::Value = serde_json::from_str(&outcome.stderr).unwrap();
        assert_eq!(error["error"]["code"], "invalid");
        assert!(error["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
    }
}

#[test]
fn help_and_completions_are_results() {
    let fake = Fake::start();
    assert!(fake.run(&["--help"]).exits(0).stdout.contains("Usage: meshctl"));
    assert!(fake.run(&["--version"]).exits(0).stdout.starts_with("meshctl 0."));
    for shell in ["bash", "zsh", "fish"] {
        assert!(fake.run(&["completions", shell]).exits(0).stdout.contains("cordon"), "{shell}");
    }
}

#[test]
fn check_tells_what_a_file_would_be_and_sends_nothing() {
    let fake = Fake::start();
    fake.write("data.csv", "12345");
    fake.write(
        "good.yaml",
        "tasks:\n  - {name: a, command: [x], array: {range: 1-1000}, inputs: [data.csv]}\n  - {name: b, command: [x], needs: [a]}\n",
    );
    let told = fake.run(&["check", "good.yaml"]).exits(0);
    assert_eq!(told.stdout, "good: 2 definitions, 1001 tasks, 1 input file (5 B)\n");
    let json = fake.json(&["check", "good.yaml"]);
    assert_eq!(
        json,
        serde_json::json!({"name": "good", "definitions": 2, "tasks": 1001, "input_files": 1, "input_bytes": 5})
    );
    fake.write("bad.yaml", "comand: [x]\n");
    let told = fake.run(&["check", "bad.yaml"]).exits(2);
    assert_eq!(
        told.stderr,
        "meshctl: bad.yaml:1:1: the job has no key `comand`; expected `command`, by the look of it\n"
    );
    let told = fake.run(&["submit", "bad.yaml", "-o", "json"]).exits(2);
    let error: serde_json::Value = serde_json::from_str(&told.stderr).unwrap();
    assert_eq!(error["error"]["code"], "invalid");
    let told = fake.run(&["check", "none.yaml"]).exits(2);
    assert_eq!(told.stderr, "meshctl: none.yaml: No such file or directory (os error 2)\n");
    assert!(fake.world(|world| world.calls.is_empty()));
}

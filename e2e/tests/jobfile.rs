//! Job files with a mistake: refused with exit status 2, the line, the column and what was
//! expected, before anything is sent. No mesh runs here.

use std::{fs, path::Path, process::Command};

use mesh_e2e::meshctl_alone;

/// Job files, each with `▸` before the place that the message must name, and a word of it.
const MISTAKES: &[(&str, &str)] = &[
    // Not YAML, or not of the right shape.
    ("name: ▸[a, b\n", "bracket"),
    ("▸- 1\n- 2\n", "map"),
    ("name: a\ncommand: [\"true\"]\n▸comand: [x]\n", "comand"),
    ("name: a\ncommand: [\"true\"]\n▸name: b\n", "name"),
    ("name: a\ncommand: ▸true\n", "list"),
    ("name: a\ncommand: ▸[]\n", "command"),
    ("version: ▸2\nname: a\ncommand: [x]\n", "1"),
    ("name: ▸\"two words\"\ncommand: [x]\n", "name"),
    ("name: ▸-a\ncommand: [x]\n", "-"),
    ("name: a\npriority: ▸12\ncommand: [x]\n", "9"),
    ("name: a\non_failure: ▸ignore\ncommand: [x]\n", "stop"),
    // Tasks and what joins them.
    ("name: a\ntasks: ▸[]\n", "task"),
    ("tasks:\n  - ▸{name: a}\n", "command"),
    ("tasks:\n  - {name: a, command: [x], ▸script: y}\n", "script"),
    ("tasks:\n  - {name: a, command: [x]}\n  - {name: ▸a, command: [y]}\n", "a"),
    ("tasks:\n  - {name: a, command: [x], needs: [▸b]}\n", "b"),
    ("tasks:\n  - {name: a, command: [x], needs: [b]}\n  - {name: b, command: [x], needs: [▸a]}\n", "cycle"),
    ("tasks:\n  - {name: a, command: [x], needs: [▸a]}\n", "cycle"),
    // Arrays.
    ("name: a\ncommand: [x]\narray: {range: ▸\"9-1\"}\n", "range"),
    ("name: a\ncommand: [x]\narray: {range: ▸\"1-2000000\"}\n", "1000000"),
    ("name: a\ncommand: [x]\narray: ▸{}\n", "range"),
    ("name: a\ncommand: [x]\narray: {items: ▸[]}\n", "item"),
    ("name: a\ncommand: [x]\narray: {files: ▸\"none/*.txt\"}\n", "none/*.txt"),
    ("name: a\ncommand: [x]\narray: {lines: ▸no-such-list}\n", "no-such-list"),
    // Templates.
    ("name: a\ncommand: [x, ▸\"{item}\"]\n", "array"),
    ("name: a\ncommand: [x, ▸\"{params.nope}\"]\n", "nope"),
    // Figures with units.
    ("name: a\ncommand: [x]\ntimeout: ▸5\n", "10s"),
    ("name: a\ncommand: [x]\ntimeout: ▸-5s\n", "duration"),
    ("name: a\ncommand: [x]\nresources: {cpu: ▸-1}\n", "cpu"),
    ("name: a\ncommand: [x]\nresources: {cpu: ▸.nan}\n", "cpu"),
    ("name: a\ncommand: [x]\nresources: {memory: ▸lots}\n", "MiB"),
    ("name: a\ncommand: [x]\nretry: {attempts: ▸0}\n", "1"),
    ("name: a\ncommand: [x]\nretry: {on: [▸boredom]}\n", "timeout"),
    ("name: a\ncommand: [x]\non_disconnect: ▸stop\n", "kill"),
    // Files.
    ("name: a\ncommand: [x]\ninputs: [{from: ▸no-such-file}]\n", "no-such-file"),
    ("name: a\ncommand: [x]\ninputs: [{from: there, to: ▸/etc/passwd}]\n", "absolute"),
    ("name: a\ncommand: [x]\ninputs: [{from: there, to: ▸../up}]\n", ".."),
    ("name: a\ncommand: [x]\ninputs: [{from: there, to: ▸inputs/there}]\n", "another directory"),
    ("name: a\ncommand: [x]\noutputs: [▸/etc/passwd]\n", "absolute"),
    ("name: a\ncommand: [x]\noutputs: [▸a/../../b]\n", ".."),
    // What comes later is refused with that reason, never ignored.
    ("name: a\ncommand: [x]\nmounts: [{name: data, to: ▸/etc}]\n", "place"),
    ("name: a\ncommand: [x]\nresources: {▸gpu: 1}\n", "gpu"),
    ("name: a\ncommand: [x]\nresources: {▸disk: 1GiB}\n", "disk"),
];

fn check(dir: &Path, text: &str) -> (i32, String, String) {
    fs::write(dir.join("job.yaml"), text).unwrap();
    let mut command: Command = meshctl_alone(dir);
    let output = command.args(["check", "job.yaml"]).output().expect("meshctl runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn every_mistake_is_told_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("there"), "x").unwrap();
    let mut wrong = Vec::new();
    for (marked, word) in MISTAKES {
        let before = &marked[..marked.find('▸').expect("each has its mark")];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        let (code, _, errors) = check(dir.path(), &marked.replace('▸', ""));
        let place = format!("job.yaml:{line}:{column}: ");
        if code != 2 || !errors.contains(&place) || !errors.to_lowercase().contains(&word.to_lowercase()) {
            wrong.push(format!("{marked}--- expected {place}…{word}…, exit status {code}:\n{errors}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n\n{}", wrong.len(), MISTAKES.len(), wrong.join("\n"));
}

#[test]
fn bombs_are_refused_quickly_and_good_files_pass() {
    let dir = tempfile::tempdir().unwrap();
    let first = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
    let bomb = ('b'..='i').zip('a'..).fold(first, |text, (this, last)| {
        let list = vec![format!("*{last}"); 10].join(", ");
        text + &format!("{this}: &{this} [{list}]\n")
    });
    let deep = format!("name: {}{}\n", "[".repeat(10_000), "]".repeat(10_000));
    let long = format!("name: a\ncommand: [x]\n# {}\n", "x".repeat(5 * 1024 * 1024));
    for (what, text) in [("aliases", &bomb), ("depth", &deep), ("size", &long)] {
        let (code, _, errors) = check(dir.path(), text);
        assert_eq!(code, 2, "{what}: {errors}");
        assert!(errors.len() < 4096, "{what}: {} bytes of message", errors.len());
    }
    let good = "version: 1\nname: good\ncommand: [echo, '{params.word}']\nparams: {word: hi}\n";
    let (code, _, errors) = check(dir.path(), good);
    assert_eq!(code, 0, "{errors}");
    let json =
        r#"{"name": "good", "tasks": [{"name": "a", "command": ["true"], "array": {"range": "1-3"}}]}"#;
    let (code, _, errors) = check(dir.path(), json);
    assert_eq!(code, 0, "{errors}");
}

#[test]
fn without_a_credential_it_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let output = meshctl_alone(dir.path()).arg("nodes").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(errors.contains("credential"), "{errors}");
    let output = meshctl_alone(dir.path()).args(["nodes", "-o", "json"]).output().unwrap();
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).expect("an error as JSON");
    assert!(error["error"]["message"].as_str().is_some_and(|text| text.contains("credential")), "{error}");
}

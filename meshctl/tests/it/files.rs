//! blob and fetch: content goes and comes whole, and never to a place that nobody named.

use std::os::unix::fs::PermissionsExt as _;

use bytes::Bytes;
use mesh_proto::{
    digest::Digest,
    v1::{self, JobState},
};

use super::fake::{Fake, Job, summary};

fn entry(path: &str, content: &[u8]) -> v1::FileEntry {
    v1::FileEntry {
        path: path.to_owned(),
        digest: Digest::of(content).to_vec(),
        size: content.len() as u64,
        ..v1::FileEntry::default()
    }
}

/// A finished job with these output files of one task, and their content.
fn fake(task: &str, array: bool, files: &[(&str, &[u8])]) -> Fake {
    let fake = Fake::start();
    fake.world(|world| {
        let entries = files.iter().map(|(path, content)| entry(path, content)).collect();
        for (_, content) in files {
            world.blobs.insert(Digest::of(content), Bytes::copy_from_slice(content));
        }
        world.jobs.push(Job {
            shown: v1::Job {
                number: 7,
                state: JobState::Completed.into(),
                tasks: vec![summary(task, 2, array)],
                ..v1::Job::default()
            },
            outputs: vec![v1::TaskOutputs {
                task: task.into(),
                array,
                index: u32::from(array),
                files: entries,
            }],
            ..Job::default()
        });
    });
    fake
}

#[test]
fn outputs_lie_by_task_index_and_path() {
    let big = vec![7_u8; 3_000_000];
    let fake = fake("resize", true, &[("out/a.txt", b"hello"), ("big", &big)]);
    fake.world(|world| {
        let files = &mut world.jobs[0].outputs[0].files;
        files[0].executable = true;
        files.push(v1::FileEntry { path: "empty".into(), directory: true, ..v1::FileEntry::default() });
    });
    let outcome = fake.run(&["fetch", "7"]).exits(0);
    assert_eq!(outcome.stdout, "2 files in mesh-7 (2.9 MiB)\n");
    assert_eq!(fake.read("mesh-7/resize/1/out/a.txt"), "hello");
    assert_eq!(std::fs::read(fake.path().join("mesh-7/resize/1/big")).unwrap(), big);
    assert!(fake.path().join("mesh-7/resize/1/empty").is_dir());
    let mode = |path: &str| fake.path().join(path).metadata().unwrap().permissions().mode() & 0o111;
    assert_ne!(mode("mesh-7/resize/1/out/a.txt"), 0);
    assert_eq!(mode("mesh-7/resize/1/big"), 0);

    // What is there already does not come again; what was changed is put right.
    fake.write("mesh-7/resize/1/out/a.txt", "other");
    fake.world(|world| world.calls.clear());
    let again = fake.json(&["fetch", "last"]);
    assert_eq!((&again["files"], &again["written"]), (&2.into(), &1.into()));
    assert_eq!(fake.read("mesh-7/resize/1/out/a.txt"), "hello");
    fake.world(|world| assert_eq!(world.calls.iter().filter(|call| *call == "get blob").count(), 1));

    fake.run(&["fetch", "7/resize.0", "--to", "none"]).exits(0);
    assert!(!fake.path().join("none").exists());
    fake.run(&["fetch", "7/resize.1", "--to", "one"]).exits(0);
    assert_eq!(fake.read("one/resize/1/out/a.txt"), "hello");
}

#[test]
fn a_task_that_is_no_array_has_no_index() {
    let fake = fake("sheet", false, &[("sheet.png", b"png")]);
    fake.run(&["fetch", "7", "--to", "here/deep"]).exits(0);
    assert_eq!(fake.read("here/deep/sheet/sheet.png"), "png");
}

#[test]
fn a_hostile_path_writes_nothing() {
    for path in ["../../evil", "/evil", "a/../../../evil", "a\0b"] {
        let fake = fake("sheet", false, &[(path, b"evil"), ("good", b"good")]);
        let outcome = fake.run(&["fetch", "7", "--to", "in"]).exits(1);
        assert!(outcome.stderr.contains("the mesh names an output"), "{}", outcome.stderr);
        assert!(!fake.path().join("in").exists(), "{path:?}: something was written");
        assert!(!fake.path().join("evil").exists() && !fake.path().join("../evil").exists());
    }
}

#[test]
fn nothing_is_written_through_a_link() {
    let fake = fake("sheet", false, &[("out/a", b"a")]);
    std::fs::create_dir_all(fake.path().join("elsewhere")).unwrap();
    std::fs::create_dir_all(fake.path().join("mesh-7/sheet")).unwrap();
    std::os::unix::fs::symlink(fake.path().join("elsewhere"), fake.path().join("mesh-7/sheet/out")).unwrap();
    let outcome = fake.run(&["fetch", "7"]).exits(2);
    assert!(outcome.stderr.contains("is a symbolic link"), "{}", outcome.stderr);
    assert_eq!(std::fs::read_dir(fake.path().join("elsewhere")).unwrap().count(), 0);
}

#[test]
fn forged_content_never_takes_its_place() {
    let fake = fake("sheet", false, &[("a", b"true content")]);
    fake.write("mesh-7/sheet/a", "old");
    fake.world(|world| {
        world.forged.insert(Digest::of(b"true content"), Bytes::from_static(b"forged stuff"));
    });
    let outcome = fake.run(&["fetch", "7"]).exits(1);
    assert!(outcome.stderr.contains("the mesh sent"), "{}", outcome.stderr);
    assert_eq!(fake.read("mesh-7/sheet/a"), "old");
    let left: Vec<_> = std::fs::read_dir(fake.path().join("mesh-7/sheet")).unwrap().collect();
    assert_eq!(left.len(), 1, "a half file was left: {left:?}");
}

#[test]
fn blobs_go_and_come() {
    let fake = Fake::start();
    let content: String = (0..400_000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    fake.write("f", &content);
    let digest = fake.run(&["blob", "put", "f"]).exits(0).stdout;
    let digest = digest.trim();
    assert_eq!(digest, Digest::of(content.as_bytes()).to_string());
    assert_eq!(fake.run(&["blob", "get", digest]).exits(0).stdout, content);
    fake.run(&["blob", "get", digest, "--to", "g"]).exits(0);
    assert_eq!(fake.read("g"), content);
    let stat = fake.json(&["blob", "stat", digest]);
    assert_eq!(stat, serde_json::json!([{"digest": digest, "size": 400_000}]));
    let unknown = Digest::of(b"?").to_string();
    fake.run(&["blob", "stat", digest, &unknown]).exits(3);
    fake.run(&["blob", "get", &unknown]).exits(3);
    fake.run(&["blob", "put", "none"]).exits(1);

    fake.write("empty", "");
    let empty = fake.run(&["blob", "put", "empty"]).exits(0).stdout;
    assert_eq!(fake.run(&["blob", "get", empty.trim()]).exits(0).stdout, "");
}

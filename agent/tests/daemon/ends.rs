//! What becomes of one attempt: outputs, output, and a truthful cause.

use std::collections::HashMap;

use mesh_proto::digest::Digest;
use mesh_proto::frame::{Decoder, Kind};
use mesh_proto::v1::attempt_event::Event;
use mesh_proto::v1::{Assignment, Cause, Ended, FileEntry, Mount, SandboxLevel};

use crate::fake::Fake;
use crate::process::{Agent, key, processes, script, until};

fn input(fake: &Fake, path: &str, content: &[u8], executable: bool) -> FileEntry {
    let digest = fake.put_blob(content).to_vec();
    FileEntry { path: path.into(), digest, size: content.len() as u64, executable, directory: false }
}

fn text(spool: &[u8], kind: Kind) -> String {
    let mut decoder = Decoder::default();
    decoder.push(spool);
    let mut bytes = vec![];
    while let Some(frame) = decoder.next_frame().unwrap() {
        if frame.kind == kind {
            bytes.extend_from_slice(&frame.data);
        }
    }
    String::from_utf8(bytes).unwrap()
}

async fn end_of(fake: &Fake, assignment: Assignment) -> Ended {
    let attempt = assignment.attempt.unwrap().try_into().unwrap();
    fake.assign(assignment).await;
    fake.ended(attempt).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_with_its_inputs_and_its_outputs_come_back() {
    let fake = Fake::start();
    let agent = Agent::join(&fake, &["--slots", "2"]).await;
    assert_eq!(agent.ready["name"], "desk");
    assert_eq!(agent.ready["http"], serde_json::Value::Null);
    let mut task = script(
        7,
        "cat in/words.txt; echo err >&2; test -d out/deep\n\
         ./tool > out/deep/tool.txt; echo x > top.bin; echo changed >> in/words.txt\n\
         echo \"$MESH_JOB $MESH_TASK $MESH_INDEX $MESH_ITEM $MESH_ATTEMPT $MESH_NODE $MODE\" > env.txt\n\
         [ \"$HOME\" = \"$PWD\" ]; chmod +x top.bin; echo '40 resizing' > $MESH_PROGRESS\n\
         while ! [ -e go ]; do [ -e env.txt ] && sleep 0.6 && touch go; done; echo '100 made' > $MESH_PROGRESS",
    );
    task.item = "a b.jpg".into();
    task.set_sandbox(SandboxLevel::Strict);
    task.env = HashMap::from([("MODE".to_owned(), "fast".to_owned())]);
    let content = "word\n".repeat(100_000);
    task.inputs = vec![
        input(&fake, "in/words.txt", content.as_bytes(), false),
        input(&fake, "tool", b"#!/bin/sh\necho from tool\n", true),
    ];
    task.outputs = vec!["out/deep/".into(), "*.bin".into(), "env.txt".into()];
    let ended = end_of(&fake, task).await;
    assert_eq!((ended.cause(), ended.exit_code), (Cause::Exit, 0), "{ended:?}");
    let files: Vec<(&str, bool)> =
        ended.outputs.iter().map(|file| (file.path.as_str(), file.executable)).collect();
    assert_eq!(files, [("env.txt", false), ("out/deep/tool.txt", false), ("top.bin", true)]);
    let content_of = |index: usize| {
        let digest = &ended.outputs[index].digest;
        String::from_utf8(fake.state().blobs[digest].to_vec()).unwrap()
    };
    assert_eq!(content_of(0), "12 work 7 a b.jpg 1 desk fast\n");
    assert_eq!(content_of(1), "from tool\n");
    assert!(ended.run_ms >= 500 && ended.started_at_ms > 0 && ended.ended_at_ms >= ended.started_at_ms);
    let spool = fake
        .wait("all of the output", |state| {
            let have = state.outputs.get(&key(7)).filter(|have| have.len() as u64 == ended.output_length)?;
            Some(have.clone())
        })
        .await;
    assert_eq!(text(&spool, Kind::Stdout), content);
    assert_eq!(text(&spool, Kind::Stderr), "err\n");
    let events = fake.state().events.iter().map(|(_, event)| event.clone()).collect::<Vec<_>>();
    let Event::Started(started) = events[0] else { panic!("{events:?}") };
    assert_eq!(started.sandbox(), SandboxLevel::Strict);
    let progress = |event: &Event| match event {
        Event::Progress(progress) => Some((progress.percent, progress.message.clone())),
        Event::Started(_) | Event::Ended(_) | Event::Withdrawn(_) => None,
    };
    let progress: Vec<_> = events.iter().filter_map(progress).collect();
    assert_eq!(progress, [(40, "resizing".to_owned()), (100, "made".to_owned())], "the last word too");
    agent.removed(key(7)).await;
    // What was fetched once is here: the same input again costs no transfer.
    let gets = fake.state().gets;
    let mut again = script(8, "cmp -s in in2; cat in2 > copy");
    again.inputs =
        vec![input(&fake, "in", content.as_bytes(), false), input(&fake, "in2", content.as_bytes(), false)];
    again.outputs = vec!["copy".into()];
    let ended = end_of(&fake, again).await;
    assert_eq!((ended.cause(), ended.exit_code), (Cause::Exit, 0), "the cached blob was not changed");
    assert_eq!(ended.outputs[0].digest, Digest::of(content.as_bytes()).to_vec());
    assert_eq!(fake.state().gets, gets);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_end_is_called_by_its_name() {
    let fake = Fake::start();
    let _agent = Agent::join(&fake, &["--slots", "4"]).await;
    let said = |ended: &Ended| (ended.cause(), ended.exit_code, ended.signal);

    let ended = end_of(&fake, script(0, "echo short; exit 3")).await;
    assert_eq!(said(&ended), (Cause::Exit, 3, 0));
    assert_eq!(text(&ended.output, Kind::Stdout), "short\n", "short output rides in the end");
    assert_eq!(ended.output.len() as u64, ended.output_length);

    let ended = end_of(&fake, script(1, "kill -SEGV $$")).await;
    assert_eq!(said(&ended), (Cause::Signal, 0, 11));

    let mut slow = script(2, "trap '' TERM; while :; do sleep 0.1; done");
    slow.timeout_ms = 300;
    let ended = end_of(&fake, slow).await;
    assert_eq!(ended.cause(), Cause::Timeout);

    let mut task = script(3, "echo nothing made");
    task.outputs = vec!["result.txt".into()];
    let ended = end_of(&fake, task).await;
    assert_eq!(ended.cause(), Cause::Output);
    assert!(ended.message.contains("`result.txt`"), "{}", ended.message);

    let mut task = script(4, "ln -s /etc/passwd out/link");
    task.outputs = vec!["out/".into()];
    let ended = end_of(&fake, task).await;
    assert_eq!(ended.cause(), Cause::Output);
    assert!(ended.message.contains("`out/link` is a symbolic link"), "{}", ended.message);

    let mut task = script(5, "exit 1");
    task.outputs = vec!["result.txt".into()];
    let ended = end_of(&fake, task).await;
    assert_eq!(said(&ended), (Cause::Exit, 1, 0), "a failed task's outputs are not asked for");

    let mut task = script(6, "cat in");
    task.inputs = vec![FileEntry {
        path: "in".into(),
        digest: Digest::of(b"nobody has this").to_vec(),
        size: 15,
        ..FileEntry::default()
    }];
    let ended = end_of(&fake, task).await;
    assert_eq!(ended.cause(), Cause::Staging);
    assert!(ended.message.contains("`in`"), "{}", ended.message);

    let mut task = script(7, "true");
    task.inputs = vec![input(&fake, "../../escape", b"x", false)];
    assert_eq!(end_of(&fake, task).await.cause(), Cause::Staging);

    let mut task = script(8, "");
    task.command = vec!["no-such-command".into()];
    let ended = end_of(&fake, task).await;
    assert_eq!(said(&ended), (Cause::Exit, 127, 0));

    let mut task = script(9, "head -c 90000000 /dev/zero | tail -c 80000000 | wc -c; sleep 60");
    task.command = ["/bin/sh", "-c", &std::mem::take(&mut task.script)].map(str::to_owned).into();
    task.set_sandbox(SandboxLevel::Strict);
    task.resources.as_mut().unwrap().memory_bytes = 32 << 20;
    if rustix::process::geteuid().is_root() {
        assert_eq!(end_of(&fake, task).await.cause(), Cause::Oom);
    } else {
        mesh_skip::skip("only root can count on control groups: cause `oom`");
    }
    let mut task = script(11, "true");
    task.set_sandbox(SandboxLevel::Strict);
    task.mounts = vec![Mount { name: "data".into(), to: "/data".into(), read_only: true }];
    let ended = end_of(&fake, task).await;
    assert_eq!(ended.cause(), Cause::Sandbox);
    assert!(ended.message.contains("--allow-mount data="), "{}", ended.message);
    let mut task = script(10, "true");
    task.sandbox = SandboxLevel::None.into();
    assert_eq!(end_of(&fake, task).await.cause(), Cause::Sandbox, "the node did not allow it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_task_sees_the_mount_it_asked_for_and_no_more_of_the_host() {
    let fake = Fake::start();
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("set"), "five hundred gigabytes").unwrap();
    let allow = format!("data={}:ro", data.path().display());
    let _agent = Agent::join(&fake, &["--allow-mount", &allow]).await;
    let facts = fake.state().registrations[0].facts.clone().unwrap().sandbox.unwrap();
    assert_eq!((facts.mounts[0].name.as_str(), facts.mounts[0].read_only), ("data", true));
    let mut task = script(0, &format!("cat /data/set; ls -d {}", data.path().display()));
    task.set_sandbox(SandboxLevel::Strict);
    task.mounts = vec![Mount { name: "data".into(), to: "/data".into(), read_only: true }];
    let ended = end_of(&fake, task).await;
    assert_eq!(text(&ended.output, Kind::Stdout), "five hundred gigabytes");
    assert_eq!((ended.cause(), ended.exit_code), (Cause::Exit, 2));
    let mut task = script(1, "true");
    task.set_sandbox(SandboxLevel::Strict);
    task.mounts = vec![Mount { name: "data".into(), to: "/data".into(), read_only: false }];
    assert!(end_of(&fake, task).await.message.contains("read-only"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_of_inputs_is_asked_for() {
    let fake = Fake::start();
    let _agent = Agent::join(&fake, &[]).await;
    let listed =
        (0..40).map(|n| input(&fake, &format!("in/{n}"), format!("{n}").as_bytes(), false)).collect();
    fake.state().listed = listed;
    let mut task = script(0, "ls in | wc -l > count");
    task.inputs_listed = true;
    task.outputs = vec!["count".into()];
    let ended = end_of(&fake, task).await;
    let count = fake.state().blobs[&ended.outputs[0].digest].clone();
    assert_eq!(String::from_utf8_lossy(&count).trim(), "40");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_the_whole_tree() {
    let fake = Fake::start();
    let agent = Agent::join(&fake, &["--slots", "1"]).await;
    let mark = format!("77{}", std::process::id());
    let text = format!("trap '' TERM; (setsid sleep {mark} &) ; sleep {mark}");
    fake.assign(script(0, &text)).await;
    fake.assign(script(1, "true")).await;
    fake.started(key(0)).await;
    until("the child", || processes(&mark).len() >= 2).await;
    fake.cancel(key(0)).await;
    let ended = fake.ended(key(0)).await;
    assert_eq!(ended.cause(), Cause::Cancelled, "{ended:?}");
    assert_eq!(processes(&mark), Vec::<i32>::new(), "its end was told while something of it lived");
    assert_eq!(fake.ended(key(1)).await.cause(), Cause::Exit, "the slot is free again");
    agent.removed(key(0)).await;
    // One that waits never starts.
    fake.assign(script(2, "sleep 100")).await;
    fake.assign(script(3, "echo never")).await;
    fake.started(key(2)).await;
    fake.cancel(key(3)).await;
    let ended = fake.ended(key(3)).await;
    assert_eq!((ended.cause(), ended.started_at_ms), (Cause::Cancelled, 0));
    fake.cancel(key(2)).await;
    assert_eq!(fake.ended(key(2)).await.cause(), Cause::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_not_root_and_do_not_see_the_agents_files() {
    let fake = Fake::start();
    let agent = Agent::join(&fake, &["--slots", "2"]).await;
    let data = agent.data();
    let text = format!(
        "id -u > uid; cat {0}/identity/key.pem > stolen 2>/dev/null && exit 9; ls {0}/attempts/12-0-1-1/work \
         && exit 8; touch held; while ! [ -e {1} ]; do sleep 0.05; done",
        data.display(),
        "release"
    );
    let mut first = script(0, &text.replace("release", "held"));
    first.outputs = vec!["uid".into()];
    let ended = end_of(&fake, first).await;
    assert_eq!((ended.cause(), ended.exit_code), (Cause::Exit, 0), "{ended:?}");
    let uid = fake.state().blobs[&ended.outputs[0].digest].clone();
    assert_ne!(String::from_utf8_lossy(&uid).trim(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_others_cannot_reach_serves_as_well() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let fake = Fake::start();
    let mut agent = Agent::join_in(&fake, dir, &[]).await;
    let mut task = script(0, "cd \"$HOME\"; cat < in > out.txt; echo '50 half' > \"$MESH_PROGRESS\"");
    task.inputs = vec![input(&fake, "in", b"content", false)];
    task.outputs = vec!["out.txt".into()];
    let ended = end_of(&fake, task).await;
    assert_eq!((ended.cause(), ended.exit_code), (Cause::Exit, 0), "{ended:?}");
    assert_eq!(ended.outputs[0].digest, Digest::of(b"content").to_vec());
    agent.removed(key(0)).await;
    assert!(agent.call("stop", &[]).await.status.success());
    assert!(agent.gone().await.success());
}

/// A small filesystem of the test's own fills up.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_the_nodes_fault_and_the_node_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| {
        let done = std::process::Command::new(args[0]).args(&args[1..]).arg(dir.path()).output();
        done.is_ok_and(|output| output.status.success())
    };
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=3m,mode=755", "none"]) {
        mesh_skip::skip("a filesystem cannot be mounted here (not root)");
        return;
    }
    let mounted = dir.path().to_owned();
    let _unmount = Unmount(mounted);
    let fake = Fake::start();
    let agent = Agent::join_in(&fake, dir, &["--slots", "2"]).await;
    let content = vec![7; 4_000_000];
    let mut task = script(0, "true");
    task.inputs = vec![input(&fake, "in", &content, false)];
    let ended = end_of(&fake, task).await;
    assert_eq!(ended.cause(), Cause::Infra, "{ended:?}");
    let ended = end_of(&fake, script(1, "head -c 8000000 /dev/urandom; sleep 60")).await;
    assert_eq!(ended.cause(), Cause::Infra, "{ended:?}");
    let beats = fake.state().heartbeats.len();
    fake.wait("heartbeats", |state| (state.heartbeats.len() > beats + 2).then_some(())).await;
    agent.removed(key(1)).await;
    assert_eq!(end_of(&fake, script(2, "echo fine")).await.cause(), Cause::Exit, "room was made again");
    assert_eq!(fake.state().registrations.len(), 1);
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        // Lazily: the agent's processes end a moment later.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn level_none_runs_where_the_node_allows_it() {
    let fake = Fake::start();
    let agent = Agent::join(&fake, &["--sandbox-allow", "none"]).await;
    let mut task = script(0, "cd \"$HOME\"; id -u > uid; echo '100 done' > \"$MESH_PROGRESS\"");
    task.sandbox = SandboxLevel::None.into();
    task.outputs = vec!["uid".into()];
    let ended = end_of(&fake, task).await;
    assert_eq!((ended.cause(), ended.exit_code), (Cause::Exit, 0), "{ended:?}");
    let uid = fake.state().blobs[&ended.outputs[0].digest].clone();
    assert_ne!(String::from_utf8_lossy(&uid).trim(), "0");
    let started = fake.state().events.iter().find_map(|(_, event)| match event {
        Event::Started(started) => Some(started.sandbox()),
        Event::Progress(_) | Event::Ended(_) | Event::Withdrawn(_) => None,
    });
    assert_eq!(started, Some(SandboxLevel::None));
    agent.removed(key(0)).await;
}

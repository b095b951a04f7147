//! A slot whose helper or standing keeper dies, and a jail that dies with slots: another slot serves, and
//! no control group of the dead is left.

use std::{
    fs,
    path::{Path, PathBuf},
};

use agent::jail::{ExitCause, Level, Limits};

use super::{
    strict::strict,
    support::{Node, as_everybody, root, until},
};

/// Whether tasks have slots here; a machine without says so.
async fn has_slots(node: &Node) -> bool {
    let there = node.client.probe().await.unwrap().strongest >= Level::Strict;
    if !there {
        mesh_skip::skip("this machine does not give level strict");
    }
    there
}

/// Who sits in a jail's slots: under root the keeper itself, else a helper.
fn sitters(jail: u32) -> Vec<i32> {
    let sitter = if root() { "mesh-keeper" } else { "mesh-slot" };
    let helper = |entry: fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (front, back) = stat.rsplit_once(')')?;
        let (pid, name) = front.split_once(" (")?;
        let mut fields = back.split_ascii_whitespace();
        let (state, parent) = (fields.next()?, fields.next()?);
        (name == sitter && state != "Z" && parent == jail.to_string()).then(|| pid.parse().ok())?
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(helper).collect()
}

/// The control groups of the slots of this node's jail, in every tree.
fn groups(node: &Node) -> Vec<PathBuf> {
    let jail = node.dir.path().join("jail").canonicalize().unwrap();
    let mut found = Vec::new();
    below(Path::new("/sys/fs/cgroup"), &agent::jail::groups_name(&jail).unwrap(), &mut found);
    found
}

/// What lies in directories of this name.
fn below(dir: &Path, name: &str, found: &mut Vec<PathBuf>) {
    // Groups come and go while this looks.
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if dir.file_name().is_some_and(|dir| dir == name) {
            found.push(entry.path());
        } else {
            below(&entry.path(), name, found);
        }
    }
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Who sits in the only slot, and its groups: there are some where tasks are held by groups.
async fn only_slot(node: &Node) -> (i32, Vec<PathBuf>) {
    let [helper] = sitters(node.client.jail_pid())[..] else {
        panic!("{:?} slots", sitters(node.client.jail_pid()));
    };
    let groups = groups(node);
    let held = node.client.probe().await.unwrap().limits == Limits::Cgroup;
    assert_eq!(held, !groups.is_empty(), "{groups:?}");
    (helper, groups)
}

/// The slot is gone with all its groups, and another one serves.
async fn is_replaced(node: &mut Node, helper: i32, old: &[PathBuf]) {
    until("the groups to be removed", || old.iter().all(|group| !group.exists())).await;
    let next = strict(node.shell("echo up; until test -e go; do sleep 0.02; done; exit 4"));
    node.start(&next).await;
    node.says(&next, "up").await;
    assert_ne!(only_slot(node).await.0, helper);
    fs::write(next.work_dir.join("go"), "").unwrap();
    node.ended(&next).await.expect(&ExitCause::Exited(4));
}

#[test]
fn a_free_slot_whose_helper_is_killed_is_replaced() {
    as_everybody("slots::a_free_slot_whose_helper_is_killed_is_replaced", async |mut node: Node| {
        if !has_slots(&node).await {
            return;
        }
        node.run(strict(node.shell("exit 3"))).await.expect(&ExitCause::Exited(3));
        let (helper, groups) = only_slot(&node).await;
        kill(helper);
        until("its burial", || !Path::new(&format!("/proc/{helper}")).exists()).await;
        is_replaced(&mut node, helper, &groups).await;
    });
}

#[test]
fn a_task_outlives_the_helper_of_its_slot_but_not_its_keeper_and_the_slot_is_replaced() {
    as_everybody(
        "slots::a_task_outlives_the_helper_of_its_slot_but_not_its_keeper_and_the_slot_is_replaced",
        async |mut node: Node| {
            if !has_slots(&node).await {
                return;
            }
            let script = "setsid sleep 600 & echo up; until test -e go; do sleep 0.02; done; exit 5";
            let request = strict(node.shell(script));
            node.start(&request).await;
            node.says(&request, "up").await;
            // Its keeper may say so after the task does.
            node.started(&request).await;
            let (sitter, groups) = only_slot(&node).await;
            kill(sitter);
            until("its burial", || !Path::new(&format!("/proc/{sitter}")).exists()).await;
            fs::write(request.work_dir.join("go"), "").unwrap();
            let cause = if root() { ExitCause::Signalled(9) } else { ExitCause::Exited(5) };
            node.ended(&request).await.expect(&cause);
            is_replaced(&mut node, sitter, &groups).await;
        },
    );
}

#[test]
fn the_groups_of_a_killed_jail_are_removed_by_the_next_one() {
    as_everybody("slots::the_groups_of_a_killed_jail_are_removed_by_the_next_one", async |mut node: Node| {
        if !has_slots(&node).await {
            return;
        }
        node.run(strict(node.shell("exit 0"))).await.expect(&ExitCause::Exited(0));
        let runs = strict(node.shell("echo up; while :; do sleep 1; done"));
        node.start(&runs).await;
        node.says(&runs, "up").await;
        let (helper, groups) = only_slot(&node).await;
        kill(node.client.jail_pid() as i32);
        until("its helper to die with it", || !Path::new(&format!("/proc/{helper}")).exists()).await;
        // The next jail of any directory removes them, once nobody is in them.
        until("its tasks to die with it", || groups.iter().all(|group| nobody_in(group))).await;
        node.disconnect();
        node.reconnect().await;
        assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
        node.run(strict(node.shell("exit 4"))).await.expect(&ExitCause::Exited(4));
    });
}

fn nobody_in(group: &Path) -> bool {
    fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|pids| pids.is_empty()) || !group.exists()
}

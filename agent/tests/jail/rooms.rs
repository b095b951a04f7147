//! Directories that the jail makes for attempts: whatever a task does to its own, the next task
//! finds one that is as new, and what was never touched is not made again.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use agent::jail::{ExitCause, Level, Room, StartRequest};
use rustix::{
    fs::{AtFlags, CWD, Mode, Timespec, Timestamps, XattrFlags},
    process::Signal,
};

use crate::support::{Node, as_everybody, until};

const SECRET: &[u8] = b"the record of an attempt, with a secret in its environment";

/// A request whose directory the jail is to make.
pub fn roomy(node: &Node, script: &str) -> StartRequest {
    let request = node.shell(script);
    fs::remove_dir_all(&request.attempt_dir).unwrap();
    StartRequest { room: Some(Room { record: SECRET.to_vec(), script: String::new() }), ..request }
}

/// What a task sees of its directory.
const LOOK: &str = "ls -lanR --time-style=+; stat -c '%n %a %u %g %s %h' . .mesh";

fn spares(request: &StartRequest) -> Vec<String> {
    let entries = fs::read_dir(request.attempt_dir.parent().unwrap()).unwrap().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_directory_in_which_nothing_was_left_is_used_again_and_wiped() {
    as_everybody("rooms::a_directory_in_which_nothing_was_left_is_used_again_and_wiped", async |mut node| {
        let mut inodes = Vec::new();
        for level in [Level::None, Level::Basic, Level::Strict] {
            for script in ["", "echo 40 > $PWD/.mesh/progress", "echo said; exit 3"] {
                let request = StartRequest { level, ..roomy(&node, script) };
                let Ok(()) = node.client.start(request.clone()).await else {
                    assert_eq!(level, Level::Strict, "level {level:?} is refused");
                    continue;
                };
                let record = request.attempt_dir.join("record");
                assert_eq!(fs::read(&record).unwrap(), SECRET);
                node.ended(&request).await;
                inodes.push(fs::metadata(request.attempt_dir.join("work")).unwrap().ino());
                assert_eq!(node.client.clear(vec![request.attempt]).await.unwrap(), []);
                let names = spares(&request);
                assert_eq!(names.len(), 1, "{names:?}");
                let spare = request.attempt_dir.with_file_name(&names[0]);
                for file in ["record", "exit"] {
                    assert!(fs::read(spare.join(file)).unwrap().iter().all(|&byte| byte == 0), "{file}");
                }
            }
        }
        assert!(inodes.iter().all(|inode| *inode == inodes[0]), "{inodes:?}");
    });
}

/// Something that a task may do to its directory, by its path.
type Mischief = fn(&Path);

fn mode(path: &Path, mode: u32) {
    rustix::fs::chmod(path, Mode::from_raw_mode(mode)).unwrap();
}

#[test]
fn whatever_a_task_leaves_the_next_one_finds_a_directory_as_new() {
    as_everybody("rooms::whatever_a_task_leaves_the_next_one_finds_a_directory_as_new", async |mut node| {
        let first = node.run(roomy(&node, LOOK)).await;
        first.expect(&ExitCause::Exited(0));
        let many = |work: &Path| {
            let name = |number: u32| work.join(format!("{}{number}", "long".repeat(40)));
            (0..200).for_each(|number| fs::write(name(number), "").unwrap());
            (0..200).for_each(|number| fs::remove_file(name(number)).unwrap());
        };
        let mischief: [(&str, Mischief); 11] = [
            ("a file", |work| fs::write(work.join("left"), "x").unwrap()),
            ("a hidden file", |work| fs::write(work.join(".mesh/.left"), "x").unwrap()),
            ("a directory called as the script is", |work| {
                fs::create_dir(work.join(".mesh/script")).unwrap();
            }),
            ("a link", |work| std::os::unix::fs::symlink("/etc", work.join("link")).unwrap()),
            ("no area", |work| fs::remove_dir(work.join(".mesh")).unwrap()),
            ("another area", |work| {
                fs::rename(work.join(".mesh"), work.join("..").join("aside")).unwrap();
                fs::create_dir(work.join(".mesh")).unwrap();
            }),
            ("another mode", |work| mode(work, 0o755)),
            ("another mode of the area", |work| mode(&work.join(".mesh"), 0o777)),
            ("an attribute", |work| {
                // Not every file system has them.
                let _none = rustix::fs::setxattr(work, "user.left", b"x", XattrFlags::empty());
            }),
            ("many names that are gone", many),
            ("times", |work| {
                let past = Timespec { tv_sec: 86_400, tv_nsec: 0 };
                let times = Timestamps { last_access: past, last_modification: past };
                rustix::fs::utimensat(CWD, work, &times, AtFlags::empty()).unwrap();
            }),
        ];
        for (what, act) in mischief {
            let request = roomy(&node, "");
            node.run(request.clone()).await.expect(&ExitCause::Exited(0));
            act(&request.attempt_dir.join("work"));
            let left = node.client.clear(vec![request.attempt]).await.unwrap();
            if !left.is_empty() {
                // As the daemon does.
                fs::remove_dir_all(&request.attempt_dir).unwrap();
            }
            let next = roomy(&node, LOOK);
            node.start(&next).await;
            let age = fs::metadata(next.attempt_dir.join("work")).unwrap().modified().unwrap();
            assert!(age.elapsed().unwrap().as_secs() < 3600, "after {what}: a time was left");
            let next = node.ended(&next).await;
            assert_eq!(next.out(), first.out(), "after {what}");
            node.client.clear(vec![next.record.attempt]).await.unwrap();
        }
    });
}

#[test]
fn an_attempt_begins_once_also_where_the_jail_makes_its_directory() {
    as_everybody(
        "rooms::an_attempt_begins_once_also_where_the_jail_makes_its_directory",
        async |mut node| {
            let request = roomy(&node, "exit 6");
            node.run(request.clone()).await.expect(&ExitCause::Exited(6));
            let lost = roomy(&node, "sleep 1000");
            node.start(&lost).await;
            node.started(&lost).await;
            let jail = rustix::process::Pid::from_raw(node.client.jail_pid() as i32).unwrap();
            rustix::process::kill_process(jail, Signal::KILL).unwrap();
            node.disconnect();
            node.reconnect().await;
            node.run(request.clone()).await.expect(&ExitCause::Exited(6));
            let error = node.client.start(lost.clone()).await.unwrap_err().to_string();
            assert!(error.contains("started before"), "{error}");
            assert_eq!(fs::read(lost.attempt_dir.join("record")).unwrap(), SECRET);
            let both = vec![request.attempt, lost.attempt];
            assert_eq!(node.client.clear(both.clone()).await.unwrap(), both, "a jail that died made these");
        },
    );
}

#[test]
fn a_jail_leaves_no_spare_directories() {
    as_everybody("rooms::a_jail_leaves_no_spare_directories", async |mut node| {
        for kill in [false, true] {
            let request = roomy(&node, "");
            node.run(request.clone()).await.expect(&ExitCause::Exited(0));
            assert_eq!(node.client.clear(vec![request.attempt]).await.unwrap(), []);
            assert_eq!(spares(&request).len(), 1);
            if kill {
                let jail = rustix::process::Pid::from_raw(node.client.jail_pid() as i32).unwrap();
                rustix::process::kill_process(jail, Signal::KILL).unwrap();
            } else {
                node.client.shutdown(false).await.unwrap();
                until("the spare directory to go", || spares(&request).is_empty()).await;
            }
            node.disconnect();
            node.reconnect().await;
        }
        // The next jail clears up after one that was killed.
        let request = roomy(&node, "");
        node.run(request.clone()).await.expect(&ExitCause::Exited(0));
        assert_eq!(spares(&request), [request.attempt.to_string()]);
    });
}

//! Powers that lie where a task finds them: programs that bring another user's rights or a capability, and
//! devices that are open to everybody. Nobody but root makes such things; an ordinary user's run finds those
//! that root's run has made for it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use agent::jail::{Mount, StartRequest, Wall};

use super::{
    attacks::{Without, attack, outside, said},
    support::{Node, as_everybody_given, as_this_user, needs_root, root},
};

const ALL: [Wall; 5] = [Wall::Tree, Wall::Capabilities, Wall::NoNewPrivileges, Wall::Landlock, Wall::Seccomp];

fn mode(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A program of root's that is run with root's rights.
fn with_bit(dir: &Path) {
    fs::copy("/usr/bin/id", dir.join("id")).unwrap();
    mode(dir.join("id"), 0o6755);
}

/// A copy of cat that brings the capability to read everything, and a file that is root's alone.
fn with_capability(dir: &Path) {
    let program = dir.join("cat");
    fs::copy("/bin/cat", &program).unwrap();
    mode(&program, 0o755);
    // Version 2, effective, CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH permitted.
    let words = [0x0200_0001_u32, 0b110, 0, 0, 0];
    let value: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    rustix::fs::setxattr(&program, "security.capability", &value, rustix::fs::XattrFlags::empty()).unwrap();
    fs::write(dir.join("closed"), "root's alone").unwrap();
    mode(dir.join("closed"), 0o600);
}

/// A device that everybody may open, with zeroes without end.
pub fn device(path: &Path) {
    let (kind, zeroes) = (rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 5));
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::from(0o666), zeroes).unwrap();
    mode(path, 0o666);
}

fn powers(dir: &Path) {
    with_bit(dir);
    with_capability(dir);
    device(&dir.join("zero"));
}

/// In a mount, whether it is to be written or not, and whoever its files are shown as.
#[test]
fn no_power_comes_with_a_mount() {
    as_everybody_given("powers::no_power_comes_with_a_mount", powers, async |mut node: Node, given| {
        let Some(given) = given else {
            needs_root("only root can make programs and devices with powers");
            return;
        };
        for words in [&["setuid", "id"][..], &["file_capability", "cat", "closed"], &["read", "zero"]] {
            let lying_in = |dir: &str| -> Vec<String> {
                let files = words[1..].iter().map(|file| format!("{dir}/{file}"));
                [words[0].to_owned()].into_iter().chain(files).collect()
            };
            let asked = |node: &Node, words: &[String]| {
                attack(node, &words.iter().map(String::as_str).collect::<Vec<_>>())
            };
            let there = lying_in(given.to_str().unwrap());
            let control = outside(&asked(&node, &there), Without::Sandbox);
            assert!(control.contains("reached"), "{there:?} gives no power outside: {control}");

            let mounted = lying_in("/data");
            let mut ways = vec![
                (true, None, vec![]),
                (false, None, vec![]),
                (false, None, ALL.into_iter().filter(|wall| *wall != Wall::Tree).collect()),
            ];
            // Only root shows files as somebody else's.
            ways.extend(root().then(|| (false, Some((12_345, 12_345)), vec![])));
            for (read_only, owner, without) in ways {
                let mounts = vec![Mount { source: given.clone(), to: "/data".into(), read_only, owner }];
                let request = StartRequest { mounts, without, ..asked(&node, &mounted) };
                let what = format!("{words:?} {read_only} {owner:?} {:?}", request.without);
                let ended = node.run(request).await;
                assert!(!ended.out().contains("reached"), "{what}: {}", said(&ended));
            }

            // Where they lie, the tree and all the rest away.
            let bare = StartRequest { without: ALL.into(), ..asked(&node, &there) };
            let ended = node.run(bare).await;
            // An ordinary user's task has nobody to become: in its user namespace there is nobody else. That wall
            // stands for as long as the task is in a sandbox, so its controls are those outside.
            let reached = root() || words[0] == "read";
            assert_eq!(ended.out().contains("reached"), reached, "{words:?}: {}", said(&ended));
        }
    });
}

/// In the work directory, which lies on the machine's own file system.
#[test]
fn any_one_of_three_walls_holds_a_power_back() {
    if !root() {
        needs_root("only root can put a program with powers into a work directory");
        return;
    }
    as_this_user(async |mut node: Node| {
        for (words, aim) in [
            (&["setuid", "./id"][..], "reached 0"),
            (&["file_capability", "./cat", "closed"], "reached b\"root's alone\""),
        ] {
            let make = |node: &Node| {
                let request = attack(node, words);
                powers(&request.work_dir);
                request
            };
            let ended = node.run(make(&node)).await;
            assert!(!ended.out().contains("reached"), "{}", said(&ended));
            let ended = node.run(StartRequest { without: ALL.into(), ..make(&node) }).await;
            assert!(ended.out().contains(aim), "{}", said(&ended));
            for kept in [Wall::Tree, Wall::Capabilities, Wall::NoNewPrivileges] {
                let without = ALL.into_iter().filter(|wall| *wall != kept).collect();
                let ended = node.run(StartRequest { without, ..make(&node) }).await;
                assert!(!ended.out().contains("reached"), "{kept:?} alone: {}", said(&ended));
            }
        }
    });
}

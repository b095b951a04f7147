//! Nothing weakens silently: on a machine that lacks a layer the agent says so with a remedy, offers a
//! weaker level and refuses the stronger one. The machine is made poorer in a namespace or by a
//! filter that makes system calls seem not to be there.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use agent::jail::{ExitCause, Level, Options};

use super::{
    strict::strict,
    support::{Node, as_everybody, root},
};

/// A shell line that makes the machine poorer and then becomes its arguments.
pub fn poorer(node: &Node, kernel_without: &[String]) -> String {
    let deny = node.dir.path().join("deny.py");
    fs::write(&deny, include_str!("deny.py")).unwrap();
    format!("exec /usr/bin/python3 {} {} -- \"$@\"", deny.display(), kernel_without.join(" "))
}

/// What `agent check` says there, and whether the node would take tasks.
pub fn check(node: &Node, line: &str) -> (String, bool) {
    let data = tempfile::tempdir().unwrap();
    let agent = Node::options(node.dir.path()).exe.unwrap();
    let output = Command::new("/bin/sh")
        .args(["-c", line, "sh"])
        .arg(agent)
        .args(["check", "--data-dir"])
        .arg(data.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (said, output.status.success())
}

#[track_caller]
pub fn expect(said: &str, layer: &str, remedy: &str, strongest: &str) {
    let missing = said.lines().find(|line| line.starts_with(&format!("missing  {layer}: ")));
    let missing = missing.unwrap_or_else(|| panic!("{layer} is not missed: {said}"));
    assert!(missing.contains(remedy), "{missing}");
    assert!(said.contains(&format!("strongest level: {strongest}\n")), "{layer}: {said}");
}

/// The kinds of namespaces as the kernel names them, the layer that each makes, and the strongest level
/// without it.
pub fn namespaces() -> [(&'static str, &'static str, &'static str); 7] {
    [
        ("pid", "pid_namespace", "none"),
        ("mnt", "hidden_files", "none"),
        ("ipc", "ipc_namespace", "basic"),
        ("uts", "uts_namespace", "basic"),
        ("cgroup", "cgroup_namespace", "basic"),
        // Root makes the others without one.
        ("user", "user_namespace", if root() { "basic" } else { "none" }),
        ("net", "network_namespace", "basic"),
    ]
}

const SECCOMP: u32 = if cfg!(target_arch = "x86_64") { 317 } else { 277 };
const MOUNT_SETATTR: u32 = 442;
const LANDLOCK: u32 = 444;

#[test]
fn a_kernel_that_lacks_a_wall_is_found_out() {
    as_everybody("weaken::a_kernel_that_lacks_a_wall_is_found_out", async |node: Node| {
        let (said, takes) = check(&node, "exec \"$@\"");
        assert!(takes && said.contains("strongest level: strict"), "{said}");
        for (call, layer, remedy, strongest, enough) in [
            (SECCOMP, "seccomp", "CONFIG_SECCOMP_FILTER", "basic", false),
            (MOUNT_SETATTR, "file_tree", "5.12", "basic", false),
            // The second wall alone.
            (LANDLOCK, "landlock", "lsm=", "strict", true),
        ] {
            let (said, takes) = check(&node, &poorer(&node, &[call.to_string()]));
            expect(&said, layer, remedy, strongest);
            assert_eq!(takes, enough, "{said}");
        }
    });
}

#[test]
fn a_machine_that_gives_no_namespaces_of_a_kind_is_found_out() {
    as_everybody("weaken::a_machine_that_gives_no_namespaces_of_a_kind_is_found_out", async |node: Node| {
        if root() {
            // Shown as an ordinary user: inside of a user namespace root is no root.
            return;
        }
        for (kind, layer, strongest) in namespaces() {
            let line = format!(
                "exec unshare --user --map-current-user --keep-caps sh -c 'echo 0 > /proc/sys/user/max_{kind}_namespaces; \
                 exec setpriv --ambient-caps=-all --inh-caps=-all \"$@\"' sh \"$@\""
            );
            let (said, takes) = check(&node, &line);
            expect(&said, layer, &format!("user.max_{kind}_namespaces"), strongest);
            assert!(!takes, "{said}");
        }
    });
}

#[test]
fn control_groups_that_cannot_be_written_are_found_out() {
    as_everybody("weaken::control_groups_that_cannot_be_written_are_found_out", async |node: Node| {
        let line = if root() {
            "exec unshare --mount sh -c 'awk \"\\$3 ~ /^cgroup/ {print \\$2}\" /proc/mounts | while read -r dir; do \
             mount -o remount,bind,ro \"$dir\"; done; exec \"$@\"' sh \"$@\""
        } else {
            // What an ordinary user has anyway, unless somebody has given it some.
            "exec \"$@\""
        };
        let (said, _) = check(&node, line);
        if root() || !said.contains("ok       cgroup_limits") {
            expect(&said, "cgroup_limits", "Delegate=yes", "strict");
            assert!(said.contains("limits: rlimit"), "{said}");
        }
    });
}

#[test]
fn a_jail_refuses_what_its_machine_cannot_do_and_still_does_the_rest() {
    as_everybody(
        "weaken::a_jail_refuses_what_its_machine_cannot_do_and_still_does_the_rest",
        async |mut node: Node| {
            for (call, level) in [(MOUNT_SETATTR, Level::Basic), (LANDLOCK, Level::Strict)] {
                let poor = node.dir.path().join(format!("poor-{call}"));
                let agent = Node::options(node.dir.path()).exe.unwrap();
                let line = poorer(&node, &[call.to_string()]);
                fs::write(&poor, format!("#!/bin/sh\nset -- {} \"$@\"\n{line}\n", agent.display())).unwrap();
                fs::set_permissions(&poor, fs::Permissions::from_mode(0o755)).unwrap();
                node.client.shutdown(false).await.unwrap();
                node.disconnect();
                node.connect(Options { exe: Some(poor), ..Node::options(node.dir.path()) }).await;
                assert_eq!(node.client.probe().await.unwrap().strongest, level);
                if level == Level::Strict {
                    // One wall fewer, and the first one still stands.
                    let ended = node.run(strict(node.shell("ls /home; echo x > /usr/x; exit 3"))).await;
                    ended.expect(&ExitCause::Exited(3));
                    assert_eq!(ended.out(), "");
                } else {
                    let error = node.client.start(strict(node.shell("true"))).await.unwrap_err().to_string();
                    assert!(error.contains("level strict is not available"), "{error}");
                    node.run(node.shell("exit 3")).await.expect(&ExitCause::Exited(3));
                }
            }
        },
    );
}

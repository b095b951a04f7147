//! More of what `weaken` shows: the layers that only some machines lack, each with its remedy, and layers
//! that the machine gave when the agent started and does not give any more. A task is never started with
//! less than its level.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use agent::jail::{ExitCause, Level, Options, StartRequest};

use super::{
    strict::strict,
    support::{Node, as_everybody, root, until},
    weaken::{check, expect, namespaces, poorer},
};

const PRCTL: u32 = if cfg!(target_arch = "x86_64") { 157 } else { 167 };
const UNSHARE: u32 = if cfg!(target_arch = "x86_64") { 272 } else { 97 };

#[test]
fn a_kernel_without_no_new_privs_gives_no_level_at_all() {
    as_everybody("remedies::a_kernel_without_no_new_privs_gives_no_level_at_all", async |node: Node| {
        let (said, takes) = check(&node, &poorer(&node, &[format!("{PRCTL}={}", libc::PR_SET_NO_NEW_PRIVS)]));
        expect(&said, "no_new_privs", "update the kernel", "none");
        assert!(!takes, "{said}");
    });
}

#[test]
fn what_only_root_can_lack_is_found_out() {
    as_everybody("remedies::what_only_root_can_lack_is_found_out", async |node: Node| {
        if !root() {
            super::support::needs_root("only root can lack a capability");
            return;
        }
        for (capability, layer, remedy, strongest) in [
            ("setuid", "uid", "CAP_SETUID and CAP_SETGID", "none"),
            ("setgid", "uid", "CAP_SETUID and CAP_SETGID", "none"),
            ("sys_admin", "pid_namespace", "CAP_SYS_ADMIN", "none"),
        ] {
            let line = format!("exec setpriv --bounding-set=-{capability} \"$@\"");
            let (said, takes) = check(&node, &line);
            expect(&said, layer, remedy, strongest);
            assert!(!takes, "{said}");
        }
        let (said, takes) = check(&node, &poorer(&node, &[format!("{UNSHARE}:{}", libc::CLONE_NEWNET)]));
        expect(&said, "network_namespace", "raise sysctl user.max_net_namespaces", "basic");
        assert!(!takes, "{said}");
        if !own_machine() {
            return;
        }
        for (kind, layer, strongest) in namespaces() {
            let limit = Limit::of(kind);
            limit.lower();
            let (said, takes) = check(&node, "exec \"$@\"");
            limit.raise();
            expect(&said, layer, &format!("user.max_{kind}_namespaces"), strongest);
            assert!(!takes, "{said}");
        }
    });
}

#[test]
fn a_proc_that_a_container_has_masked_is_found_out() {
    as_everybody("remedies::a_proc_that_a_container_has_masked_is_found_out", async |node: Node| {
        if root() {
            // Shown as an ordinary user: root may mount a new one whatever lies over the old one.
            return;
        }
        let line = "exec unshare --user --map-current-user --keep-caps --mount sh -c 'mount -t tmpfs mask /proc/tty && \
                    exec setpriv --ambient-caps=-all --inh-caps=-all \"$@\"' sh \"$@\"";
        let (said, takes) = check(&node, line);
        expect(&said, "own_proc", "masks over /proc", "none");
        assert!(!takes, "{said}");
    });
}

/// Its tasks would see the keys of an ordinary user's agent, whose uid they have.
#[test]
fn a_data_directory_that_tasks_would_see_is_found_out() {
    as_everybody("remedies::a_data_directory_that_tasks_would_see_is_found_out", async |node: Node| {
        let user = if root() { "" } else { "--user --map-current-user --keep-caps" };
        let line = format!(
            "exec unshare {user} --mount sh -c 'mount -t tmpfs -o mode=755 own /opt && \
             exec setpriv --ambient-caps=-all --inh-caps=-all \"$1\" check --data-dir /opt/agent' sh \"$1\""
        );
        let (said, takes) = check(&node, &line);
        expect(&said, "file_tree", "the agent's own directory is seen there", "basic");
        assert!(!takes && said.contains("/opt and the like"), "{said}");
    });
}

/// Whether the machine is this test's alone (`scripts/vm-test`): only then may root change it.
fn own_machine() -> bool {
    std::env::var_os("MESH_TEST_OWN_MACHINE").is_some()
}

/// How many namespaces of a kind there may be.
struct Limit {
    file: String,
    before: String,
}

impl Limit {
    fn of(kind: &str) -> Self {
        let file = format!("/proc/sys/user/max_{kind}_namespaces");
        Self { before: fs::read_to_string(&file).unwrap(), file }
    }

    fn lower(&self) {
        fs::write(&self.file, "0").unwrap();
    }

    fn raise(&self) {
        fs::write(&self.file, &self.before).unwrap();
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // Also when the test fails: others come after it on this machine.
        self.raise();
    }
}

/// A jail on a machine of which a namespace limit is lowered when `lower` appears in the node's directory,
/// and raised again with `raise`.
async fn on_a_changing_machine(node: &mut Node, kind: &str) {
    let script = node.dir.path().join(format!("changing-{kind}"));
    let options = Node::options(node.dir.path());
    let text = format!(
        r#"#!/bin/bash
cd {dir} && rm -f lower lowered raise raised
export KIND={kind}
exec unshare --user --map-current-user --keep-caps bash -c '
    limit=/proc/sys/user/max_${{KIND}}_namespaces
    soon() {{ for i in $(seq 3000); do [ ! -e $1 ] || return 0; sleep 0.02; done; exit; }}
    ( exec </dev/null >/dev/null 2>&1; before=$(cat $limit); soon lower; echo 0 > $limit; : > lowered
      soon raise; echo $before > $limit; : > raised ) &
    exec setpriv --ambient-caps=-all --inh-caps=-all {agent} "$@"' bash "$@"
"#,
        dir = node.dir.path().display(),
        agent = options.exe.as_ref().unwrap().display(),
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    node.client.shutdown(false).await.unwrap();
    node.disconnect();
    node.connect(Options { exe: Some(script), ..options }).await;
    assert_eq!(node.client.probe().await.unwrap().strongest, Level::Strict);
}

async fn change(node: &Node, ask: &str, done: &str) {
    let dir: &Path = node.dir.path();
    fs::write(dir.join(ask), "").unwrap();
    until("the machine to change", || dir.join(done).exists()).await;
}

#[test]
fn a_layer_that_is_gone_since_the_start_keeps_tasks_from_starting_and_weakens_none() {
    as_everybody(
        "remedies::a_layer_that_is_gone_since_the_start_keeps_tasks_from_starting_and_weakens_none",
        async |mut node: Node| {
            if root() && !own_machine() {
                // Shown as an ordinary user, whose limits are those of a namespace of its own.
                return;
            }
            for (kind, ..) in namespaces() {
                let limit = root().then(|| Limit::of(kind));
                let script = &format!("readlink /proc/self/ns/{kind}; echo ran > ran; exit 3");
                if limit.is_none() {
                    on_a_changing_machine(&mut node, kind).await;
                }
                node.run(strict(node.shell(script))).await.expect(&ExitCause::Exited(3));
                match &limit {
                    Some(limit) => limit.lower(),
                    None => change(&node, "lower", "lowered").await,
                }
                // One that needs a new slot, whatever there is of those that were made before.
                let needs = |node: &Node| {
                    let mut request = strict(node.shell(script));
                    request.bounds.memory = Some(64 << 20);
                    request
                };
                // The slot that is there holds a network and a user namespace; a second task needs others.
                let occupies = strict(node.shell("echo up; until test -e go; do sleep 0.02; done"));
                let kept = matches!(kind, "user" | "net");
                if kept {
                    node.start(&occupies).await;
                    node.says(&occupies, "up").await;
                }
                // Nor does it run weaker when it is asked for again.
                for request in [needs(&node), strict(node.shell(script))] {
                    refused(&mut node, request, kind).await;
                }
                if kept {
                    fs::write(occupies.work_dir.join("go"), "").unwrap();
                    node.ended(&occupies).await.expect(&ExitCause::Exited(0));
                }
                match &limit {
                    Some(limit) => limit.raise(),
                    None => change(&node, "raise", "raised").await,
                }
                node.run(needs(&node)).await.expect(&ExitCause::Exited(3));
            }
        },
    );
}

/// It does not start, and is told why. Or it is one of a root agent's and starts in what its slot had of old:
/// in namespaces of its own all the same.
async fn refused(node: &mut Node, request: StartRequest, kind: &str) {
    let ran = request.work_dir.join("ran");
    let why = if let Err(error) = node.client.start(request.clone()).await {
        error.to_string()
    } else {
        let ended = node.ended(&request).await;
        match &ended.record.cause {
            ExitCause::SpawnFailed(why) => why.clone(),
            ExitCause::Exited(3) if root() => {
                let outside = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
                assert_ne!(Path::new(ended.out().trim()), outside, "{kind}: it ran with less than its level");
                return;
            }
            cause => panic!("{kind}: it ended with {cause:?}"),
        }
    };
    assert!(!ran.exists(), "{kind}: it ran");
    println!("{kind}: {why}");
    assert!(why.contains("No space left") || why.contains("os error 28"), "{kind}: {why}");
}

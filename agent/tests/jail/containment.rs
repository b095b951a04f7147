//! What a task cannot reach at level `basic`: the agent's files, other tasks, more privileges.

use std::{fs, os::unix::fs::PermissionsExt};

use agent::jail::{ExitCause, Level, Options};

use super::support::{Node, as_everybody, root};

#[test]
fn the_probe_proves_the_levels_here() {
    as_everybody("containment::the_probe_proves_the_levels_here", async |node: Node| {
        let probe = node.client.probe().await.unwrap();
        assert_eq!(probe.strongest, Level::Strict, "{:?}", probe.layers);
        for layer in &probe.layers {
            assert_eq!(layer.remedy.is_empty(), layer.present, "{layer:?}");
        }
        let names: Vec<&str> = probe.layers.iter().map(|layer| layer.name.as_str()).collect();
        assert!(names.contains(&"pid_namespace") && names.contains(&"hidden_files"), "{names:?}");
    });
}

#[test]
fn the_agents_directory_is_out_of_reach_but_for_the_work_directory() {
    as_everybody(
        "containment::the_agents_directory_is_out_of_reach_but_for_the_work_directory",
        async |mut node: Node| {
            let dir = node.dir.path().to_owned();
            let dir = dir.display();
            let other = node.shell("true");
            fs::write(other.work_dir.join("secret"), "another task's").unwrap();
            // Also for one who makes a user namespace of its own, where it is root, and digs.
            let dig = "ls -A . ; echo mine > file; cat file";
            let script = format!(
                "{dig}; cat {dir}/key.pem; ls {dir}/attempts {dir}/jail; touch {dir}/new; cat ../spool; \
             cat /proc/1/root{dir}/key.pem; \
             unshare -Urm sh -c 'umount -l {dir}; umount -l {dir}/attempts; cat {dir}/key.pem'; exit 0"
            );
            let mut request = node.shell(&script);
            // Everything open to the uid itself: only the namespace hides it.
            for path in [node.dir.path().join("key.pem"), node.dir.path().join("attempts")] {
                fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
            }
            fs::set_permissions(&request.attempt_dir, fs::Permissions::from_mode(0o777)).unwrap();
            request.argv[0] = "sh".into();
            let name = request.attempt.to_string();
            let ended = node.run(request).await;
            ended.expect(&ExitCause::Exited(0));
            assert_eq!(ended.out(), format!("mine\n{dir}/attempts:\n{name}\n"), "{}", ended.err());
            assert!(!node.dir.path().join("new").exists());
        },
    );
}

#[test]
fn the_attempts_own_directory_and_the_jails_are_hidden_though_nobody_asks() {
    as_everybody(
        "containment::the_attempts_own_directory_and_the_jails_are_hidden_though_nobody_asks",
        async |mut node: Node| {
            let dir = node.dir.path().display().to_string();
            let mut request =
                node.shell(&format!("cat ../spool; ls ..; ls -A {dir}/jail; cat {dir}/key.pem"));
            request.hidden.clear();
            let ended = node.run(request).await;
            assert_eq!(ended.out(), "work\nthe agent's private key");
            assert!(ended.err().contains("spool"), "{}", ended.err());
        },
    );
}

#[test]
fn a_task_sees_its_own_processes_alone() {
    as_everybody("containment::a_task_sees_its_own_processes_alone", async |mut node: Node| {
        let script = "echo /proc/[0-9]*; readlink /proc/1/root /proc/1/cwd; ls /proc/1/root/ /proc/1/fd; cat /proc/1/environ /proc/1/maps";
        let ended = node.run(node.shell(script)).await;
        assert!(ended.out().lines().next().unwrap().split(' ').count() <= 3, "{}", ended.out());
        assert_eq!(ended.out().lines().count(), 1, "the keeper can be looked into: {}", ended.out());
    });
}

#[test]
fn setuid_programs_give_nothing() {
    as_everybody("containment::setuid_programs_give_nothing", async |mut node: Node| {
        for level in [Level::Basic, Level::None] {
            let mut request = node.shell("./id -u; mount -t tmpfs x . ; echo $?");
            request.level = level;
            let id = request.work_dir.join("id");
            fs::copy("/usr/bin/id", &id).unwrap();
            fs::set_permissions(&id, fs::Permissions::from_mode(0o6755)).unwrap();
            let uid = request.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw());
            let ended = node.run(request).await;
            assert!(ended.out().starts_with(&format!("{uid}\n")), "{}", ended.out());
            assert!(!ended.out().contains("uid=0"), "{}", ended.out());
            assert!(!ended.out().ends_with("\n0\n"), "a task could mount: {}", ended.out());
        }
    });
}

#[test]
fn what_the_work_directory_may_not_be_is_refused() {
    as_everybody("containment::what_the_work_directory_may_not_be_is_refused", async |node: Node| {
        let mut inside = node.shell("true");
        inside.work_dir = inside.attempt_dir.clone();
        assert!(node.client.start(inside).await.is_err(), "a task could write its own exit record");
        let mut missing = node.shell("true");
        missing.work_dir = missing.work_dir.join("missing");
        assert!(node.client.start(missing).await.is_err());
        let mut slash = node.shell("true");
        slash.hidden = vec!["/".into()];
        assert!(node.client.start(slash).await.is_err());
    });
}

#[test]
fn tasks_of_different_uids_cannot_read_each_other() {
    if !root() {
        super::support::needs_root("only root gives tasks uids of their own");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut node = Node::new().await;
        let first = node.shell("true");
        fs::write(first.work_dir.join("secret"), "secret").unwrap();
        fs::set_permissions(&first.work_dir, fs::Permissions::from_mode(0o700)).unwrap();
        let mut second = node.shell(&format!("cat {}/secret", first.work_dir.display()));
        // Even where no namespace hides it.
        (second.level, second.uid, second.gid) = (Level::None, Some(70_002), Some(70_002));
        std::os::unix::fs::chown(&second.work_dir, second.uid, second.gid).unwrap();
        let ended = node.run(second).await;
        assert_eq!((ended.out(), &ended.record.cause), ("", &ExitCause::Exited(1)));
        assert!(ended.err().contains("Permission denied"), "{}", ended.err());
    });
}

/// At level none the uid is the only wall before the agent's files, and an ordinary user's tasks have the agent's.
#[test]
fn without_a_sandbox_the_uid_alone_keeps_a_task_from_the_agents_files() {
    as_everybody(
        "containment::without_a_sandbox_the_uid_alone_keeps_a_task_from_the_agents_files",
        async |mut node: Node| {
            let key = node.dir.path().join("key.pem");
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
            for (level, reached) in [(Level::Strict, false), (Level::Basic, false), (Level::None, !root())] {
                let mut request = node.shell(&format!("cat {}", key.display()));
                request.level = level;
                let ended = node.run(request).await;
                assert_eq!(ended.out() == "the agent's private key", reached, "{level:?}: {}", ended.err());
            }
        },
    );
}

#[test]
fn a_machine_without_namespaces_says_so_and_weakens_nothing() {
    if !root() {
        super::support::needs_root("only root can take a capability away");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut node = Node::new().await;
        let poor = node.dir.path().join("poor-agent");
        let agent = env!("CARGO_BIN_EXE_agent");
        let script = format!("#!/bin/sh\nexec /usr/bin/setpriv --bounding-set=-sys_admin {agent} \"$@\"\n");
        fs::write(&poor, script).unwrap();
        fs::set_permissions(&poor, fs::Permissions::from_mode(0o755)).unwrap();
        node.client.shutdown(false).await.unwrap();
        node.disconnect();
        node.connect(Options { exe: Some(poor), ..Node::options(node.dir.path()) }).await;

        let probe = node.client.probe().await.unwrap();
        assert_eq!(probe.strongest, Level::None);
        let missing = probe.layers.iter().find(|layer| layer.name == "pid_namespace").unwrap();
        assert!(!missing.present && missing.remedy.contains("CAP_SYS_ADMIN"), "{missing:?}");
        let basic = node.shell("exit 0");
        let error = node.client.start(basic).await.unwrap_err().to_string();
        assert!(error.contains("basic is not available"), "{error}");
        let mut bare = node.shell("exit 5");
        bare.level = Level::None;
        node.run(bare).await.expect(&ExitCause::Exited(5));
    });
}

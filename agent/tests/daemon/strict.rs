//! What a node lends to strict tasks and what it bounds, from flag and assignment to the end that is told.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use mesh_proto::v1::{Assignment, Cause, Ended, Mount, Network, Resources, SandboxLevel};

use crate::fake::Fake;
use crate::process::{Agent, levels, script};

/// Whether the node does strict; a machine that does not says so.
fn is_strict(fake: &Fake) -> bool {
    levels(fake)[0] == SandboxLevel::Strict
}

fn strict(index: u32, text: &str) -> Assignment {
    Assignment { sandbox: SandboxLevel::Strict.into(), ..script(index, text) }
}

async fn end_of(fake: &Fake, task: Assignment) -> Ended {
    let attempt = task.attempt.unwrap().try_into().unwrap();
    fake.assign(task).await;
    fake.ended(attempt).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fills_its_directory_ends_with_disk_and_its_slot_serves_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    fs::write(&config, "max_work_size = \"10MiB\"\nmax_work_files = 50\n").unwrap();
    let fake = Fake::start();
    let agent = Agent::join(&fake, &["--slots", "1", "--config", config.to_str().unwrap()]).await;
    if !is_strict(&fake) {
        return;
    }
    let much = "for i in 1 2 3 4 5; do head -c 3000000 /dev/zero > $i; done; sleep 100";
    let many = "mkdir d; i=0; while [ $i -lt 60 ]; do : > d/$i; i=$((i+1)); done; sleep 100";
    // The node's bounds, and the smaller one that a job asks for.
    let asked = Resources { cpu_millis: 1000, disk_bytes: 1 << 20, ..Resources::default() };
    let little = Assignment {
        resources: Some(asked),
        ..strict(2, "for i in 1 2 3; do head -c 500000 /dev/zero > $i; done; sleep 100")
    };
    for (task, what) in [(strict(0, much), "bytes"), (strict(1, many), "files"), (little, "bytes")] {
        let ended = end_of(&fake, task).await;
        assert_eq!(ended.cause(), Cause::Disk, "{ended:?}");
        assert!(ended.message.contains(what), "{}", ended.message);
    }
    let ended = end_of(&fake, strict(3, "head -c 3000000 /dev/zero > fits; exit 4")).await;
    assert_eq!((ended.cause(), ended.exit_code), (Cause::Exit, 4), "{ended:?}");
    agent.removed(crate::process::key(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_writes_to_the_mount_that_it_asked_to_write_as_its_owner() {
    let lent = tempfile::tempdir().unwrap();
    let (shared, private) = (lent.path().join("shared"), lent.path().join("private"));
    for (dir, mode) in [(&shared, 0o777), (&private, 0o700)] {
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
    }
    let root = rustix::process::geteuid().is_root();
    let owner = if root { 47_000 } else { rustix::process::geteuid().as_raw() };
    let mut allow = vec![format!("shared={}", shared.display())];
    if root {
        std::os::unix::fs::chown(&private, Some(owner), Some(owner)).unwrap();
        allow.push(format!("owned={}:owner={owner}.{owner}", private.display()));
    } else {
        mesh_skip::skip("only root can lend a directory as another owner's");
    }
    let fake = Fake::start();
    let flags: Vec<&str> = allow.iter().flat_map(|mount| ["--allow-mount", mount.as_str()]).collect();
    let _agent = Agent::join(&fake, &flags).await;
    if !is_strict(&fake) {
        return;
    }
    let mount = |name: &str| Mount { name: name.into(), to: format!("/{name}"), read_only: false };
    let mut task = strict(0, "id -u > /shared/who; [ ! -e /owned ]");
    task.mounts = vec![mount("shared")];
    let ended = end_of(&fake, task).await;
    assert_eq!((ended.cause(), ended.exit_code), (Cause::Exit, 0), "{ended:?}");
    let made = fs::metadata(shared.join("who")).unwrap();
    let who: u32 = fs::read_to_string(shared.join("who")).unwrap().trim().parse().unwrap();
    assert_eq!(made.uid(), who, "a file of the task's own user");
    assert!(!root || (who != 0 && who != owner), "{who}");
    if !root {
        return;
    }
    // Inside it is the task's own; outside it is the owner's.
    let mut task = strict(1, "echo kept > /owned/new; [ \"$(stat -c %u /owned/new)\" = \"$(id -u)\" ]");
    task.mounts = vec![mount("owned")];
    let ended = end_of(&fake, task).await;
    assert_eq!((ended.cause(), ended.exit_code), (Cause::Exit, 0), "{ended:?}");
    assert_eq!(fs::read_to_string(private.join("new")).unwrap(), "kept\n");
    assert_eq!(fs::metadata(private.join("new")).unwrap().uid(), owner);
    // Asked for to read, it cannot be written though the node would allow it.
    let mut task = strict(2, "cat /owned/new && ! touch /owned/more");
    task.mounts = vec![Mount { read_only: true, ..mount("owned") }];
    let ended = end_of(&fake, task).await;
    assert_eq!((ended.cause(), ended.exit_code), (Cause::Exit, 0), "{ended:?}");
    assert!(!private.join("more").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machines_network_is_lent_only_where_the_operator_lends_it() {
    for (flags, cause) in
        [(&["--allow-network", "none"][..], Cause::Sandbox), (&["--allow-network", "host"][..], Cause::Exit)]
    {
        let fake = Fake::start();
        let _agent = Agent::join(&fake, flags).await;
        if !is_strict(&fake) {
            return;
        }
        let facts = fake.state().registrations[0].facts.clone().unwrap();
        assert_eq!(
            facts.sandbox.unwrap().host_network,
            cause == Cause::Exit,
            "what it tells the coordinator"
        );
        let here = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = here.local_addr().unwrap().port();
        let text = format!("exec 3<>/dev/tcp/127.0.0.1/{port} && exit 7");
        let bash = |index: u32, network: Network| Assignment {
            script: String::new(),
            command: ["/bin/bash", "-c", &text].map(str::to_owned).into(),
            network: network.into(),
            ..strict(index, "")
        };
        let ended = end_of(&fake, bash(0, Network::Host)).await;
        assert_eq!(ended.cause(), cause, "{ended:?}");
        if cause == Cause::Sandbox {
            assert!(ended.message.contains("--allow-network host"), "{}", ended.message);
        } else {
            assert_eq!(ended.exit_code, 7, "it does not reach the machine's own ports");
        }
        let ended = end_of(&fake, bash(1, Network::None)).await;
        assert_eq!(
            (ended.cause(), ended.exit_code),
            (Cause::Exit, 1),
            "without being asked for it is not there"
        );
    }
}

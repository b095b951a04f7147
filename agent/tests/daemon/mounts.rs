//! Directories of the node that jobs may mount: tried before they are offered.

use mesh_proto::v1::{Cause, Mount, SandboxLevel};

use crate::fake::Fake;
use crate::process::{Agent, key, script};

#[tokio::test(flavor = "multi_thread")]
async fn only_what_can_be_mounted_is_offered() {
    let fake = Fake::start();
    let lent = tempfile::tempdir().unwrap();
    let path = |name: &str| lent.path().join(name);
    for dir in ["data", "later"] {
        std::fs::create_dir(path(dir)).unwrap();
    }
    std::fs::write(path("data/file"), "lent").unwrap();
    std::os::unix::fs::symlink(path("data"), path("link")).unwrap();
    std::fs::remove_dir(path("later")).unwrap();
    let allow = |name: &str| format!("{name}={}:ro", path(name).display());
    let args = ["data", "link", "later"].map(allow);
    let mut flags = vec!["--sandbox-allow", "basic"];
    flags.extend(args.iter().flat_map(|mount| ["--allow-mount", mount]));
    let mut agent = Agent::join(&fake, &flags).await;
    let offered = || {
        let state = fake.state();
        let sandbox = state.registrations.last().unwrap().facts.as_ref().unwrap().sandbox.as_ref().unwrap();
        let strict = sandbox.strongest() == SandboxLevel::Strict;
        (strict, sandbox.mounts.iter().map(|mount| mount.name.clone()).collect::<Vec<_>>())
    };
    let (strict, names) = offered();
    if !strict {
        mesh_skip::skip("this machine has no level strict");
        return;
    }
    assert_eq!(names, ["data", "link"]);
    assert!(agent.log_text().contains("later cannot be mounted: No such file"), "{}", agent.log_text());
    let mut task = script(0, "cat /lent/file");
    task.sandbox = SandboxLevel::Strict.into();
    task.mounts = vec![Mount { name: "link".into(), to: "/lent".into(), read_only: true }];
    fake.assign(task.clone()).await;
    let ended = fake.ended(key(0)).await;
    assert_eq!((ended.cause(), ended.exit_code), (Cause::Exit, 0), "{ended:?}");

    std::fs::create_dir(path("later")).unwrap();
    agent.kill9().await;
    agent.start(None).await;
    assert_eq!(offered().1, ["data", "later", "link"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jail_without_tasks_is_replaced_and_proves_the_machine_anew() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &[]).await;
    // Asked while no daemon is there: the jail listens to its newest visitor alone.
    let jail = async |agent: &Agent| {
        let (client, _events) = agent::jail::Client::connect(&agent.data().join("jail")).await.unwrap();
        client.jail_pid()
    };
    agent.kill9().await;
    let first = jail(&agent).await;
    agent.start(None).await;
    let gate = tempfile::tempdir().unwrap();
    std::fs::set_permissions(gate.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let open = gate.path().join("open");
    fake.assign(script(0, &format!("until [ -e {} ]; do sleep 0.02; done; exit 4", open.display()))).await;
    fake.started(key(0)).await;
    agent.kill9().await;
    let second = jail(&agent).await;
    assert_ne!(first, second);

    agent.start(None).await;
    agent.kill9().await;
    assert_eq!(jail(&agent).await, second, "it has a task");
    agent.start(None).await;
    std::fs::write(open, "").unwrap();
    assert_eq!(fake.ended(key(0)).await.exit_code, 4);
}

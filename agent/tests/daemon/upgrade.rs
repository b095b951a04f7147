//! A daemon meets a jail of another version.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::fake::Fake;
use crate::process::{Agent, key, processes, script, until};

/// Answers every visitor as a jail that speaks nothing older than the version after the next.
fn greets_from_the_future(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let hello = br#"{"version":99,"oldest":98,"pid":1}"#;
        for visitor in listener.incoming() {
            let Ok(mut visitor) = visitor else { return };
            let length = u32::try_from(hello.len()).unwrap();
            let _ = visitor.write_all(&[&length.to_le_bytes()[..], hello].concat());
            // It has read the answer when it hangs up.
            let _ = visitor.read_to_end(&mut Vec::new());
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jail_of_a_version_too_far_away_is_named_and_its_tasks_go_on() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &[]).await;
    let gate = tempfile::tempdir().unwrap();
    std::fs::set_permissions(gate.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let open = gate.path().join("open");
    let mark = format!("sleep 8639.{}", std::process::id());
    let waits = format!("{mark} & until [ -e {} ]; do sleep 0.02; done; exit 4", open.display());
    fake.assign(script(0, &waits)).await;
    fake.started(key(0)).await;
    agent.kill9().await;
    let sleeps = || processes(&mark.replace(' ', "\0"));
    until("the task is there", || sleeps().len() == 1).await;
    let task = sleeps();

    let socket = agent.data().join("jail").join("jail.sock");
    let aside = agent.data().join("jail").join("aside");
    std::fs::rename(&socket, &aside).unwrap();
    greets_from_the_future(&socket);
    for verb in ["run", "stop"] {
        let refused = agent.call(verb, &[]).await;
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        // Starting it again would not help, so nobody does.
        assert_eq!(refused.status.code(), Some(78), "{text}");
        let remedy = "end its tasks with the version that started it";
        assert!(text.contains("the running jail speaks protocol 99") && text.contains(remedy), "{text}");
    }
    assert_eq!(sleeps(), task, "its tasks were touched");

    // The version that started it takes it up again.
    std::fs::rename(&aside, &socket).unwrap();
    agent.start(None).await;
    assert_eq!(sleeps(), task);
    std::fs::write(open, "").unwrap();
    assert_eq!(fake.ended(key(0)).await.exit_code, 4);
}

//! A node's own key, certificates and notes are damaged: it says which file, and what to do.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Stdio};

use crate::fake::Fake;
use crate::process::{Agent, until};

const FILES: [&str; 4] = ["key.pem", "cert.pem", "ca.pem", "node.json"];
/// Places of each file at which a bit is flipped.
const PLACES: usize = 12;

/// What a start of the agent comes to: it is ready, or ends with an error.
async fn start(agent: &Agent) -> Result<(), String> {
    let mut command = agent.run_command();
    let log = tempfile::NamedTempFile::new().unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.reopen().unwrap());
    let mut child = Ended(command.spawn().unwrap());
    let mut stdout = child.0.stdout.take().unwrap();
    let said = tokio::task::spawn_blocking(move || {
        let mut line = [0; 1];
        stdout.read(&mut line).unwrap()
    });
    let said = tokio::time::timeout(std::time::Duration::from_secs(40), said).await;
    let text = || fs::read_to_string(log.path()).unwrap();
    if said.unwrap_or_else(|_| panic!("neither ready nor ended: {}", text())).unwrap() > 0 {
        return Ok(());
    }
    let status = child.0.wait().unwrap();
    assert_eq!(status.code(), Some(78), "{}", text());
    Err(text())
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every damage of a file: gone, empty, cut, or with one bit flipped.
fn damages(whole: &[u8]) -> Vec<Option<Vec<u8>>> {
    let flipped = |place: usize| {
        let mut bytes = whole.to_vec();
        bytes[place * whole.len() / PLACES] ^= 1 << (place % 7);
        Some(bytes)
    };
    let cut = [None, Some(Vec::new()), Some(whole[..whole.len() / 2].to_vec())];
    cut.into_iter().chain((0..PLACES).map(flipped)).collect()
}

fn put(path: &Path, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => fs::write(path, bytes).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_identity_is_named_with_what_to_do_about_it() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &["--slots", "1"]).await;
    agent.kill9().await;
    let dir = agent.data().join("identity");
    let mut refused = 0;
    for name in FILES {
        let path = dir.join(name);
        let whole = fs::read(&path).unwrap();
        for damage in damages(&whole) {
            put(&path, damage.as_deref());
            let damage = damage.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            // Not every bit counts: a name that is only shown, the CA's own signature.
            if let Err(said) = start(&agent).await {
                refused += 1;
                assert!(said.contains("agent run --join TOKEN"), "{name} as {damage:?}: {said}");
                assert!(!said.contains("panicked"), "{said}");
                let enrolled = !said.contains("not enrolled");
                assert!(
                    !enrolled || said.contains(&dir.display().to_string()),
                    "{name} as {damage:?}: {said}"
                );
                if name == "key.pem" {
                    assert!(said.contains("key.pem") && said.contains("as another node"), "{said}");
                }
            } else {
                assert!(
                    damage.is_some_and(|text| text.len() == whole.len()),
                    "{name}: what is gone is not missed"
                );
            }
            put(&path, Some(&whole));
        }
    }
    assert!(refused >= 30, "only {refused} damages were noticed");
    start(&agent).await.expect("all is whole again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_damaged_certificate_joins_again_as_it_is_told_and_stays_who_it_was() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &["--slots", "1"]).await;
    let node = agent.ready["node"].clone();
    agent.kill9().await;
    let dir = agent.data().join("identity");
    let mut bytes = fs::read(dir.join("cert.pem")).unwrap();
    bytes[200] ^= 2;
    fs::write(dir.join("cert.pem"), bytes).unwrap();
    let said = start(&agent).await.unwrap_err();
    let remove = dir.join("node.json");
    assert!(said.contains(&format!("Remove {}", remove.display())), "{said}");
    fs::remove_file(remove).unwrap();
    // A new token.
    fake.state().uses = 1;
    agent.start(Some(&fake.token_text())).await;
    assert_eq!(agent.ready["node"], node);
    until("its session", || !fake.state().registrations.is_empty()).await;
}

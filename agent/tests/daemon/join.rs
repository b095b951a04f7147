//! Becoming and staying a member.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use mesh_certs::Pin;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::fake::Fake;
use crate::process::{Agent, key, script, try_join, until};

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_token_is_told_apart_and_a_wrong_pin_gives_nothing_away() {
    let fake = Fake::start();
    let message = |output: std::process::Output| {
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned()
    };
    let said = message(try_join("hello").await);
    assert!(said.contains("no join token"), "{said}");
    let mut altered = fake.token_text();
    altered.replace_range(20..21, if &altered[20..21] == "A" { "B" } else { "A" });
    let said = message(try_join(&altered).await);
    assert!(said.contains("cut or altered"), "{said}");

    let mut foreign = fake.token.clone();
    foreign.pin = Pin([7; 32]);
    let said = message(try_join(&foreign.to_text().unwrap()).await);
    assert!(said.starts_with("agent: cannot join:"), "{said}");
    assert_eq!(fake.state().joins, 0, "the secret went to somebody whose pin does not match");

    fake.state().uses = 0;
    let said = message(try_join(&fake.token_text()).await);
    assert!(said.contains("refuses the token") && said.contains("meshctl token create"), "{said}");
    assert_eq!(fake.state().joins, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_used_once_and_ignored_on_an_enrolled_directory() {
    let fake = Fake::start();
    let mut agent = Agent::join(&fake, &[]).await;
    let node = agent.ready["node"].clone();
    agent.kill9().await;
    agent.start(Some(&fake.token_text())).await;
    assert_eq!(agent.ready["node"], node);
    assert_eq!(fake.state().joins, 1);
    let key = agent.data().join("identity/key.pem");
    assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_in_time_with_streams_unbroken() {
    let fake = Fake::start();
    fake.state().cert_life = Duration::from_secs(6);
    let _agent = Agent::join(&fake, &[]).await;
    fake.assign(script(0, "sleep 300")).await;
    fake.started(key(0)).await;
    let streams = fake.state().streams;
    fake.wait("three renewals", |state| (state.renewals >= 3).then_some(())).await;
    assert_eq!(fake.state().streams, streams, "a stream was opened anew");
    assert_eq!(fake.state().registrations.len(), 1);
    // The newest certificate is good for a new connection.
    fake.crash();
    fake.come_back().await;
    fake.registered(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_certificate_expired_joins_again_with_its_key() {
    let fake = Fake::start();
    fake.state().cert_life = Duration::from_secs(2);
    let mut agent = Agent::join(&fake, &[]).await;
    let node = agent.ready["node"].clone();
    let key = std::fs::read(agent.data().join("identity/key.pem")).unwrap();
    agent.kill9().await;
    let pem = std::fs::read(agent.data().join("identity/cert.pem")).unwrap();
    let cert = CertificateDer::from_pem_slice(&pem).unwrap();
    let end: std::time::SystemTime = mesh_certs::not_after(&cert).unwrap().into();
    until("its expiry", || std::time::SystemTime::now() > end).await;
    let output = agent.call("run", &[]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains("expired") && said.contains("agent run --join TOKEN"), "{said}");
    {
        let mut state = fake.state();
        (state.uses, state.cert_life) = (1, Duration::from_hours(1));
    }
    agent.start(Some(&fake.token_text())).await;
    assert_eq!(agent.ready["node"], node);
    assert_eq!(std::fs::read(agent.data().join("identity/key.pem")).unwrap(), key);
}

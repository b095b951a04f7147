//! Joining: nothing is sent to a server that is not of the pinned CA.

use std::{sync::Arc, time::Duration};

use mesh_certs::{AcceptLimits, Ca, JoinToken, Pin, ServerCert, join_config, pinned_channel};
use mesh_proto::{
    ids::{CoordinatorId, MeshId},
    v1::{JoinRequest, enrollment_client::EnrollmentClient},
};
use tokio::{io::AsyncReadExt as _, net::TcpListener, task::JoinHandle};

use crate::support::{HOUR, Mesh, coordinator_cert, start};

/// A server that records every byte that it can decrypt.
async fn recorder(cert: Arc<ServerCert>) -> (String, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let acceptor = tokio_rustls::TlsAcceptor::from(join_config(cert));
    let task = start(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        if let Ok(mut stream) = acceptor.accept(tcp).await {
            // Until the client gives up: what matters is what came before.
            let _ = stream.read_to_end(&mut heard).await;
        }
        heard
    });
    (endpoint, task)
}

/// The agent's part: the secret is sent once there is a channel.
async fn join(token: &JoinToken) -> Result<String, String> {
    let channel = pinned_channel(token).await.map_err(|error| error.to_string())?;
    let request =
        JoinRequest { token_id: token.id.clone(), secret: token.secret.to_vec(), ..JoinRequest::default() };
    let answer = EnrollmentClient::new(channel).join(request).await.map_err(|status| status.to_string())?;
    Ok(answer.into_inner().name)
}

#[tokio::test]
async fn a_joining_node_reaches_the_coordinator_of_its_token() {
    let mesh = Mesh::new();
    let server = mesh.serve_join(AcceptLimits::default()).await;
    assert_eq!(join(&mesh.token(&server.endpoint())).await.unwrap(), "nobody");
}

#[tokio::test]
async fn a_wrong_pin_sends_nothing() {
    let mesh = Mesh::new();
    let other = Ca::generate(mesh.ca.mesh()).unwrap();
    let user = mesh.ca.issue_user("ada", HOUR).unwrap();
    let keyed = coordinator_cert(&mesh.ca, mesh.coordinator);
    let foreign = coordinator_cert(&other, CoordinatorId::generate());
    let of = |cert, ca: &Ca| ServerCert::new(cert, &ca.cert_der()).unwrap();
    let mut wrong_pin = mesh.token("x:1");
    wrong_pin.pin = Pin([7; 32]);
    let mut wrong_mesh = mesh.token("x:1");
    wrong_mesh.mesh = MeshId::generate();
    let cases = [
        ("the pin of another CA", of(&keyed, &mesh.ca), wrong_pin, "does not match the token's pin"),
        ("a server of another CA", of(&foreign, &other), mesh.token("x:1"), "does not match the token's pin"),
        (
            "another CA behind the real one",
            of(&foreign, &mesh.ca),
            mesh.token("x:1"),
            "not of this mesh's CA",
        ),
        (
            "a member in the coordinator's place",
            of(&user, &mesh.ca),
            mesh.token("x:1"),
            "not meant for this use",
        ),
        ("a token of another mesh", of(&keyed, &mesh.ca), wrong_mesh, "not a coordinator's of this mesh"),
    ];
    for (case, cert, mut token, reason) in cases {
        let (endpoint, heard) = recorder(cert).await;
        token.endpoints = vec![endpoint];
        let error = join(&token).await.expect_err(case);
        assert!(error.contains(reason), "{case}: {error}");
        assert_eq!(heard.await.unwrap(), b"", "{case}: something was sent");
    }
}

#[tokio::test]
async fn the_recorder_hears_the_secret_of_a_right_token() {
    // Shows that the test above would notice.
    let mesh = Mesh::new();
    let (endpoint, heard) = recorder(Arc::clone(&mesh.cert)).await;
    let token = mesh.token(&endpoint);
    let config = {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(mesh.ca.cert_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    };
    let tcp = tokio::net::TcpStream::connect(&endpoint).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &token.secret).await.unwrap();
    tokio::io::AsyncWriteExt::shutdown(&mut stream).await.unwrap();
    let heard = tokio::time::timeout(Duration::from_secs(10), heard).await.unwrap().unwrap();
    assert_eq!(heard, token.secret);
}

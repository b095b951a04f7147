//! Who gets in, who does not, and what those are told.

use std::{sync::Arc, time::Duration};

use mesh_certs::{AcceptLimits, Ca, ChannelOptions, Identity, channel};
use mesh_proto::{
    ids::{CoordinatorId, MeshId},
    v1::{JoinRequest, enrollment_client::EnrollmentClient},
};
use rcgen::{ExtendedKeyUsagePurpose, SanType, date_time_ymd};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{HOUR, Mesh, forge, start, uri};

#[tokio::test]
async fn a_member_gets_in_under_the_name_in_its_certificate() {
    let mesh = Mesh::new();
    let server = mesh.serve().await;
    let (node, key, issued) = mesh.node(HOUR);
    let (mut client, last) = server.client(mesh.tls(issued.der.clone(), &key));
    let answer = client.join(JoinRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.name, format!("node/{node}"));
    assert!(last.get().is_none());

    let peer = server.calls.borrow()[0].peer.clone().unwrap();
    assert_eq!(peer.identity, Identity::Node(node));
    assert_eq!(peer.not_after, issued.not_after);
    assert_eq!(peer.key_fingerprint, key.fingerprint());
    assert_eq!(peer.fingerprint, mesh_certs::cert_fingerprint(&issued.der));

    let user = mesh.ca.issue_user("ada", HOUR).unwrap();
    let (mut client, _) = server.client(mesh.tls_of(&user));
    assert_eq!(client.join(JoinRequest::default()).await.unwrap().into_inner().name, "user/ada");
}

#[tokio::test]
async fn a_foreign_certificate_is_refused_with_the_reason() {
    let mesh = Mesh::new();
    let server = mesh.serve().await;
    let foreign = Ca::generate(MeshId::generate()).unwrap();
    let user = foreign.issue_user("ada", HOUR).unwrap();
    server.assert_refused(mesh.tls_of(&user), "not of that mesh's CA").await;
    server.wait_for_refusal("not of this mesh's CA").await;

    // A CA that calls itself by the same mesh's id is still another CA.
    let twin = Ca::generate(mesh.ca.mesh()).unwrap();
    let user = twin.issue_user("ada", HOUR).unwrap();
    server.assert_refused(mesh.tls_of(&user), "not of that mesh's CA").await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused_with_the_reason() {
    let mesh = Mesh::new();
    let server = mesh.serve().await;
    let (cert, key) = forge(&mesh.ca, |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    server.assert_refused(mesh.tls(cert, &key), "has expired").await;
    server.wait_for_refusal("has expired").await;
}

#[tokio::test]
async fn a_certificate_for_another_purpose_is_refused_with_the_reason() {
    let mesh = Mesh::new();
    let server = mesh.serve().await;
    let (cert, key) = forge(&mesh.ca, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    server.assert_refused(mesh.tls(cert, &key), "not meant for clients").await;
    server.wait_for_refusal("not meant for this use").await;
}

#[tokio::test]
async fn a_certificate_that_names_no_member_is_refused_with_the_reason() {
    let mesh = Mesh::new();
    let server = mesh.serve().await;
    let two =
        [Identity::User("admin".into()), Identity::User("ada".into())].map(|who| who.uri(mesh.ca.mesh()));
    let other = Identity::User("ada".into()).uri(MeshId::generate());
    let cases: [Vec<SanType>; 3] =
        [two.iter().map(|text| uri(text)).collect(), vec![uri(&other)], Vec::new()];
    for names in cases {
        let (cert, key) = forge(&mesh.ca, |params| params.subject_alt_names = names);
        server.assert_refused(mesh.tls(cert, &key), "names no member of that mesh").await;
    }
}

#[tokio::test]
async fn a_revoked_member_is_refused_on_its_next_connection() {
    let mesh = Mesh::new();
    let server = mesh.serve().await;
    let (node, tls) = mesh.node_tls();
    mesh.trust.set_revoked(move |peer| peer.identity == Identity::Node(node));
    server.assert_refused(tls, "was revoked").await;
    server.wait_for_refusal("was revoked").await;

    let (other, tls) = mesh.node_tls();
    let (mut client, _) = server.client(tls);
    assert_eq!(client.join(JoinRequest::default()).await.unwrap().into_inner().name, format!("node/{other}"));
}

#[tokio::test]
async fn roots_can_be_replaced_while_serving() {
    let mesh = Mesh::new();
    let server = mesh.serve().await;
    let next = Ca::generate(mesh.ca.mesh()).unwrap();
    let old_user = mesh.ca.issue_user("ada", HOUR).unwrap();
    let new_user = next.issue_user("ada", HOUR).unwrap();
    server.assert_refused(mesh.tls_of(&new_user), "not of that mesh's CA").await;

    mesh.trust.replace_roots(&[next.cert_der()]).unwrap();
    server.assert_refused(mesh.tls_of(&old_user), "not of that mesh's CA").await;
    let (mut client, _) = server.client(mesh.tls_of(&new_user));
    client.join(JoinRequest::default()).await.unwrap();
}

/// A client of its own making: it shows no certificate and tries to resume its session.
fn plain_client(mesh: &Mesh, user: Option<&mesh_certs::KeyedCert>) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(mesh.ca.cert_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match user {
        None => builder.with_no_client_auth(),
        Some(user) => {
            use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
            let key = PrivateKeyDer::from_pem_slice(user.key_pem.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![crate::support::der_of(&user.cert_pem)], key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_early_data = true;
    Arc::new(config)
}

async fn connect(
    config: &Arc<rustls::ClientConfig>,
    addr: std::net::SocketAddr,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let tcp = TcpStream::connect(addr).await.unwrap();
    // By address: tools that check names find it in the certificate.
    let name = rustls_pki_types::ServerName::from(addr.ip());
    tokio_rustls::TlsConnector::from(Arc::clone(config)).connect(name, tcp).await.unwrap()
}

#[tokio::test]
async fn no_certificate_no_entry() {
    let mesh = Mesh::new();
    let server = mesh.serve().await;
    let config = plain_client(&mesh, None);
    let mut stream = connect(&config, server.addr).await;
    server.wait_for_refusal("it presented no certificate").await;
    // Many tools speak before they listen; a broken pipe must not hide the reason from them.
    for _ in 0..8 {
        stream.write_all(&[0; 1024]).await.unwrap();
        stream.flush().await.unwrap();
    }
    let error = stream.read(&mut [0; 64]).await.expect_err("the server spoke to a stranger");
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
}

#[tokio::test]
async fn a_session_is_never_resumed() {
    let mesh = Mesh::new();
    let server = mesh.serve().await;
    let user = mesh.ca.issue_user("ada", HOUR).unwrap();
    let config = plain_client(&mesh, Some(&user));
    for _ in 0..3 {
        let mut stream = connect(&config, server.addr).await;
        // The server's first bytes come after any ticket would have.
        stream.read_exact(&mut [0; 9]).await.unwrap();
        let session = stream.get_ref().1;
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0);
        assert!(!session.is_early_data_accepted());
        assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
}

#[tokio::test]
async fn the_first_address_that_answers_is_used_soon() {
    let mesh = Mesh::new();
    let server = mesh.serve().await;
    // Nobody listens at the first; the second accepts and never says a word.
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = vec![closed, mute.local_addr().unwrap().to_string(), server.endpoint()];
    let (_, tls) = mesh.node_tls();
    let options = ChannelOptions { connect_timeout: Duration::from_mins(1), ..ChannelOptions::default() };
    let (channel, last) = channel(endpoints, tls, options);
    let mut client = EnrollmentClient::new(channel);
    let call = tokio::time::timeout(Duration::from_secs(10), client.join(JoinRequest::default()));
    call.await.expect("it waited for an address that never answers").unwrap();
    assert!(last.get().is_none());
}

#[tokio::test]
async fn an_unreachable_coordinator_is_named() {
    let mesh = Mesh::new();
    let endpoint = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let (_, tls) = mesh.node_tls();
    let (channel, last) = channel(vec![endpoint.clone()], tls, ChannelOptions::default());
    let status = EnrollmentClient::new(channel).join(JoinRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(status.message().contains(&endpoint), "{status}");
    assert!(!last.get().unwrap().is_rejection());
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_told_apart() {
    let mesh = Mesh::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = start(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        tcp
    });
    let (_, tls) = mesh.node_tls();
    let (channel, last) = channel(vec![addr.to_string()], tls, ChannelOptions::default());
    EnrollmentClient::new(channel).join(JoinRequest::default()).await.unwrap_err();
    let reason = last.reason().unwrap();
    assert!(reason.contains("does not speak TLS"), "{reason}");
    drop(server.await.unwrap());
}

#[tokio::test]
async fn a_client_that_speaks_no_tls_does_not_disturb() {
    let mesh = Mesh::new();
    let server = mesh.serve_with(AcceptLimits::default()).await;
    let mut stranger = TcpStream::connect(server.addr).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    server.wait_for_refusal("does not speak TLS").await;
    let (_, tls) = mesh.node_tls();
    server.client(tls).0.join(JoinRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_coordinator_may_call_another() {
    let mesh = Mesh::new();
    let server = mesh.serve().await;
    let id = CoordinatorId::generate();
    let cert = crate::support::coordinator_cert(&mesh.ca, id);
    let (mut client, _) = server.client(mesh.tls_of(&cert));
    let answer = client.join(JoinRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.name, format!("coordinator/{id}"));
}

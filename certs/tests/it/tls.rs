//! Who gets in, who does not, and what those are told.

use mesh_certs::{Ca, ClientCert, ClientTls};
use mesh_proto::{ids::MeshId, v1::JoinRequest};

use crate::support::{HOUR, Mesh};

#[tokio::test]
async fn a_member_gets_in_under_the_name_in_its_certificate() {
    let mesh = Mesh::new();
    let server = mesh.serve().await;
    let (node, tls) = mesh.node_tls();
    let (mut client, last) = server.client(tls);
    let answer = client.join(JoinRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.name, format!("node/{node}"));
    assert!(last.get().is_none());

    let user = mesh.ca.issue_user("ada", HOUR).unwrap();
    let cert = ClientCert::from_pem(&user.cert_pem, &user.key_pem).unwrap();
    let (mut client, _) = server.client(ClientTls { ca: mesh.ca.cert_der(), mesh: mesh.ca.mesh(), cert });
    assert_eq!(client.join(JoinRequest::default()).await.unwrap().into_inner().name, "user/ada");
}

#[tokio::test]
async fn a_foreign_certificate_is_told_so_before_any_rpc() {
    let mesh = Mesh::new();
    let server = mesh.serve().await;
    let foreign = Ca::generate(MeshId::generate()).unwrap();
    let user = foreign.issue_user("ada", HOUR).unwrap();
    let cert = ClientCert::from_pem(&user.cert_pem, &user.key_pem).unwrap();
    let (mut client, last) = server.client(ClientTls { ca: mesh.ca.cert_der(), mesh: mesh.ca.mesh(), cert });
    let status = client.join(JoinRequest::default()).await.unwrap_err();
    assert!(status.message().contains("not of that mesh's CA"), "{status}");
    assert!(last.get().unwrap().is_rejection(), "{last:?}");
    server.assert_no_call();
}

//! Whom a member accepts as its coordinator.

use mesh_certs::{AcceptLimits, Ca, ServerCert, Trust, mtls_config_with};
use mesh_proto::{
    ids::{CoordinatorId, MeshId},
    v1::JoinRequest,
};
use rcgen::ExtendedKeyUsagePurpose;
use std::sync::Arc;

use crate::support::{HOUR, Mesh, Running, coordinator_cert, forge};

/// A server that shows `cert`, and lets in the members of `mesh`.
async fn impostor(mesh: &Mesh, cert: Arc<ServerCert>) -> Running {
    let trust = Arc::new(Trust::of(&mesh.ca));
    Running::start(mtls_config_with(trust, cert), mesh.ca.mesh(), AcceptLimits::default()).await
}

async fn assert_server_refused(mesh: &Mesh, server: &Running, reason: &str) {
    let (_, tls) = mesh.node_tls();
    let (mut client, last) = server.client(tls);
    let status = client.join(JoinRequest::default()).await.expect_err("an impostor was believed");
    assert!(status.message().contains(reason), "{status}");
    assert!(last.reason().unwrap().contains(reason));
    assert!(server.calls.borrow().is_empty(), "an impostor was sent a request");
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused() {
    let mesh = Mesh::new();
    for id in [MeshId::generate(), mesh.ca.mesh()] {
        let other = Ca::generate(id).unwrap();
        let keyed = coordinator_cert(&other, CoordinatorId::generate());
        // The chain shows the real CA, which is public, behind a certificate that it never signed.
        for shown in [&other, &mesh.ca] {
            let server = impostor(&mesh, ServerCert::new(&keyed, &shown.cert_der()).unwrap()).await;
            assert_server_refused(&mesh, &server, "not of this mesh's CA").await;
        }
    }
}

#[tokio::test]
async fn a_member_is_no_coordinator() {
    let mesh = Mesh::new();
    let user = mesh.ca.issue_user("ada", HOUR).unwrap();
    let server = impostor(&mesh, ServerCert::new(&user, &mesh.ca.cert_der()).unwrap()).await;
    assert_server_refused(&mesh, &server, "not meant for this use").await;

    // Even one that was given the right purpose by mistake.
    let (cert, key) = forge(&mesh.ca, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let keyed = mesh_certs::KeyedCert {
        cert_pem: mesh_certs::pem_of(&cert),
        key_pem: key.pem(),
        not_after: mesh_certs::not_after(&cert).unwrap(),
    };
    let server = impostor(&mesh, ServerCert::new(&keyed, &mesh.ca.cert_der()).unwrap()).await;
    assert_server_refused(&mesh, &server, "no coordinator's").await;
}

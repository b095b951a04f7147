//! Certificates are replaced while streams are open, and connections can be ended at will.

use std::time::Duration;

use mesh_certs::Identity;
use mesh_proto::v1::{
    GetBlobRequest, JoinRequest, blobs_client::BlobsClient, enrollment_client::EnrollmentClient,
};

use crate::support::{HOUR, Mesh, coordinator_cert};

#[tokio::test]
async fn streams_live_through_renewals_on_both_sides() {
    let mesh = Mesh::new();
    let server = mesh.serve().await;
    let (node, key, short) = mesh.node(Duration::from_secs(1));
    let tls = mesh.tls(short.der.clone(), &key);
    let (channel, _) = server.channel(tls.clone());
    let mut stream = BlobsClient::new(channel).get(GetBlobRequest::default()).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().size, 0);

    for round in 1..=3 {
        let renewed = mesh.ca.issue_node(&key.csr_der().unwrap(), node, HOUR).unwrap();
        tls.cert.replace(renewed.der.clone(), key.private_key()).unwrap();
        mesh.cert.replace(&coordinator_cert(&mesh.ca, mesh.coordinator), &mesh.ca.cert_der()).unwrap();
        server.numbers.send_replace(round);
        assert_eq!(stream.message().await.unwrap().unwrap().size, round, "round {round} was lost");

        // A new connection shows the new certificate, of the same node.
        let (mut client, _) = server.client(tls.clone());
        client.join(JoinRequest::default()).await.unwrap();
        let peer = server.calls.borrow().last().unwrap().peer.clone().unwrap();
        assert_eq!(peer.identity, Identity::Node(node));
        assert_eq!(peer.fingerprint, mesh_certs::cert_fingerprint(&renewed.der));
        assert_eq!(peer.key_fingerprint, key.fingerprint());
    }

    // The certificate that the stream began with ends; the stream does not.
    let old = mesh.tls(short.der, &key);
    let refused = async {
        loop {
            let (mut client, last) = server.client(old.clone());
            if client.join(JoinRequest::default()).await.is_err() {
                break last.reason().unwrap();
            }
        }
    };
    let reason = tokio::time::timeout(Duration::from_secs(20), refused).await.unwrap();
    assert!(reason.contains("expired"), "{reason}");
    server.numbers.send_replace(9);
    assert_eq!(stream.message().await.unwrap().unwrap().size, 9);
}

#[tokio::test]
async fn closing_a_connection_ends_its_streams_and_the_client_comes_back() {
    let mesh = Mesh::new();
    let server = mesh.serve().await;
    let (_, tls) = mesh.node_tls();
    let (channel, _) = server.channel(tls);
    let mut client = EnrollmentClient::new(channel.clone());
    client.join(JoinRequest::default()).await.unwrap();
    let mut stream = BlobsClient::new(channel).get(GetBlobRequest::default()).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();

    let first = server.calls.borrow()[0].clone();
    first.closer.close();
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.message()).await.expect("still open");
    assert!(ended.is_err(), "the stream ended as if it were complete: {ended:?}");
    client.join(JoinRequest::default()).await.unwrap();
    assert_ne!(server.calls.borrow()[1].addr, first.addr, "the closed connection is still in use");
}

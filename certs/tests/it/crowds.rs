//! Strangers in numbers do not keep members out.

use std::time::{Duration, Instant};

use mesh_certs::{AcceptLimits, pinned_channel};
use mesh_proto::v1::{JoinRequest, enrollment_client::EnrollmentClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::Mesh;

/// The beginning of a TLS record that never goes on.
const HALF_A_HELLO: &[u8] = &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_half_open_handshakes_do_not_keep_a_member_out() {
    let mesh = Mesh::new();
    // No deadline helps here: what bounds them is their number.
    let limits = AcceptLimits { handshake_timeout: Duration::from_mins(10), ..AcceptLimits::default() };
    let server = mesh.serve_with(limits).await;
    let mut strangers = Vec::new();
    for number in 0..1000 {
        let mut tcp = TcpStream::connect(server.addr).await.unwrap();
        if number % 2 == 0 {
            tcp.write_all(HALF_A_HELLO).await.unwrap();
        }
        strangers.push(tcp);
    }
    server.wait_for_refusal("gave way").await;
    let (_, tls) = mesh.node_tls();
    let began = Instant::now();
    server.client(tls).0.join(JoinRequest::default()).await.unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1), "a member waited {took:?}");
    // The first of them gave way: its connection is closed.
    let mut oldest = strangers.swap_remove(0);
    let closed = tokio::time::timeout(Duration::from_secs(5), oldest.read(&mut [0; 16])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "the oldest half-open handshake is still held: {closed:?}");
}

#[tokio::test]
async fn a_handshake_that_is_not_finished_in_time_is_dropped() {
    let mesh = Mesh::new();
    let limits = AcceptLimits { handshake_timeout: Duration::from_millis(100), ..AcceptLimits::default() };
    let server = mesh.serve_with(limits).await;
    let mut tcp = TcpStream::connect(server.addr).await.unwrap();
    tcp.write_all(HALF_A_HELLO).await.unwrap();
    server.wait_for_refusal("longer than 100ms").await;
    let closed = tokio::time::timeout(Duration::from_secs(5), tcp.read(&mut [0; 16])).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_member_that_hoards_connections_loses_its_own() {
    let mesh = Mesh::new();
    let server = mesh.serve_with(AcceptLimits { max_connections: 4, ..AcceptLimits::default() }).await;
    let (_, tls) = mesh.node_tls();
    let (mut quiet, _) = server.client(tls);
    quiet.join(JoinRequest::default()).await.unwrap();
    let quiet_addr = server.calls.borrow()[0].addr;

    let (_, greedy) = mesh.node_tls();
    let mut hoard = Vec::new();
    for _ in 0..12 {
        let (mut client, _) = server.client(greedy.clone());
        client.join(JoinRequest::default()).await.unwrap();
        hoard.push(client);
    }
    server.wait_for_refusal("connection gave way").await;
    // The quiet member is on the connection that it had.
    quiet.join(JoinRequest::default()).await.unwrap();
    assert_eq!(server.calls.borrow().last().unwrap().addr, quiet_addr);
    let open = server.calls.borrow()[1..13].iter().filter(|info| !info.closer.is_closed()).count();
    assert_eq!(open, 3, "of the hoard, what fits beside the quiet member stays");
}

#[tokio::test]
async fn idle_strangers_on_the_join_port_do_not_keep_a_new_node_out() {
    let mesh = Mesh::new();
    let server = mesh.serve_join(AcceptLimits { max_connections: 8, ..AcceptLimits::default() }).await;
    let token = mesh.token(&server.endpoint());
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(pinned_channel(&token).await.unwrap());
    }
    let channel = pinned_channel(&token).await.unwrap();
    EnrollmentClient::new(channel).join(JoinRequest::default()).await.unwrap();
}

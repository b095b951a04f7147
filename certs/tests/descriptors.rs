//! Alone in its process, because it takes the process's file descriptors away.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use mesh_certs::{
    AcceptLimits, Ca, ChannelOptions, ClientCert, ClientTls, Refusal, ServerCert, channel, incoming,
    mtls_config,
};
use mesh_proto::ids::{CoordinatorId, MeshId};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::TcpListener, sync::watch};
use tonic::{client::Grpc, transport::Server};

const HOUR: Duration = Duration::from_hours(1);

#[tokio::test]
async fn a_listener_out_of_descriptors_neither_spins_nor_dies() {
    let ca = Ca::generate(MeshId::generate()).unwrap();
    let keyed = ca.issue_coordinator(CoordinatorId::generate(), &[], HOUR).unwrap();
    let cert = ServerCert::new(&keyed, &ca.cert_der()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (failures_in, mut failures) = watch::channel(0_u32);
    let connections =
        incoming(listener, mtls_config(&ca, cert), ca.mesh(), AcceptLimits::default(), move |_, refusal| {
            if matches!(refusal, Refusal::Listener(_)) {
                failures_in.send_modify(|count| *count += 1);
            }
        });
    let router = Server::builder().add_routes(tonic::service::Routes::default());
    #[expect(clippy::disallowed_methods, reason = "the crate keeps its helper to itself")]
    let server = tokio::spawn(async move { router.serve_with_incoming(connections).await });

    let whole = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: whole.maximum }).unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    // One descriptor for a stranger at the door; the server, which did not run yet, has none.
    taken.pop();
    let stranger = std::net::TcpStream::connect(addr).unwrap();
    let began = Instant::now();
    let exhausted = failures.wait_for(|count| *count >= 4);
    tokio::time::timeout(Duration::from_secs(20), exhausted)
        .await
        .expect("the listener never ran dry")
        .unwrap();
    // Between four failures it waits 5, 10 and 20 ms: it does not spin.
    assert!(began.elapsed() >= Duration::from_millis(35), "{:?}", began.elapsed());
    drop((taken, stranger));
    setrlimit(Resource::Nofile, whole).unwrap();

    let user = ca.issue_user("ada", HOUR).unwrap();
    let tls = ClientTls {
        ca: ca.cert_der(),
        mesh: ca.mesh(),
        cert: ClientCert::from_pem(&user.cert_pem, &user.key_pem).unwrap(),
    };
    let (channel, last) = channel(vec![addr.to_string()], tls, ChannelOptions::default());
    let mut client = Grpc::new(channel);
    client.ready().await.unwrap();
    assert!(last.get().is_none(), "{last:?}");
    server.abort();
}

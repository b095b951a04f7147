//! The layer, as clients on a real connection meet it.

use futures_util::stream;
use mesh_proto::code::LEADER_HEADER;
use mesh_proto::v1::{
    GetJobRequest, HeartbeatRequest, JoinRequest, enrollment_client::EnrollmentClient,
    jobs_client::JobsClient, node_client::NodeClient,
};
use tonic::{service::Routes, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient, health_server};
use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_client::ServerReflectionClient};

use super::*;
use crate::grpc::{
    standard,
    testing::{Rig, node, user},
};

fn standard_routes() -> Routes {
    let (v1, v1alpha) = standard::reflection().unwrap();
    Routes::new(standard::health().1).add_service(v1).add_service(v1alpha)
}

async fn get_job(channel: &Channel) -> Status {
    JobsClient::new(channel.clone()).get_job(GetJobRequest::default()).await.unwrap_err()
}

async fn heartbeat(channel: &Channel) -> Status {
    NodeClient::new(channel.clone()).heartbeat(HeartbeatRequest::default()).await.unwrap_err()
}

async fn join(channel: &Channel) -> Status {
    EnrollmentClient::new(channel.clone()).join(JoinRequest::default()).await.unwrap_err()
}

/// The rig serves none of the mesh's own services, so that what the layer lets through is
/// answered `Unimplemented`, with nothing of the layer's message.
fn passed(status: &Status) -> bool {
    status.code() == tonic::Code::Unimplemented && status.message().is_empty()
}

#[tokio::test]
async fn people_and_nodes_reach_their_own_calls_only() {
    let person = Rig::new(standard_routes(), Port::Mesh, Some(user())).await;
    assert!(passed(&get_job(&person.channel).await));
    let refused = heartbeat(&person.channel).await;
    assert_eq!(Code::of(&refused), Code::Denied, "{refused}");
    assert!(refused.message().contains("user/ada may not call mesh.v1.Node/Heartbeat"), "{refused}");

    let node = node();
    let mut agent = Rig::new(standard_routes(), Port::Mesh, Some(node.clone())).await;
    assert!(passed(&heartbeat(&agent.channel).await));
    assert_eq!(Code::of(&get_job(&agent.channel).await), Code::Denied);
    // That one is for the audit, and nothing else is.
    let refused = agent.refused.waiting().expect("a denied call");
    assert_eq!((refused.stranger, refused.actor), (false, node.to_string()));
    assert_eq!((refused.subject.as_str(), refused.detail.as_str()), ("mesh.v1.Jobs/GetJob", "denied"));
    assert_eq!(agent.refused.waiting(), None);
    HealthClient::new(agent.channel.clone()).check(HealthCheckRequest::default()).await.unwrap();

    agent
        .counted(
            r#"mesh_grpc_requests_total{code="permission_denied",method="GetJob",service="mesh.v1.Jobs"} 1"#,
        )
        .await;
    agent
        .counted(r#"mesh_grpc_requests_total{code="ok",method="Check",service="grpc.health.v1.Health"} 1"#)
        .await;
    agent.counted(r#"mesh_grpc_seconds_count{method="Check",service="grpc.health.v1.Health"} 1"#).await;
}

#[tokio::test]
async fn a_stranger_reaches_nothing_but_join_on_its_own_port() {
    let mesh = Rig::new(standard_routes(), Port::Mesh, None).await;
    assert_eq!(Code::of(&get_job(&mesh.channel).await), Code::Unauthenticated);
    let health = HealthClient::new(mesh.channel.clone()).check(HealthCheckRequest::default()).await;
    assert_eq!(health.unwrap_err().code(), tonic::Code::Unauthenticated);
    assert!(!passed(&join(&mesh.channel).await), "Join is served on the port of the mesh");

    let door = Rig::new(standard_routes(), Port::Join, None).await;
    assert!(passed(&join(&door.channel).await));
    for status in [get_job(&door.channel).await, heartbeat(&door.channel).await] {
        assert!(!passed(&status) && status.code() == tonic::Code::Unimplemented, "{status}");
    }
}

#[tokio::test]
async fn a_path_that_nobody_knows_is_counted_without_its_name() {
    let rig = Rig::new(standard_routes(), Port::Mesh, Some(user())).await;
    let mut client = tonic::client::Grpc::new(rig.channel.clone());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<GetJobRequest, GetJobRequest>::default();
    let path = http::uri::PathAndQuery::from_static("/mesh.v1.Jobs/Evil%22%7d");
    let status = client.unary(tonic::Request::new(GetJobRequest::default()), path, codec).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    rig.counted(r#"mesh_grpc_requests_total{code="unimplemented",method="other",service="other"} 1"#).await;
}

#[tokio::test]
async fn a_revocation_ends_open_streams_and_refuses_new_calls() {
    let rig = Rig::new(standard_routes(), Port::Mesh, Some(user())).await;
    let mut health = HealthClient::new(rig.channel.clone());
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    let mut reflection = ServerReflectionClient::new(rig.channel.clone());
    let open = stream::pending::<ServerReflectionRequest>();
    let mut asked = reflection.server_reflection_info(open).await.unwrap().into_inner();

    rig.identities.revoke(&user());
    for status in [watch.message().await.unwrap_err(), asked.message().await.unwrap_err()] {
        assert_eq!(Code::of(&status), Code::Unauthenticated, "{status}");
        assert!(status.message().contains("revoked"), "{status}");
    }
    let next = health.check(HealthCheckRequest::default()).await.unwrap_err();
    assert_eq!(Code::of(&next), Code::Unauthenticated);
    rig.counted(
        r#"mesh_grpc_requests_total{code="unauthenticated",method="Watch",service="grpc.health.v1.Health"} 1"#,
    )
    .await;
}

#[tokio::test]
async fn a_shutdown_tells_open_streams_to_come_back_later() {
    let rig = Rig::new(standard_routes(), Port::Mesh, Some(user())).await;
    let mut health = HealthClient::new(rig.channel.clone());
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    rig.shutdown.cancel();
    assert_eq!(Code::of(&watch.message().await.unwrap_err()), Code::Unavailable);
}

#[tokio::test]
async fn a_deposed_coordinator_ends_its_streams_and_sends_callers_to_the_leader() {
    let rig = Rig::new(standard_routes(), Port::Mesh, Some(user())).await;
    let mut health = HealthClient::new(rig.channel.clone());
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    rig.gate.0.cancel();
    for status in [watch.message().await.unwrap_err(), get_job(&rig.channel).await] {
        assert_eq!(Code::of(&status), Code::Unavailable, "{status}");
        assert_eq!(status.metadata().get(LEADER_HEADER).unwrap(), "mesh.example:7443");
    }
    health.check(HealthCheckRequest::default()).await.expect("a stand-by is alive");

    let door = Rig::new(standard_routes(), Port::Join, None).await;
    door.gate.0.cancel();
    assert_eq!(join(&door.channel).await.metadata().get(LEADER_HEADER).unwrap(), "mesh.example:7444");
}

#[tokio::test]
async fn a_stream_that_the_client_drops_is_counted_as_cancelled() {
    let rig = Rig::new(standard_routes(), Port::Mesh, Some(user())).await;
    let mut health = HealthClient::new(rig.channel.clone());
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    drop(watch);
    rig.counted(
        r#"mesh_grpc_requests_total{code="cancelled",method="Watch",service="grpc.health.v1.Health"} 1"#,
    )
    .await;
}

struct Stuck;

#[tonic::async_trait]
impl health_server::Health for Stuck {
    type WatchStream = stream::Pending<Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        _request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        std::future::pending().await
    }

    async fn watch(
        &self,
        _request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_call_that_hangs_is_answered_at_the_deadline() {
    let routes = Routes::new(health_server::HealthServer::new(Stuck));
    let rig = Rig::new(routes, Port::Mesh, Some(user())).await;
    let mut health = HealthClient::new(rig.channel.clone());
    let unary = health.check(HealthCheckRequest::default()).await.unwrap_err();
    let streaming = health.watch(HealthCheckRequest::default()).await.unwrap_err();
    assert_eq!((Code::of(&unary), Code::of(&streaming)), (Code::Timeout, Code::Timeout));
}

#[tokio::test]
async fn a_caller_of_another_version_is_told_both_versions() {
    let rig = Rig::new(standard_routes(), Port::Mesh, Some(user())).await;
    let ask = async |agent: &'static str| {
        let mut client = tonic::client::Grpc::new(rig.channel.clone());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<GetJobRequest, GetJobRequest>::default();
        let path = http::uri::PathAndQuery::from_static("/mesh.v1.Jobs/GetJob");
        let mut request = tonic::Request::new(GetJobRequest::default());
        request.metadata_mut().insert("user-agent", agent.parse().unwrap());
        client.unary(request, path, codec).await.unwrap_err()
    };
    for fine in ["mesh-protocol/1-1", "mesh-protocol/2-1 tonic/9", "grpcurl/1"] {
        let status = ask(fine).await;
        assert!(passed(&status), "{fine}: {status}");
    }
    let status = ask("mesh-protocol/9-8").await;
    let text = "the caller speaks protocol 8 to 9, this coordinator 1: upgrade this coordinator";
    assert_eq!((Code::of(&status), status.message()), (Code::Version, text));
}

//! The services that gRPC itself defines: health and reflection.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::HealthReporter,
};
use tonic_reflection::server::{Builder, v1, v1alpha};

use crate::commit::Phase;

/// The health service and what sets it. The empty name speaks for the whole server and begins
/// as serving; set it to not serving on a stand-by and during a shutdown.
pub fn health() -> (HealthReporter, HealthServer<impl Health>) {
    tonic_health::server::health_reporter()
}

/// Says on the health service whether this coordinator leads.
pub async fn follow(reporter: HealthReporter, mut phases: watch::Receiver<Phase>, stop: CancellationToken) {
    loop {
        let status = match *phases.borrow_and_update() {
            Phase::Leading => ServingStatus::Serving,
            Phase::Recovering | Phase::Standby | Phase::Ended => ServingStatus::NotServing,
        };
        reporter.set_service_status("", status).await;
        match stop.run_until_cancelled(phases.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => return,
        }
    }
}

/// Reflection in both of its versions, over `mesh.v1` and the health service.
pub fn reflection() -> Result<
    (
        v1::ServerReflectionServer<impl v1::ServerReflection>,
        v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>,
    ),
    tonic_reflection::server::Error,
> {
    let builder = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(mesh_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok((builder().build_v1()?, builder().build_v1alpha()?))
}

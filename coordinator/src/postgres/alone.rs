//! Runs the private cluster without a mesh on it, for restoring a backup and for repair.

use tokio::signal::unix::{SignalKind, signal};

use super::cluster::{Cluster, Options, start};
use super::error::PostgresError;

/// Brings the cluster up, lets `ready` tell where it is, and stops it at SIGINT or SIGTERM.
/// The caller holds the lock of the data directory, so that no coordinator joins in.
pub async fn run_alone(options: Options, ready: impl FnOnce(&Cluster)) -> Result<(), PostgresError> {
    let io = PostgresError::io("wait for a signal in", &options.data_dir);
    let (mut terminate, mut interrupt) = signal(SignalKind::terminate())
        .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)))
        .map_err(io)?;
    let cluster = start(options.clone()).await?;
    ready(&cluster);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    cluster.stop().await
}

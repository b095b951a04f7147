//! Waiting for a job: its changes as they come, over restarts of the coordinator.

use mesh_proto::v1;
use tonic::Status;

use crate::{
    client::{Client, Patience},
    error::CliError,
};

/// The job as it is now.
pub async fn get(client: &Client, job: &str) -> Result<v1::Job, CliError> {
    client
        .call(|| {
            let mut jobs = client.jobs();
            let request = v1::GetJobRequest { job: job.to_owned() };
            async move { jobs.get_job(request).await }
        })
        .await
}

/// Waits until the job is terminal; `seen` gets each state on the way, the last one included.
pub async fn until_done(
    client: &Client,
    number: u64,
    mut seen: impl FnMut(&v1::Job),
) -> Result<v1::Job, CliError> {
    let mut patience = Patience::endless(client);
    loop {
        let status = match follow(client, number, &mut patience, &mut seen).await {
            Ok(Some(job)) => return Ok(job),
            // The coordinator ended the stream: it shuts down.
            Ok(None) => Status::unavailable("the coordinator ended the connection"),
            Err(status) => status,
        };
        patience.failed(status).await?;
    }
}

async fn follow(
    client: &Client,
    number: u64,
    patience: &mut Patience<'_>,
    seen: &mut impl FnMut(&v1::Job),
) -> Result<Option<v1::Job>, Status> {
    let request = v1::WatchJobRequest { job: number.to_string() };
    let mut stream = client.jobs().watch_job(request).await?.into_inner();
    while let Some(job) = stream.message().await? {
        patience.succeeded();
        seen(&job);
        if job.state().is_terminal() {
            return Ok(Some(job));
        }
    }
    Ok(None)
}

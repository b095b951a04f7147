//! Jobs as the benchmarks submit them, and waiting for them.

use anyhow::{bail, ensure};
use mesh_proto::v1::{
    ArraySpec, Job, JobSpec, JobState, OnFailure, Range, Resources, SandboxLevel, SubmitJobRequest, TaskSpec,
    WatchJobRequest, array_spec, jobs_client::JobsClient,
};
use tonic::transport::Channel;

/// A job of `count` tasks that do nothing.
#[must_use]
pub fn no_ops(count: u32, sandbox: SandboxLevel) -> JobSpec {
    let range = Range { first: 1, last: i64::from(count), step: 1 };
    let array = (count > 1).then_some(ArraySpec { kind: Some(array_spec::Kind::Range(range)) });
    let task = TaskSpec {
        name: "noop".to_owned(),
        command: vec!["/bin/true".to_owned()],
        array,
        resources: Some(Resources { cpu_millis: 1000, ..Resources::default() }),
        sandbox: sandbox.into(),
        ..TaskSpec::default()
    };
    JobSpec {
        name: "bench".to_owned(),
        priority: 5,
        on_failure: OnFailure::Continue.into(),
        tasks: vec![task],
        ..JobSpec::default()
    }
}

/// Submits a job; its number.
pub async fn submit(jobs: &mut JobsClient<Channel>, spec: JobSpec) -> anyhow::Result<u64> {
    let request = SubmitJobRequest { spec: Some(spec), idempotency_key: String::new() };
    Ok(jobs.submit_job(request).await?.into_inner().number)
}

/// Waits until a job is over, and asks that all of it went well.
pub async fn completed(jobs: &mut JobsClient<Channel>, number: u64) -> anyhow::Result<Job> {
    let job = ended(jobs, number).await?;
    ensure!(job.state() == JobState::Completed, "job {number} is {:?}: {}", job.state(), job.reason);
    Ok(job)
}

/// Waits until a job is over, however it ended.
pub async fn ended(jobs: &mut JobsClient<Channel>, number: u64) -> anyhow::Result<Job> {
    let request = WatchJobRequest { job: number.to_string() };
    let mut changes = jobs.watch_job(request).await?.into_inner();
    while let Some(job) = changes.message().await? {
        match job.state() {
            JobState::Unspecified | JobState::Queued | JobState::Running => {}
            JobState::Completed | JobState::PartiallyCompleted | JobState::Failed | JobState::Cancelled => {
                return Ok(job);
            }
        }
    }
    bail!("the coordinator ended the watch of job {number}")
}

//! What a job leaves open gets its documented default, so that every client means the same.

use mesh_proto::v1::{Cause, JobSpec, Resources, Retry, SandboxLevel};

/// The retry of a task that says nothing of it.
fn retry() -> Retry {
    Retry {
        attempts: 1,
        on: [Cause::Exit, Cause::Signal, Cause::Timeout, Cause::Oom].map(Into::into).to_vec(),
        backoff_ms: 1000,
        max_backoff_ms: 60_000,
        max_lost: 5,
    }
}

/// Fills in what is not there at all; what is there, however odd, is for the checks.
pub fn complete(job: &mut JobSpec, sandbox: SandboxLevel) {
    for task in &mut job.tasks {
        if task.sandbox() == SandboxLevel::Unspecified {
            task.set_sandbox(sandbox);
        }
        task.resources.get_or_insert(Resources { cpu_millis: 1000, ..Resources::default() });
        task.retry.get_or_insert_with(retry);
    }
}

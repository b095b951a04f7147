//! Idempotency keys: what is told again under one is done once.

use mesh_proto::{code::Code, digest::Digest, v1::JobSpec};
use tonic::Status;

/// Longest key, in bytes.
const MAX_KEY: usize = 128;

/// The key of a request; none if it has none.
pub fn read(key: String) -> Result<Option<String>, Status> {
    if key.len() > MAX_KEY {
        return Err(Code::Invalid.status(format!("the idempotency key is longer than {MAX_KEY} bytes")));
    }
    if key.contains('\0') {
        return Err(Code::Invalid.status("the idempotency key contains a NUL byte"));
    }
    Ok((!key.is_empty()).then_some(key))
}

/// What two redrives of a job under one key must have in common, whatever the order in which it was
/// named.
pub fn targets_digest(targets: &[(u32, Option<u32>)]) -> [u8; 32] {
    let mut sorted = targets.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    Digest::of(format!("{sorted:?}").as_bytes()).0
}

/// What two submits under one key must have in common. Maps are encoded in no fixed order, so
/// the digest is taken of their sorted form.
pub fn job_digest(job: &JobSpec) -> [u8; 32] {
    // The trace differs from one try to the next of the same submit.
    let plain = JobSpec { traceparent: String::new(), ..job.clone() };
    Digest::of(format!("{:?}", Sorted(&plain)).as_bytes()).0
}

/// A job's text with its maps in order.
struct Sorted<'a>(&'a JobSpec);

impl std::fmt::Debug for Sorted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use std::collections::BTreeMap;
        let mut job = self.0.clone();
        let params: BTreeMap<_, _> = std::mem::take(&mut job.params).into_iter().collect();
        write!(f, "{params:?}")?;
        for task in &mut job.tasks {
            let env: BTreeMap<_, _> = std::mem::take(&mut task.env).into_iter().collect();
            let tags: BTreeMap<_, _> = task
                .r#where
                .as_mut()
                .map(|w| std::mem::take(&mut w.tags))
                .unwrap_or_default()
                .into_iter()
                .collect();
            let named: BTreeMap<_, _> = task
                .resources
                .as_mut()
                .map(|r| std::mem::take(&mut r.named))
                .unwrap_or_default()
                .into_iter()
                .collect();
            write!(f, "{env:?}{tags:?}{named:?}")?;
        }
        write!(f, "{job:?}")
    }
}

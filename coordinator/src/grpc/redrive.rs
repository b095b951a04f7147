//! Dead letters are tried again.

use std::sync::Arc;

use mesh_proto::{
    code::Code,
    v1::{RedriveRequest, RedriveResponse},
};
use tonic::Status;

use super::{dead::find, keys};
use crate::{
    commit::{Core, CoreError},
    engine::{
        effect::{Refusal, Reply},
        event::{Event, Redrive, RedriveKey},
    },
    store::{Store, jobs::JobRecord},
};

/// Targets of one request.
const MAX_TARGETS: usize = 10_000;
/// Readings of a job that changes while it is read.
const TRIES: usize = 5;
/// Longest text of what was asked for in the audit, in bytes.
const MAX_DETAIL: usize = 1000;

/// Tries dead letters of a job again, once for each key.
pub async fn redrive(
    core: &Core,
    store: &Store,
    record: &JobRecord,
    by: String,
    mut request: RedriveRequest,
) -> Result<RedriveResponse, Status> {
    if request.targets.len() > MAX_TARGETS {
        return Err(Code::Invalid.status(format!("at most {MAX_TARGETS} tasks can be named at a time")));
    }
    let key = keys::read(std::mem::take(&mut request.idempotency_key))?;
    let definitions = store.definitions(record.number).await?;
    let targets = request
        .targets
        .iter()
        .map(|target| find(record, &definitions, &target.task, target.index))
        .collect::<Result<Vec<_>, _>>()?;
    let key = key.map(|key| RedriveKey { key, payload_digest: keys::targets_digest(&targets) });
    let detail = detail(&request);
    for _ in 0..TRIES {
        let asked = Arc::new(Redrive {
            job: record.number,
            targets: targets.clone(),
            stored: store.stored_job(record.number).await?.filter(|job| job.finished_at.is_some()),
            by: by.clone(),
            detail: detail.clone(),
            key: key.clone(),
        });
        // Behind the job: what was done before it was read is known by now.
        if let Some(known) = known(store, &asked).await? {
            return Ok(known);
        }
        let redrive = Arc::clone(&asked);
        match core.ask(|reply| Event::JobRedriven { reply, redrive }).await {
            Ok(Reply::Redriven { number, state, redriven, resumed }) => {
                let state = state.into();
                return Ok(RedriveResponse { number: number.0, state, redriven, resumed, existed: false });
            }
            Ok(_) => return Err(CoreError::Mismatch.into()),
            Err(CoreError::Refused(Refusal::Changed(_))) => {}
            // The same may have been told before, and been done since it was looked for.
            Err(error @ CoreError::Refused(_)) => {
                return known(store, &asked).await?.ok_or_else(|| error.into());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(CoreError::Refused(Refusal::Changed(record.number)).into())
}

/// What was done before under the same key.
async fn known(store: &Store, asked: &Redrive) -> Result<Option<RedriveResponse>, Status> {
    let Some(key) = &asked.key else { return Ok(None) };
    let Some(done) = store.redrive_by_key(asked.job, &asked.by, &key.key).await? else { return Ok(None) };
    if done.payload_digest != key.payload_digest {
        let number = asked.job;
        let what = format!("this idempotency key was used for another redrive of job {number}");
        return Err(Code::Conflict.status(what));
    }
    Ok(Some(RedriveResponse {
        number: asked.job.0,
        state: done.state.into(),
        redriven: done.redriven,
        resumed: done.resumed,
        existed: true,
    }))
}

/// What was asked for, for the audit.
fn detail(request: &RedriveRequest) -> String {
    if request.targets.is_empty() {
        return "every dead letter".to_owned();
    }
    let names: Vec<String> = request
        .targets
        .iter()
        .map(|target| match target.index {
            Some(index) => format!("{}.{index}", target.task),
            None => target.task.clone(),
        })
        .collect();
    let mut text = names.join(", ");
    text.truncate(text.floor_char_boundary(MAX_DETAIL));
    text
}

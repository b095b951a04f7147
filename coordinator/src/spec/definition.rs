//! From the wire's task specs to the engine's definitions.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use mesh_proto::v1::{self, Cause, Network, OnDisconnect, SandboxLevel, TaskSpec, array_spec};
use prost::Message as _;

use super::{SpecError, needs::positions};
use crate::engine::{
    event::{Need, NewDefinition},
    types::{Requirements, Resources, Retry},
};

/// Elements of a task: 1 when it is no array.
pub fn count(task: &TaskSpec) -> Result<u64, SpecError> {
    let Some(array) = &task.array else { return Ok(1) };
    match &array.kind {
        Some(array_spec::Kind::Range(range)) => {
            if range.step < 1 || range.last < range.first {
                return Err(SpecError::of(&task.name, "array.range", "is empty or has a step below 1"));
            }
            let span = range.last.abs_diff(range.first);
            Ok((span / range.step.cast_unsigned()).saturating_add(1))
        }
        Some(array_spec::Kind::Items(list)) => Ok(list.items.len() as u64),
        Some(array_spec::Kind::ItemsBlob(blob)) => Ok(u64::from(blob.count)),
        None => Err(SpecError::of(&task.name, "array", "is of no kind")),
    }
}

/// The engine's definitions of a job's tasks, which were checked before.
pub fn definitions(tasks: &[TaskSpec]) -> Result<Vec<NewDefinition>, SpecError> {
    let positions = positions(tasks);
    tasks.iter().map(|task| definition(&positions, task)).collect()
}

fn definition(positions: &HashMap<&str, u32>, task: &TaskSpec) -> Result<NewDefinition, SpecError> {
    let needs = task
        .needs
        .iter()
        .map(|need| {
            let position = positions.get(need.task.as_str()).ok_or_else(|| {
                SpecError::of(&task.name, "needs", format!("names {:?}, which is no task", need.task))
            })?;
            Ok(Need { task: *position, same_index: need.same_index })
        })
        .collect::<Result<_, SpecError>>()?;
    let total = u32::try_from(count(task)?).map_err(|_| SpecError::of(&task.name, "array", "is too long"))?;
    Ok(NewDefinition {
        name: task.name.clone(),
        array: task.array.is_some(),
        total,
        requirements: requirements(task),
        retry: retry(task.retry.as_ref()),
        needs,
        spec: Bytes::from(task.encode_to_vec()),
    })
}

fn requirements(task: &TaskSpec) -> Requirements {
    let asked = task.resources.clone().unwrap_or_default();
    let wanted = task.r#where.clone().unwrap_or_default();
    let some = |text: String| (!text.is_empty()).then_some(text);
    let mut capabilities: BTreeSet<String> = wanted.capabilities.into_iter().collect();
    if task.on_disconnect() == OnDisconnect::Kill {
        // Not for agents that know nothing of leases.
        capabilities.insert(mesh_proto::names::LEASE.to_owned());
    }
    Requirements {
        resources: Resources {
            cpu_millis: u64::from(asked.cpu_millis),
            memory: asked.memory_bytes,
            named: asked.named.into_iter().collect(),
        },
        tags: wanted.tags.into_iter().collect(),
        capabilities,
        os: some(wanted.os),
        arch: some(wanted.arch),
        node: some(wanted.node),
        cgroup: wanted.limits == "cgroup",
        sandbox: SandboxLevel::try_from(task.sandbox).unwrap_or_default(),
        host_network: task.network() == Network::Host,
        mounts: mounts(task),
    }
}

fn mounts(task: &TaskSpec) -> BTreeMap<String, bool> {
    let mut mounts = BTreeMap::new();
    for mount in &task.mounts {
        *mounts.entry(mount.name.clone()).or_default() |= !mount.read_only;
    }
    mounts
}

fn retry(retry: Option<&v1::Retry>) -> Retry {
    let retry = retry.cloned().unwrap_or_default();
    Retry {
        attempts: retry.attempts.max(1),
        on: retry.on().collect::<Vec<Cause>>(),
        backoff_ms: retry.backoff_ms,
        max_backoff_ms: retry.max_backoff_ms,
        max_lost: retry.max_lost,
    }
}

//! What the tests of several rooms need: jobs as clients submit them, nodes, ends.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mesh_proto::{
    ids::{BootId, JobId, NodeId, SessionId},
    v1::{self, ArraySpec, Cause, JobSpec, NodeFacts, OnFailure, SandboxLevel, TaskSpec, array_spec},
};
use prost::Message as _;
use sqlx::PgPool;

use crate::{
    engine::{
        event::{AttemptEnd, Facts, NewJob, NodeRecord, Registration},
        types::Resources,
    },
    spec,
};

/// A command on one core; a bad end is final, three losses are forgiven.
pub(crate) fn task(name: &str) -> TaskSpec {
    TaskSpec {
        name: name.to_owned(),
        command: vec!["true".to_owned()],
        resources: Some(v1::Resources { cpu_millis: 1000, ..v1::Resources::default() }),
        retry: Some(v1::Retry {
            attempts: 1,
            on: vec![Cause::Exit.into()],
            backoff_ms: 1000,
            max_backoff_ms: 60_000,
            max_lost: 3,
        }),
        sandbox: SandboxLevel::Basic.into(),
        ..TaskSpec::default()
    }
}

/// The same, over the numbers from 0.
pub(crate) fn array(name: &str, total: u32) -> TaskSpec {
    let range = v1::Range { first: 0, last: i64::from(total) - 1, step: 1 };
    TaskSpec { array: Some(ArraySpec { kind: Some(array_spec::Kind::Range(range)) }), ..task(name) }
}

/// A task that needs others: their names, and whether element by element.
pub(crate) fn needing(task: TaskSpec, needs: &[(&str, bool)]) -> TaskSpec {
    let needs =
        needs.iter().map(|(task, same_index)| v1::Need { task: (*task).to_owned(), same_index: *same_index });
    TaskSpec { needs: needs.collect(), ..task }
}

/// A task that may fail so often.
pub(crate) fn trying(mut task: TaskSpec, attempts: u32) -> TaskSpec {
    if let Some(retry) = &mut task.retry {
        retry.attempts = attempts;
    }
    task
}

pub(crate) fn job(tasks: Vec<TaskSpec>) -> JobSpec {
    JobSpec { name: "thumbnails".to_owned(), priority: 5, tasks, ..JobSpec::default() }
}

/// A job that goes on when a task of it fails.
pub(crate) fn keep_going(tasks: Vec<TaskSpec>) -> JobSpec {
    JobSpec { on_failure: OnFailure::Continue.into(), ..job(tasks) }
}

/// The job as the engine takes it, ada's.
pub(crate) fn new_job(mut job: JobSpec) -> NewJob {
    let tasks = spec::definitions(&job.tasks).unwrap();
    job.tasks.clear();
    NewJob {
        uuid: JobId::generate(),
        name: job.name.clone(),
        owner: "ada".to_owned(),
        priority: job.priority as u8,
        keep_going: job.on_failure() == OnFailure::Continue,
        idempotency_key: None,
        payload_digest: [7; 32],
        spec: job.encode_to_vec().into(),
        tasks,
    }
}

/// A node that has joined: its row.
pub(crate) async fn joined(pool: &PgPool, name: &str) -> NodeRecord {
    let id = NodeId::generate();
    let key: Vec<u8> = id.0.as_bytes().repeat(2);
    sqlx::query("INSERT INTO nodes (id, name, key_fingerprint) VALUES ($1, $2, $3)")
        .bind(id.0)
        .bind(name)
        .bind(key)
        .execute(pool)
        .await
        .unwrap();
    NodeRecord {
        id,
        name: name.to_owned(),
        boot: None,
        cordoned: false,
        draining: false,
        tags: BTreeMap::new(),
    }
}

/// What a node of so many cores says of itself.
pub(crate) fn node_facts(cores: u32) -> NodeFacts {
    NodeFacts {
        slots: cores,
        cpu_millis: cores * 1000,
        memory_bytes: u64::from(cores) << 30,
        os: "linux".to_owned(),
        arch: "x86_64".to_owned(),
        sandbox: Some(v1::Sandbox {
            strongest: SandboxLevel::Basic.into(),
            weakest: SandboxLevel::None.into(),
            limits: "cgroup".to_owned(),
            ..v1::Sandbox::default()
        }),
        ..NodeFacts::default()
    }
}

/// Its registration, with nothing in its hands.
pub(crate) fn registration(record: &NodeRecord, boot: BootId, cores: u32) -> Registration {
    let facts = node_facts(cores);
    Registration {
        node: record.id,
        session: SessionId::generate(),
        boot,
        facts: Facts {
            total: Resources {
                cpu_millis: u64::from(facts.cpu_millis),
                memory: facts.memory_bytes,
                named: BTreeMap::new(),
            },
            slots: cores,
            tags: BTreeMap::new(),
            capabilities: BTreeSet::new(),
            os: facts.os.clone(),
            arch: facts.arch.clone(),
            sandbox: (SandboxLevel::Basic, SandboxLevel::None),
            cgroup: true,
            host_network: true,
            mounts: BTreeMap::new(),
        },
        encoded_facts: Bytes::from(facts.encode_to_vec()),
        inventory: Vec::new(),
        record: record.clone(),
    }
}

/// The end of a process that ran ten milliseconds.
pub(crate) fn exited(code: i32) -> AttemptEnd {
    AttemptEnd { exit_code: Some(code), started: true, run_ms: 10, ..AttemptEnd::declared(Cause::Exit, "") }
}

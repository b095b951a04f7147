//! A mesh in memory: the engine, a store, nodes by number, and a clock that a test moves.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use mesh_proto::ids::{AttemptKey, BootId, JobId, JobNumber, NodeId, SessionId, TaskKey};

use super::store::Store;
use crate::engine::{
    Engine, StoredJob,
    effect::{Effects, Refusal, Reply, Say, TaskRow, Verdict},
    event::{
        AttemptEnd, Event, Facts, Held, Need, NewDefinition, NewJob, NodeChange, NodeRecord, Redrive,
        Registration, ReplyId,
    },
    types::{
        Cause, Counts, JobState, NodeState, Requirements, Resources, Retry, SandboxLevel, Settings,
        TaskState, Time,
    },
};

/// The engine with everything around it.
pub struct Mesh {
    pub engine: Engine,
    pub store: Store,
    pub now: Time,
    /// What the last step said.
    pub says: Vec<Say>,
    /// Whether nodes may hold more than they have, because they shrank.
    pub shrunk: bool,
    pub sessions: BTreeMap<u32, SessionId>,
    next: u64,
}

impl Mesh {
    pub fn new() -> Self {
        Self {
            engine: Engine::new(Settings::default(), 1),
            store: Store::default(),
            now: Time(1_000_000),
            says: Vec::new(),
            shrunk: false,
            sessions: BTreeMap::new(),
            next: 1,
        }
    }

    /// No task waits at a node.
    pub fn without_queues(mut self) -> Self {
        self.engine.settings.feed_below_ms = 0;
        self
    }

    /// A mesh with so many nodes of one core each, numbered from 0.
    pub fn with_nodes(count: u32) -> Self {
        let mut mesh = Self::new();
        for node in 0..count {
            mesh.join(node, facts(1));
        }
        mesh
    }

    /// Handles events as one batch and commits it.
    pub fn batch(&mut self, events: &[Event]) -> &[Say] {
        let mut fx = Effects::default();
        for event in events {
            self.engine.handle(self.now, event, &mut fx);
            self.engine.check().unwrap_or_else(|broken| panic!("after {event:?}: {broken}"));
        }
        self.engine.settle(self.now, &mut fx);
        let checked = self.engine.check().and_then(|()| self.store.apply(&fx));
        checked.and_then(|()| self.store.check_counts()).unwrap_or_else(|broken| panic!("{broken}"));
        if !self.shrunk {
            self.engine.check_capacity().unwrap_or_else(|broken| panic!("{broken}"));
        }
        self.says = fx.says;
        &self.says
    }

    pub fn step(&mut self, event: Event) -> &[Say] {
        self.batch(&[event])
    }

    fn reply(&mut self) -> ReplyId {
        self.next += 1;
        ReplyId(self.next)
    }

    /// Lets `ms` pass, a tick a second, while the nodes in `alive` send heartbeats.
    pub fn pass(&mut self, ms: u64, alive: &[u32]) {
        let end = self.now.plus(ms);
        while self.now < end {
            self.now = self.now.plus(1000).min(end);
            let mut events: Vec<Event> = alive.iter().map(|node| self.heartbeat(*node)).collect();
            events.push(Event::Tick);
            self.batch(&events);
        }
    }

    pub fn heartbeat(&self, node: u32) -> Event {
        let session = self.sessions[&node];
        Event::Heartbeat { reply: None, node: node_id(node), session, load_permille: 100, rtt_us: Some(500) }
    }

    // Nodes.

    /// A registration with a session of its own.
    pub fn registration(&mut self, node: u32, boot: u32, facts: Facts) -> Registration {
        self.next += 1;
        let session = session_id(self.next);
        self.sessions.insert(node, session);
        let record = self.store.nodes.get(&node_id(node)).cloned().unwrap_or_else(|| record(node));
        Registration {
            node: node_id(node),
            session,
            boot: boot_id(node, boot),
            facts,
            encoded_facts: Bytes::new(),
            inventory: Vec::new(),
            record,
        }
    }

    pub fn send_registration(&mut self, registration: Registration) -> BTreeMap<AttemptKey, Verdict> {
        let reply = self.reply();
        let said = self.step(Event::NodeRegistered { reply, registration: Arc::new(registration) });
        let verdicts = said.iter().find_map(|say| match say {
            Say::Reply(to, Reply::Registered { verdicts }) if *to == reply => Some(verdicts.clone()),
            _ => None,
        });
        verdicts.expect("an answer to the registration").into_iter().collect()
    }

    /// Registers a node of one core with this boot and inventory; it is not open yet.
    pub fn register(
        &mut self,
        node: u32,
        boot: u32,
        inventory: &[(AttemptKey, Held)],
    ) -> BTreeMap<AttemptKey, Verdict> {
        let registration =
            Registration { inventory: inventory.to_vec(), ..self.registration(node, boot, facts(1)) };
        self.send_registration(registration)
    }

    pub fn open(&mut self, node: u32) -> &[Say] {
        let session = self.sessions[&node];
        self.step(Event::SessionOpened { node: node_id(node), session })
    }

    pub fn close(&mut self, node: u32) {
        let session = self.sessions[&node];
        self.step(Event::SessionClosed { node: node_id(node), session });
    }

    /// A node appears and takes work.
    pub fn join(&mut self, node: u32, facts: Facts) {
        let registration = self.registration(node, 0, facts);
        self.send_registration(registration);
        self.open(node);
    }

    /// Comes back with this inventory, and takes work again.
    pub fn rejoin(
        &mut self,
        node: u32,
        boot: u32,
        inventory: &[(AttemptKey, Held)],
    ) -> BTreeMap<AttemptKey, Verdict> {
        let verdicts = self.register(node, boot, inventory);
        self.open(node);
        verdicts
    }

    pub fn change(&mut self, node: u32, change: NodeChange) {
        let reply = self.reply();
        self.step(Event::NodeChanged { reply, node: node_id(node), change, record: None });
    }

    pub fn node_state(&self, node: u32) -> NodeState {
        self.engine.nodes[&node_id(node)].state
    }

    // Jobs.

    pub fn submit(&mut self, job: NewJob) -> JobNumber {
        match self.try_submit(job) {
            Ok((number, existed)) => {
                assert!(!existed, "a new job is new");
                number
            }
            Err(refusal) => panic!("{refusal:?}"),
        }
    }

    /// The job's number, and whether it existed before.
    pub fn try_submit(&mut self, job: NewJob) -> Result<(JobNumber, bool), Refusal> {
        let reply = self.reply();
        let said = self.step(Event::JobSubmitted { reply, job: Arc::new(job) });
        let answer = said.iter().find_map(|say| match say {
            Say::Reply(to, Reply::Submitted { number, existed, .. }) if *to == reply => {
                Some(Ok((*number, *existed)))
            }
            Say::Reply(to, Reply::Refused(refusal)) if *to == reply => Some(Err(refusal.clone())),
            _ => None,
        });
        answer.expect("an answer to the submit")
    }

    pub fn cancel(&mut self, job: JobNumber) -> Result<JobState, Refusal> {
        let reply = self.reply();
        let said = self.step(Event::JobCancelled { reply, job, reason: "not needed".to_owned() });
        let answer = said.iter().find_map(|say| match say {
            Say::Reply(to, Reply::Cancelled { state, .. }) if *to == reply => Some(Ok(*state)),
            Say::Reply(to, Reply::Refused(refusal)) if *to == reply => Some(Err(refusal.clone())),
            _ => None,
        });
        answer.expect("an answer to the cancel")
    }

    /// Tries dead letters again; says how many, and how many cancelled ones came back.
    pub fn redrive(&mut self, job: JobNumber, targets: &[(u32, Option<u32>)]) -> Result<(u64, u64), Refusal> {
        let stored = self.store.read(job).filter(|job| job.finished_at.is_some());
        self.redrive_as_read(job, targets, stored)
    }

    /// The same, with the job as it was read before.
    pub fn redrive_as_read(
        &mut self,
        job: JobNumber,
        targets: &[(u32, Option<u32>)],
        stored: Option<StoredJob>,
    ) -> Result<(u64, u64), Refusal> {
        let reply = self.reply();
        let redrive = Redrive {
            job,
            targets: targets.to_vec(),
            stored,
            by: "ann".to_owned(),
            detail: String::new(),
            key: None,
        };
        let said = self.step(Event::JobRedriven { reply, redrive: Arc::new(redrive) });
        let answer = said.iter().find_map(|say| match say {
            Say::Reply(to, Reply::Redriven { redriven, resumed, .. }) if *to == reply => {
                Some(Ok((*redriven, *resumed)))
            }
            Say::Reply(to, Reply::Refused(refusal)) if *to == reply => Some(Err(refusal.clone())),
            _ => None,
        });
        answer.expect("an answer to the redrive")
    }

    pub fn job_state(&self, job: JobNumber) -> JobState {
        self.store.jobs[&job].row.state
    }

    pub fn counts(&self, job: JobNumber) -> Counts {
        self.store.jobs[&job].row.counts
    }

    // Attempts.

    /// The attempts that the last step sent out, with their nodes.
    pub fn dispatched(&self) -> Vec<(u32, AttemptKey)> {
        self.says
            .iter()
            .filter_map(|say| match say {
                Say::Dispatch { node, attempt, session } => {
                    let number = node_number(*node);
                    assert_eq!(self.sessions.get(&number), Some(session), "to the live session");
                    Some((number, *attempt))
                }
                _ => None,
            })
            .collect()
    }

    /// The attempts whose end the last step asked for.
    /// The attempts that the last step asked back.
    pub fn withdrawals(&self) -> Vec<AttemptKey> {
        let withdrawn = |say: &Say| match say {
            Say::Withdraw { attempt, .. } => Some(*attempt),
            _ => None,
        };
        self.says.iter().filter_map(withdrawn).collect()
    }

    /// The agent gives an attempt back.
    pub fn give_back(&mut self, attempt: AttemptKey) -> &[Say] {
        let node = self.store.attempts[&attempt].node;
        self.step(Event::AttemptWithdrawn { node, attempt })
    }

    pub fn cancels(&self) -> Vec<AttemptKey> {
        self.says
            .iter()
            .filter_map(|say| match say {
                Say::Cancel { attempt, .. } => Some(*attempt),
                _ => None,
            })
            .collect()
    }

    /// The current attempt of a task.
    pub fn current(&self, key: TaskKey) -> AttemptKey {
        AttemptKey { task: key, number: self.store.tasks[&key].attempt }
    }

    pub fn start(&mut self, attempt: AttemptKey) -> &[Say] {
        let node = self.store.attempts[&attempt].node;
        self.step(Event::AttemptStarted { node, attempt, sandbox: SandboxLevel::Basic.into() })
    }

    pub fn end(&mut self, attempt: AttemptKey, end: AttemptEnd) -> &[Say] {
        let node = self.store.attempts[&attempt].node;
        self.step(Event::AttemptEnded { node, attempt, end: Arc::new(end) })
    }

    /// Starts the current attempt of a task.
    pub fn start_task(&mut self, key: TaskKey) -> AttemptKey {
        let attempt = self.current(key);
        self.start(attempt);
        attempt
    }

    /// Ends the current attempt of a task.
    pub fn end_task(&mut self, key: TaskKey, end: AttemptEnd) -> AttemptKey {
        let attempt = self.current(key);
        self.end(attempt, end);
        attempt
    }

    pub fn task(&self, key: TaskKey) -> &TaskRow {
        &self.store.tasks[&key]
    }

    /// A task's state; the engine knows those that have no row.
    pub fn state(&self, key: TaskKey) -> TaskState {
        if let Some(row) = self.store.tasks.get(&key) {
            return row.state;
        }
        let Some(definition) = self.engine.definition(key.job, key.task) else {
            return TaskState::Cancelled;
        };
        if definition.ready.contains(key.index) {
            TaskState::Queued
        } else if definition.dropped.contains(key.index) {
            TaskState::Cancelled
        } else {
            TaskState::Blocked
        }
    }

    /// The engine is thrown away and built again from the store; agents' sessions with it.
    pub fn restore(&mut self) {
        self.engine = Engine::restore(Settings::default(), self.store.snapshot(), self.now);
        self.engine.check().unwrap_or_else(|broken| panic!("restored: {broken}"));
    }
}

/// A readable id: the kind, then the number.
fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(kind: u8, number: u64) -> T {
    format!("{kind:08x}-0000-0000-0000-{number:012x}").parse().expect("the text form of an id")
}

pub fn node_id(node: u32) -> NodeId {
    id(1, u64::from(node))
}

pub fn node_number(node: NodeId) -> u32 {
    let text = node.to_string();
    u32::from_str_radix(&text[text.len() - 8..], 16).expect("a number at the end of the id")
}

pub fn boot_id(node: u32, boot: u32) -> BootId {
    id(2, (u64::from(node) << 16) + u64::from(boot))
}

pub fn session_id(number: u64) -> SessionId {
    id(3, number)
}

pub fn job_id(number: u64) -> JobId {
    id(4, number)
}

pub fn record(node: u32) -> NodeRecord {
    NodeRecord {
        id: node_id(node),
        name: format!("node-{node}"),
        boot: None,
        cordoned: false,
        draining: false,
        tags: BTreeMap::new(),
    }
}

/// A node with so many cores and GiB, and a slot for each.
pub fn facts(cores: u64) -> Facts {
    Facts {
        total: Resources { cpu_millis: cores * 1000, memory: cores << 30, named: BTreeMap::new() },
        slots: cores as u32,
        tags: BTreeMap::new(),
        capabilities: BTreeSet::new(),
        os: "linux".to_owned(),
        arch: "x86_64".to_owned(),
        sandbox: (SandboxLevel::Basic, SandboxLevel::None),
        cgroup: true,
        host_network: true,
        mounts: BTreeMap::new(),
    }
}

/// A job of these tasks that stops at the first failure.
pub fn job(tasks: Vec<NewDefinition>) -> NewJob {
    NewJob {
        uuid: job_id(7),
        name: "job".to_owned(),
        owner: "ann".to_owned(),
        priority: 5,
        keep_going: false,
        idempotency_key: None,
        payload_digest: [0; 32],
        spec: Bytes::new(),
        tasks,
    }
}

/// One core and the node's share of memory; a bad end is final.
pub fn task(name: &str) -> NewDefinition {
    NewDefinition {
        name: name.to_owned(),
        array: false,
        total: 1,
        requirements: requirements(),
        retry: Retry {
            attempts: 1,
            on: vec![Cause::Exit],
            backoff_ms: 1000,
            max_backoff_ms: 60_000,
            max_lost: 3,
        },
        needs: Vec::new(),
        spec: Bytes::new(),
    }
}

pub fn array(name: &str, total: u32) -> NewDefinition {
    NewDefinition { array: true, total, ..task(name) }
}

pub fn requirements() -> Requirements {
    Requirements {
        resources: Resources { cpu_millis: 1000, memory: 0, named: BTreeMap::new() },
        tags: BTreeMap::new(),
        capabilities: BTreeSet::new(),
        os: None,
        arch: None,
        node: None,
        cgroup: false,
        sandbox: SandboxLevel::Basic,
        host_network: false,
        mounts: BTreeMap::new(),
    }
}

pub fn needs(task: u32) -> Vec<Need> {
    vec![Need { task, same_index: false }]
}

pub fn needs_same(task: u32) -> Vec<Need> {
    vec![Need { task, same_index: true }]
}

pub fn key(job: JobNumber, task: u32, index: u32) -> TaskKey {
    TaskKey { job, task, index }
}

pub fn ended(cause: Cause) -> AttemptEnd {
    AttemptEnd { started: true, run_ms: 10, ..AttemptEnd::declared(cause, "") }
}

pub fn ok() -> AttemptEnd {
    AttemptEnd { exit_code: Some(0), ..ended(Cause::Exit) }
}

pub fn failed() -> AttemptEnd {
    AttemptEnd { exit_code: Some(1), ..ended(Cause::Exit) }
}

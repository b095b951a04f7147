//! Random histories: jobs come in, nodes come, go and restart, words are lost, late and told
//! twice, the coordinator is rebuilt. After every event the engine's invariants hold, after
//! every batch what is stored and said is allowed (`store.rs`), and in the end, when all nodes
//! are well and do their work, every job is over and nothing is left behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use mesh_proto::ids::{AttemptKey, JobNumber, NodeId, SessionId};
use proptest::prelude::*;

use super::{
    agent::{Agent, choose},
    mesh::{
        array, boot_id, ended, facts, failed, job, job_id, node_id, ok, record, requirements, session_id,
        task,
    },
    restore::difference,
    store::{Store, is_final},
};
use crate::engine::{
    Engine,
    effect::{Effects, Reply, Say},
    event::{
        AttemptEnd, Event, Facts, Need, NewDefinition, NewJob, NodeChange, Redrive, Registration, ReplyId,
    },
    types::{Cause, JobState, Requirements, Resources, Retry, Settings, TaskState, Time},
};

pub(super) const NODES: u32 = 3;

/// One thing that happens. Numbers choose among what there is.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Submit(Shape),
    Cancel(usize),
    /// Dead letters of a job: all of it, a task, or an element.
    Redrive(usize, Option<(u32, Option<u32>)>),
    Register(u32),
    Reboot(u32),
    Forget(u32),
    Open(u32),
    Close(u32),
    Beats(u32, bool),
    Obey(u32),
    Start(u32, usize),
    Finish(u32, usize, How),
    Tell(u32, usize, bool),
    /// All of that for everything that the agent was given.
    Work(u32, How),
    /// A word that was told before is told again.
    Repeat(usize),
    /// A word on an attempt that its teller does not have.
    Forge(usize, u32, bool),
    Change(u32, u8),
    Pass(u16),
    Stall(u32),
    /// The engine is built anew from the store.
    Rebuild,
    /// A commit fails: its batch is lost, the engine built anew; its events may come again.
    CommitFails(bool),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    Well,
    Badly,
    TimedOut,
    Infra,
}

#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) keep_going: bool,
    pub(super) priority: u8,
    pub(super) key: Option<u8>,
    pub(super) payload: bool,
    pub(super) tasks: Vec<TaskShape>,
}

#[derive(Clone, Debug)]
pub(super) struct TaskShape {
    pub(super) total: u32,
    /// Which of the tasks before it are needed, and which of these by the same index.
    pub(super) needs: (u8, u8),
    pub(super) wants: u8,
    pub(super) attempts: u32,
    pub(super) max_lost: u32,
    pub(super) backoff_ms: u64,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let tasks = (1_u32..5, any::<(u8, u8)>(), 0_u8..6, 1_u32..4, 0_u32..3, 0_u64..40_000).prop_map(
        |(total, needs, wants, attempts, max_lost, backoff_ms)| TaskShape {
            total,
            needs,
            wants,
            attempts,
            max_lost,
            backoff_ms,
        },
    );
    (
        any::<bool>(),
        0_u8..10,
        proptest::option::weighted(0.3, 0_u8..3),
        any::<bool>(),
        proptest::collection::vec(tasks, 1..5),
    )
        .prop_map(|(keep_going, priority, key, payload, tasks)| Shape {
            keep_going,
            priority,
            key,
            payload,
            tasks,
        })
}

fn ops() -> impl Strategy<Value = Op> {
    let node = || 0..NODES;
    let how = prop_oneof![
        4 => Just(How::Well),
        2 => Just(How::Badly),
        1 => Just(How::TimedOut),
        1 => Just(How::Infra),
    ];
    prop_oneof![
        4 => shapes().prop_map(Op::Submit),
        2 => any::<usize>().prop_map(Op::Cancel),
        6 => (any::<usize>(), proptest::option::of((0_u32..5, proptest::option::of(0_u32..5))))
            .prop_map(|(pick, target)| Op::Redrive(pick, target)),
        6 => node().prop_map(Op::Register),
        1 => node().prop_map(Op::Reboot),
        1 => node().prop_map(Op::Forget),
        8 => node().prop_map(Op::Open),
        1 => node().prop_map(Op::Close),
        2 => (node(), any::<bool>()).prop_map(|(node, beats)| Op::Beats(node, beats)),
        8 => node().prop_map(Op::Obey),
        8 => (node(), any::<usize>()).prop_map(|(node, pick)| Op::Start(node, pick)),
        8 => (node(), any::<usize>(), how.clone()).prop_map(|(node, pick, how)| Op::Finish(node, pick, how)),
        12 => (node(), any::<usize>(), any::<bool>()).prop_map(|(node, pick, end)| Op::Tell(node, pick, end)),
        6 => (node(), how).prop_map(|(node, how)| Op::Work(node, how)),
        2 => any::<usize>().prop_map(Op::Repeat),
        1 => (any::<usize>(), node(), any::<bool>()).prop_map(|(pick, node, bump)| Op::Forge(pick, node, bump)),
        2 => (node(), 0_u8..4).prop_map(|(node, change)| Op::Change(node, change)),
        4 => (0_u16..20_000).prop_map(Op::Pass),
        1 => (0_u32..200_000).prop_map(Op::Stall),
        1 => Just(Op::Rebuild),
        1 => any::<bool>().prop_map(Op::CommitFails),
    ]
}

/// Two cores and two licenses; one core; four cores in zone a.
fn node_facts(node: u32) -> Facts {
    match node {
        0 => {
            let named = BTreeMap::from([("license".to_owned(), 2)]);
            Facts { total: Resources { named, ..facts(2).total }, ..facts(2) }
        }
        1 => facts(1),
        _ => Facts { tags: BTreeMap::from([("zone".to_owned(), "a".to_owned())]), ..facts(4) },
    }
}

/// What a task asks for; some node of [`node_facts`] can always hold it.
fn wants(kind: u8) -> Requirements {
    let base = requirements();
    let resources = |cpu_millis, memory, license: u64| Resources {
        cpu_millis,
        memory,
        named: if license > 0 { BTreeMap::from([("license".to_owned(), license)]) } else { BTreeMap::new() },
    };
    match kind {
        0 | 1 => base,
        2 => Requirements { resources: resources(500, 1 << 28, 0), ..base },
        3 => Requirements { resources: resources(500, 1 << 28, 1), ..base },
        4 => Requirements { tags: node_facts(2).tags, ..base },
        _ => Requirements { resources: resources(2500, 3 << 30, 0), ..base },
    }
}

fn definition(position: usize, shape: &TaskShape, before: &[NewDefinition]) -> NewDefinition {
    let needs = (0..position.min(8)).filter(|at| shape.needs.0 & (1 << at) != 0).map(|at| Need {
        task: at as u32,
        same_index: shape.needs.1 & (1 << at) != 0 && before[at].total == shape.total,
    });
    NewDefinition {
        needs: needs.collect(),
        requirements: wants(shape.wants),
        retry: Retry {
            attempts: shape.attempts,
            max_lost: shape.max_lost,
            backoff_ms: shape.backoff_ms,
            ..task("").retry
        },
        ..array(&format!("t{position}"), shape.total)
    }
}

/// Everything together.
struct World {
    engine: Engine,
    store: Store,
    now: Time,
    agents: Vec<Agent>,
    /// The batch that gathers: its effects, and the events that made them.
    fx: Effects,
    batch: Vec<Event>,
    /// Registrations that wait for their answer.
    registering: BTreeMap<ReplyId, (u32, SessionId)>,
    told: Vec<Event>,
    next: u64,
}

type Checked = Result<(), String>;

impl World {
    fn new() -> Self {
        Self {
            engine: Engine::new(Settings::default(), 1),
            store: Store::default(),
            now: Time(1_000_000),
            agents: (0..NODES).map(Agent::new).collect(),
            fx: Effects::default(),
            batch: Vec::new(),
            registering: BTreeMap::new(),
            told: Vec::new(),
            next: 0,
        }
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn handle(&mut self, event: &Event) -> Checked {
        self.engine.handle(self.now, event, &mut self.fx);
        self.batch.push(event.clone());
        let checked = self.engine.check().and_then(|()| self.engine.check_capacity());
        checked.map_err(|broken| format!("after {event:?}: {broken}"))
    }

    /// Commits the batch, and lets the agents hear what is said.
    fn settle(&mut self) -> Checked {
        let mut fx = std::mem::take(&mut self.fx);
        self.batch.clear();
        self.engine.settle(self.now, &mut fx);
        self.engine.check()?;
        self.engine.check_capacity()?;
        self.store.apply(&fx)?;
        self.store.check_counts()?;
        for say in &fx.says {
            if let Say::Reply(reply, Reply::Registered { verdicts }) = say
                && let Some((node, session)) = self.registering.remove(reply)
            {
                self.agents[node as usize].registered(session, verdicts);
            }
            for agent in &mut self.agents {
                agent.hear(say);
            }
        }
        Ok(())
    }

    fn agent(&mut self, node: u32) -> &mut Agent {
        &mut self.agents[node as usize]
    }

    fn submit(&mut self, shape: &Shape) -> Checked {
        let owner = "ann".to_owned();
        let key = shape.key.map(|key| format!("key-{key}"));
        // The caller looks for the keys of finished jobs in the store.
        let used = self
            .store
            .jobs
            .values()
            .any(|job| key.is_some() && job.new.idempotency_key == key && job.row.finished_at.is_some());
        if used {
            return Ok(());
        }
        let mut tasks: Vec<NewDefinition> = Vec::new();
        for (position, task) in shape.tasks.iter().enumerate() {
            tasks.push(definition(position, task, &tasks));
        }
        let number = self.next();
        let new = NewJob {
            uuid: job_id(number),
            owner,
            priority: shape.priority,
            keep_going: shape.keep_going,
            idempotency_key: key,
            payload_digest: [u8::from(shape.payload); 32],
            ..job(tasks)
        };
        self.handle(&Event::JobSubmitted { reply: ReplyId(number), job: Arc::new(new) })
    }

    fn register(&mut self, node: u32) -> Checked {
        let number = self.next();
        let (reply, session) = (ReplyId(number), session_id(number));
        let agent = self.agent(node);
        agent.disconnect();
        let (boot, inventory) = (boot_id(node, agent.boot), agent.inventory());
        // The row as it was stored, which may be older than what the engine knows.
        let record = self.store.nodes.get(&node_id(node)).cloned().unwrap_or_else(|| record(node));
        let registration = Arc::new(Registration {
            node: node_id(node),
            session,
            boot,
            facts: node_facts(node),
            encoded_facts: Bytes::new(),
            inventory,
            record,
        });
        self.registering.retain(|_, (of, _)| *of != node);
        self.registering.insert(reply, (node, session));
        self.handle(&Event::NodeRegistered { reply, registration })
    }

    fn tell(&mut self, event: Event) -> Checked {
        self.handle(&event)?;
        if self.told.len() < 64 {
            self.told.push(event);
        }
        Ok(())
    }

    /// Time goes on by whole seconds, with ticks and the heartbeats of those who send them.
    fn pass(&mut self, ms: u64) -> Checked {
        let end = self.now.plus(ms);
        while self.now < end {
            self.now = self.now.plus(1000).min(end);
            for node in 0..NODES {
                let agent = &self.agents[node as usize];
                if let Some(session) = agent.session.filter(|_| agent.beats) {
                    let beat = Event::Heartbeat {
                        reply: None,
                        node: node_id(node),
                        session,
                        load_permille: 0,
                        rtt_us: None,
                    };
                    self.handle(&beat)?;
                }
            }
            self.handle(&Event::Tick)?;
            self.settle()?;
        }
        Ok(())
    }

    fn forge(&mut self, pick: usize, node: u32, bump: bool) -> Checked {
        let attempts: Vec<(AttemptKey, NodeId)> =
            self.store.attempts.values().map(|row| (row.key, row.node)).collect();
        let Some((attempt, home)) = choose(&attempts, pick) else { return Ok(()) };
        let attempt = AttemptKey { number: attempt.number + u32::from(bump), ..attempt };
        if home == node_id(node) || self.store.attempts.contains_key(&attempt) && bump {
            return Ok(());
        }
        // One that is assigned in this very batch could truly be there.
        self.settle()?;
        if self.store.attempts.get(&attempt).is_some_and(|row| row.node == node_id(node)) {
            return Ok(());
        }
        let said = self.fx.says.len();
        let end = Arc::new(ok());
        self.handle(&Event::AttemptEnded { node: node_id(node), attempt, end })?;
        let stale = matches!(self.fx.says[said..], [Say::Ack { ack: crate::engine::effect::Ack::Stale, .. }]);
        if stale && self.fx.writes.is_empty() {
            Ok(())
        } else {
            Err(format!("a forged end of {attempt} was taken"))
        }
    }

    /// The engine is built anew from the store, which must give the same.
    fn rebuild(&mut self) -> Checked {
        self.settle()?;
        let restored = Engine::restore(Settings::default(), self.store.snapshot(), self.now);
        restored.check().map_err(|broken| format!("restored: {broken}"))?;
        if let Some(difference) = difference(&self.engine, &restored) {
            return Err(difference);
        }
        self.engine = restored;
        // Sessions were in memory.
        self.agents.iter_mut().for_each(Agent::disconnect);
        Ok(())
    }

    /// The batch reaches neither the disk nor anybody outside.
    fn commit_fails(&mut self, again: bool) -> Checked {
        self.engine.settle(self.now, &mut self.fx);
        self.fx = Effects::default();
        self.engine = Engine::restore(Settings::default(), self.store.snapshot(), self.now);
        self.engine.check().map_err(|broken| format!("restored: {broken}"))?;
        let batch = std::mem::take(&mut self.batch);
        self.agents.iter_mut().for_each(Agent::disconnect);
        if again {
            for event in &batch {
                self.handle(event)?;
            }
        } else {
            self.registering.clear();
        }
        Ok(())
    }

    fn step(&mut self, op: &Op) -> Checked {
        match *op {
            Op::Submit(ref shape) => self.submit(shape),
            Op::Cancel(pick) => {
                let numbers: Vec<JobNumber> = self.store.jobs.keys().copied().collect();
                let Some(job) = choose(&numbers, pick) else { return Ok(()) };
                let reply = ReplyId(self.next());
                self.handle(&Event::JobCancelled { reply, job, reason: "enough".to_owned() })
            }
            Op::Redrive(pick, target) => {
                let numbers: Vec<JobNumber> = self.store.jobs.keys().copied().collect();
                let Some(job) = choose(&numbers, pick) else { return Ok(()) };
                let reply = ReplyId(self.next());
                let redrive = Redrive {
                    job,
                    targets: target.into_iter().collect(),
                    stored: self.store.read(job).filter(|job| job.finished_at.is_some()),
                    by: "ann".to_owned(),
                    detail: String::new(),
                    key: None,
                };
                self.handle(&Event::JobRedriven { reply, redrive: Arc::new(redrive) })
            }
            Op::Register(node) => self.register(node),
            Op::Reboot(node) => {
                self.agent(node).reboot();
                Ok(())
            }
            Op::Forget(node) => {
                self.agent(node).forget();
                // What it told before that may still come, but is not true any more.
                self.told.clear();
                Ok(())
            }
            Op::Open(node) => {
                let agent = self.agent(node);
                let Some(session) = agent.session.filter(|_| !agent.open) else { return Ok(()) };
                agent.open = true;
                self.handle(&Event::SessionOpened { node: node_id(node), session })
            }
            Op::Close(node) => {
                let Some(session) = self.agent(node).session else { return Ok(()) };
                self.agent(node).disconnect();
                self.handle(&Event::SessionClosed { node: node_id(node), session })
            }
            Op::Beats(node, beats) => {
                self.agent(node).beats = beats;
                Ok(())
            }
            Op::Obey(node) => {
                self.agent(node).obey();
                Ok(())
            }
            Op::Start(node, pick) => {
                let queued = self.queued();
                self.agent(node).start(pick, &queued).map(|_| ())
            }
            Op::Finish(node, pick, how) => {
                let agent = self.agent(node);
                if let Some((attempt, _)) = choose(&agent.running(), pick) {
                    agent.finish(attempt, end(how));
                }
                Ok(())
            }
            Op::Tell(node, pick, end) => match self.agent(node).word(pick, end) {
                Some(event) => self.tell(event),
                None => Ok(()),
            },
            Op::Work(node, how) => {
                let queued = self.queued();
                let agent = self.agent(node);
                agent.obey();
                while agent.start(0, &queued)? {}
                for (attempt, _) in agent.running() {
                    agent.finish(attempt, end(how));
                }
                for word in agent.words() {
                    self.tell(word)?;
                }
                Ok(())
            }
            Op::Repeat(pick) => {
                if self.told.is_empty() {
                    return Ok(());
                }
                let event = self.told[pick % self.told.len()].clone();
                self.handle(&event)
            }
            Op::Forge(pick, node, bump) => self.forge(pick, node, bump),
            Op::Change(node, change) => {
                let change = match change {
                    0 => NodeChange::Cordon,
                    1 => NodeChange::Drain,
                    _ => NodeChange::Uncordon,
                };
                let reply = ReplyId(self.next());
                self.handle(&Event::NodeChanged { reply, node: node_id(node), change, record: None })
            }
            Op::Pass(ms) => self.pass(u64::from(ms)),
            Op::Stall(ms) => {
                self.now = self.now.plus(u64::from(ms));
                self.handle(&Event::Tick)
            }
            Op::Rebuild => self.rebuild(),
            Op::CommitFails(again) => self.commit_fails(again),
        }
    }

    /// The attempts that wait for resources at their nodes: agents admit them in the same order.
    fn queued(&self) -> BTreeSet<AttemptKey> {
        let queued = self.engine.nodes.values().flat_map(|node| node.queue.iter());
        queued
            .filter_map(|key| Some(AttemptKey { task: key, number: self.engine.task(key)?.attempt }))
            .collect()
    }

    /// The nodes are well and do their work, until every job is over. Node 1, which nobody
    /// needs, may be gone for good. What belongs to a job that is ending only ends on order.
    fn finish_everything(&mut self, without: Option<u32>) -> Checked {
        if let Some(gone) = without {
            let agent = self.agent(gone);
            agent.forget();
            agent.beats = false;
        }
        let well: Vec<u32> = (0..NODES).filter(|node| Some(*node) != without).collect();
        for node in well.iter().copied() {
            self.agent(node).beats = true;
            self.register(node)?;
            self.settle()?;
            self.step(&Op::Change(node, 2))?;
            self.step(&Op::Open(node))?;
            self.settle()?;
        }
        for _ in 0..500 {
            if self.is_quiet() {
                return self.check_end();
            }
            for node in well.iter().copied() {
                let queued = self.queued();
                let agent = &mut self.agents[node as usize];
                agent.obey();
                while agent.start(0, &queued)? {}
                for (attempt, ordered) in agent.running() {
                    let row = self.store.jobs.get(&attempt.task.job).map(|job| &job.row);
                    if ordered || row.is_none_or(|row| row.ending.is_none()) {
                        agent.finish(attempt, if ordered { ended(Cause::Cancelled) } else { ok() });
                    }
                }
                for word in agent.words() {
                    self.handle(&word)?;
                }
                self.settle()?;
            }
            self.pass(1000)?;
        }
        let unfinished = self.store.jobs.values().map(|job| &job.row).filter(|row| !is_final(row.state));
        Err(format!("stuck: {:?}; {:?}", unfinished.collect::<Vec<_>>(), self.agents))
    }

    fn is_quiet(&self) -> bool {
        self.store.jobs.values().all(|job| is_final(job.row.state)) && self.agents.iter().all(Agent::is_idle)
    }

    /// Nothing is left behind, and each job's state says what became of its tasks.
    fn check_end(&self) -> Checked {
        let engine = &self.engine;
        if !engine.jobs.is_empty() || !engine.keys.is_empty() || engine.classes.members() > 0 {
            return Err(format!("jobs are left behind: {:?}", engine.jobs.keys()));
        }
        if engine.next_deadline().is_some() || engine.totals().tasks.unfinished() > 0 {
            return Err(format!("timers or counts are left behind: {:?}", engine.totals()));
        }
        if let Some(node) = engine.nodes.values().find(|node| node.used.cpu_millis + node.used.memory > 0) {
            return Err(format!("something is left behind at {node:?}"));
        }
        for job in self.store.jobs.values() {
            let (row, counts) = (&job.row, &job.row.counts);
            let total: u64 = job.new.tasks.iter().map(|task| u64::from(task.total)).sum();
            let completed = counts[TaskState::Completed];
            let right = match row.state {
                JobState::Completed => completed == total,
                JobState::PartiallyCompleted => job.new.keep_going && completed > 0 && completed < total,
                JobState::Failed => counts[TaskState::Failed] > 0,
                JobState::Cancelled => row.ending == Some(JobState::Cancelled),
                JobState::Unspecified | JobState::Queued | JobState::Running => false,
            };
            if !right || counts.total() != total {
                return Err(format!("{row:?} of {total} tasks"));
            }
        }
        let keys: Vec<_> =
            self.store.jobs.values().filter_map(|job| job.new.idempotency_key.clone()).collect();
        if keys.len() != keys.iter().collect::<BTreeSet<_>>().len() {
            return Err(format!("a key made two jobs: {keys:?}"));
        }
        Ok(())
    }
}

fn end(how: How) -> AttemptEnd {
    match how {
        How::Well => ok(),
        How::Badly => failed(),
        How::TimedOut => ended(Cause::Timeout),
        How::Infra => ended(Cause::Infra),
    }
}

pub(super) fn play(history: &[(Op, bool)], without: Option<u32>) -> Checked {
    let mut world = World::new();
    for (at, (op, settle)) in history.iter().enumerate() {
        let step = world.step(op).and_then(|()| if *settle { world.settle() } else { Ok(()) });
        step.map_err(|broken| format!("step {at}, {op:?}: {broken}"))?;
    }
    world.settle()?;
    world.finish_everything(without)
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_history_breaks_a_promise(
            history in proptest::collection::vec((ops(), proptest::bool::weighted(0.8)), 1..160),
            without in proptest::option::of(Just(1)),
        ) {
        play(&history, without).map_err(TestCaseError::fail)?;
    }
}

#[test]
fn the_model_reaches_what_it_is_about() {
    let shape = TaskShape { total: 4, needs: (0, 0), wants: 0, attempts: 2, max_lost: 2, backoff_ms: 1000 };
    let submit = Op::Submit(Shape {
        keep_going: true,
        priority: 5,
        key: None,
        payload: false,
        tasks: vec![shape.clone(), TaskShape { needs: (1, 1), ..shape }],
    });
    let mut world = World::new();
    let steps = [
        submit,
        Op::Register(2),
        Op::Open(2),
        Op::Obey(2),
        Op::Start(2, 0),
        Op::Start(2, 0),
        Op::Finish(2, 0, How::Well),
        Op::Tell(2, 0, true),
        Op::Tell(2, 0, true),
    ];
    for op in &steps {
        world.step(op).expect("nothing breaks");
        world.settle().expect("nothing breaks");
    }
    let counts = world.store.jobs[&JobNumber(1)].row.counts;
    assert_eq!(counts[TaskState::Completed], 1);
    assert_eq!(counts[TaskState::Running], 1);
    world.step(&Op::Beats(2, false)).expect("nothing breaks");
    world.pass(40_000).expect("nothing breaks");
    assert!(world.agents[2].session.is_none(), "it is offline");
    world.finish_everything(None).expect("nothing is stuck");
}

//! The door of the engine: events in, effects out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_proto::ids::{JobNumber, NodeId, TaskKey};

use super::{
    effect::{Effects, JobRow, JobView, Refusal, Reply, Say, Write},
    event::{Event, ReplyId},
    job::{Definition, Job},
    node::Node,
    placement::{ClassId, Classes, Index, Nodes, QueueKey},
    task::Task,
    types::{Counts, JobState, NodeState, Settings, TaskState, Time},
};

/// If nothing reached the engine for so long, the coordinator itself was stuck: the silence
/// of nodes during that time is not held against them. In milliseconds.
const STALL_MS: u64 = 2_000;

/// The state machine. See the module's page.
#[derive(Debug)]
pub struct Engine {
    pub(super) settings: Settings,
    pub(super) nodes: Nodes,
    pub(super) jobs: BTreeMap<JobNumber, Job>,
    pub(super) classes: Classes,
    pub(super) index: Index,
    /// Counts the changes of what nodes are, as the filter sees it.
    pub(super) facts: u64,
    /// Nodes that are left alone for a while, by its end.
    pub(super) held: BTreeSet<(Time, NodeId)>,
    /// Nodes that are set aside, each for a class that was passed over.
    pub(super) reserved: BTreeMap<ClassId, NodeId>,
    /// Tasks that were asked back and not answered for.
    pub(super) withdrawing: usize,
    /// Tasks that wait out a backoff, by its end.
    pub(super) retries: BTreeSet<(Time, TaskKey)>,
    pub(super) next_job: u64,
    /// Attempts with lower numbers are of a history that was over when an operator accepted the
    /// database as it is.
    pub(super) first_attempt: u32,
    /// The next decision's id.
    pub(super) next_decision: u64,
    /// Idempotency keys of unfinished jobs; those of finished ones are in the store.
    pub(super) keys: BTreeMap<(String, String), JobNumber>,
    pub(super) totals: Counts,
    pub(super) finished: Finished,
    pub(super) dirty: BTreeMap<JobNumber, BTreeSet<u32>>,
    /// Jobs that were over and opened again since memory was read, by when they were over last.
    pub(super) reopened: BTreeMap<JobNumber, Time>,
    pub(super) last_event: Option<Time>,
    /// No node is given up before: see [`Self::bear_until`].
    pub(super) borne_until: Time,
}

/// Every state of a job, in the order of [`Totals::jobs`].
pub const JOB_STATES: [JobState; 6] = [
    JobState::Queued,
    JobState::Running,
    JobState::Completed,
    JobState::PartiallyCompleted,
    JobState::Failed,
    JobState::Cancelled,
];

/// Jobs that are over, and their tasks: only counted here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// In the order of [`JOB_STATES`].
    pub jobs: [u64; 6],
    pub tasks: Counts,
}

impl Finished {
    /// Counts jobs with this final state and their tasks.
    pub fn add(&mut self, state: JobState, jobs: u64, tasks: &Counts) {
        if let Some(place) = JOB_STATES.iter().position(|known| *known == state) {
            self.jobs[place] += jobs;
        }
        self.tasks.add(tasks);
    }

    /// A job of this final state is open again.
    pub fn take(&mut self, state: JobState, tasks: &Counts) {
        if let Some(place) = JOB_STATES.iter().position(|known| *known == state) {
            self.jobs[place] = self.jobs[place].saturating_sub(1);
        }
        for (mine, theirs) in self.tasks.0.iter_mut().zip(tasks.0) {
            *mine = mine.saturating_sub(theirs);
        }
    }
}

/// The engine at a glance, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub tasks: Counts,
    /// In the order of [`JOB_STATES`].
    pub jobs: [u64; 6],
    /// Nodes: healthy, suspect, offline.
    pub nodes: [u64; 3],
    pub slots: u64,
    pub slots_free: u64,
}

impl Engine {
    /// An empty mesh whose next job has the number `next_job`.
    #[must_use]
    pub fn new(settings: Settings, next_job: u64) -> Self {
        Self {
            settings,
            nodes: Nodes::new(),
            jobs: BTreeMap::new(),
            classes: Classes::default(),
            index: Index::default(),
            facts: 0,
            held: BTreeSet::new(),
            reserved: BTreeMap::new(),
            withdrawing: 0,
            retries: BTreeSet::new(),
            next_job,
            first_attempt: 1,
            next_decision: 1,
            keys: BTreeMap::new(),
            totals: Counts::default(),
            finished: Finished::default(),
            dirty: BTreeMap::new(),
            reopened: BTreeMap::new(),
            last_event: None,
            borne_until: Time::default(),
        }
    }

    /// Gives up no node before this moment: leases that an earlier leader gave, with a longer
    /// `offline_after`, may run until then.
    pub fn bear_until(&mut self, moment: Time) {
        self.borne_until = moment;
    }

    /// Takes one event in. Placement and changed job rows follow in [`Self::settle`].
    pub fn handle(&mut self, now: Time, event: &Event, fx: &mut Effects) {
        self.forgive_stall(now);
        match event {
            Event::JobSubmitted { reply, job } => self.submit(now, *reply, job, fx),
            Event::JobCancelled { reply, job, reason } => self.cancel_job(now, *reply, *job, reason, fx),
            Event::JobRedriven { reply, redrive } => self.redrive(now, *reply, redrive, fx),
            Event::NodeRegistered { reply, registration } => self.register(now, *reply, registration, fx),
            Event::SessionOpened { node, session } => self.open_session(now, *node, *session, fx),
            Event::SessionClosed { node, session } => self.close_session(now, *node, *session),
            Event::Heartbeat { reply, node, session, load_permille, rtt_us } => {
                let counts = self.heartbeat(now, *node, *session, *load_permille, *rtt_us);
                if let Some(reply) = reply {
                    fx.says.push(Say::Reply(*reply, Reply::Heard { counts }));
                }
            }
            Event::AttemptStarted { node, attempt, sandbox } => {
                self.attempt_started(now, *node, *attempt, *sandbox, fx);
            }
            Event::AttemptEnded { node, attempt, end } => self.attempt_ended(now, *node, *attempt, end, fx),
            Event::AttemptWithdrawn { node, attempt } => self.attempt_withdrawn(now, *node, *attempt, fx),
            Event::CoefficientsChanged { coefficients } => self.change_coefficients(now, *coefficients),
            Event::NodeChanged { reply, node, change, record } => {
                if let Some(record) = record {
                    // Nobody speaks for it yet.
                    let absent = || {
                        let mut node = Node::new((**record).clone(), now);
                        node.state = NodeState::Offline;
                        node
                    };
                    self.nodes.entry(*node).or_insert_with(absent);
                }
                self.change_node(now, *reply, *node, change, fx);
            }
            Event::TaskAsked { reply, key, what_if } => {
                self.explain(now, *reply, *key, what_if.as_ref(), fx);
            }
            Event::NodesAsked { reply } => {
                let views = self.nodes.values().map(|node| self.view(now, node)).collect();
                fx.says.push(Say::Reply(*reply, Reply::Nodes(views)));
            }
            Event::Tick => self.expire_nodes(now, fx),
        }
    }

    /// Ends a batch: what time brings, placement, and the rows of jobs that changed.
    pub fn settle(&mut self, now: Time, fx: &mut Effects) {
        let woken = self.wake_retries(now);
        self.release_held(now);
        self.place(now, fx);
        self.take_back(now, fx);
        self.note_woken(now, &woken, fx);
        self.flush(now, fx);
    }

    /// When [`Self::settle`] has something to do though nothing happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let retry = self.retries.first().map(|(at, _)| *at);
        let held = self.held.first().map(|(at, _)| *at);
        retry.into_iter().chain(held).min()
    }

    /// Counts of everything.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = Totals { tasks: self.totals, jobs: self.finished.jobs, ..Totals::default() };
        totals.tasks.add(&self.finished.tasks);
        for job in self.jobs.values() {
            totals.jobs[usize::from(job.state != JobState::Queued)] += 1;
        }
        for node in self.nodes.values() {
            let place = match node.state {
                NodeState::Healthy => 0,
                NodeState::Suspect => 1,
                NodeState::Unspecified | NodeState::Offline => 2,
            };
            totals.nodes[place] += 1;
            if node.state == NodeState::Healthy {
                let view = node.view(Time::default(), 0);
                totals.slots += u64::from(view.slots);
                totals.slots_free += u64::from(view.slots_free);
            }
        }
        totals
    }

    /// Says no to a caller.
    pub(super) fn refuse(reply: ReplyId, refusal: Refusal, fx: &mut Effects) {
        fx.says.push(Say::Reply(reply, Reply::Refused(refusal)));
    }

    /// Moves `n` tasks of a definition from one state to another.
    pub(super) fn shift(&mut self, job: JobNumber, task: u32, from: TaskState, to: TaskState, n: u64) {
        if n == 0 || from == to {
            return;
        }
        if let Some(definition) = self.definition_mut(job, task) {
            definition.counts.shift(from, to, n);
            self.totals.shift(from, to, n);
        }
        self.dirty.entry(job).or_default().insert(task);
    }

    pub(super) fn definition_mut(&mut self, job: JobNumber, task: u32) -> Option<&mut Definition> {
        self.jobs.get_mut(&job)?.tasks.get_mut(task as usize)
    }

    pub(super) fn definition(&self, job: JobNumber, task: u32) -> Option<&Definition> {
        self.jobs.get(&job)?.definition(task)
    }

    pub(super) fn task(&self, key: TaskKey) -> Option<&Task> {
        self.definition(key.job, key.task)?.live.get(&key.index)
    }

    pub(super) fn task_mut(&mut self, key: TaskKey) -> Option<&mut Task> {
        self.definition_mut(key.job, key.task)?.live.get_mut(&key.index)
    }

    /// Tells the class queues whether a definition has something that waits.
    pub(super) fn requeue(&mut self, job: JobNumber, task: u32) {
        let Some(of) = self.jobs.get(&job) else { return };
        let Some(definition) = of.definition(task) else { return };
        let key = QueueKey::new(of.priority, job, task);
        self.classes.set_waiting(definition.class, key, definition.has_waiting());
    }

    /// Puts a node where it stands now: its score, what is free of it, or its queue changed.
    pub(super) fn reindex(&mut self, now: Time, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.queue.refill(node.slots());
        let to = node.stands(now, &self.settings.coefficients);
        let from = std::mem::replace(&mut node.standing, to);
        self.index.shift(id, from, to);
    }

    /// Writes the rows of jobs that changed, and lets go of those that are over.
    fn flush(&mut self, now: Time, fx: &mut Effects) {
        for (number, tasks) in std::mem::take(&mut self.dirty) {
            let Some(job) = self.jobs.get_mut(&number) else { continue };
            for task in tasks {
                if let Some(definition) = job.tasks.get(task as usize) {
                    fx.writes.push(Write::Definition { job: number, task, counts: definition.counts });
                }
            }
            let counts = job.counts();
            let over = counts.unfinished() == 0;
            if over {
                job.state = outcome(job, &counts);
                if job.state == JobState::Failed && job.reason.is_empty() {
                    job.reason = format!("{} of {} tasks failed", counts[TaskState::Failed], counts.total());
                }
            }
            let row = JobRow {
                number,
                state: job.state,
                ending: job.ending,
                reason: job.reason.clone(),
                counts,
                started_at: job.started_at,
                finished_at: over.then_some(now),
            };
            let definitions = job.tasks.iter().map(|definition| definition.counts).collect();
            let created_at = job.created_at;
            fx.writes.push(Write::Job(row.clone()));
            fx.says.push(Say::JobChanged(Arc::new(JobView { row, created_at, definitions })));
            if over {
                if let Some(last) = self.reopened.get_mut(&number) {
                    *last = now;
                }
                self.let_go(number);
            }
        }
    }

    pub(super) fn let_go(&mut self, number: JobNumber) {
        let Some(job) = self.jobs.remove(&number) else { return };
        self.finished.add(job.state, 1, &job.counts());
        for (task, definition) in job.tasks.iter().enumerate() {
            self.classes.leave(definition.class, QueueKey::new(job.priority, number, task as u32));
            self.totals.sub(&definition.counts);
        }
        if let Some(key) = job.idempotency_key {
            self.keys.remove(&(job.owner, key));
        }
    }

    fn forgive_stall(&mut self, now: Time) {
        let stalled = self.last_event.map_or(0, |last| now.since(last));
        self.last_event = Some(now);
        if stalled > STALL_MS {
            for node in self.nodes.values_mut() {
                node.last_contact = node.last_contact.plus(stalled);
            }
        }
    }
}

/// The final state of a job none of whose tasks can change any more.
fn outcome(job: &Job, counts: &Counts) -> JobState {
    if let Some(ending) = job.ending {
        return ending;
    }
    let bad = counts[TaskState::Failed] + counts[TaskState::Cancelled];
    if bad == 0 {
        JobState::Completed
    } else if counts[TaskState::Completed] > 0 && job.keep_going {
        JobState::PartiallyCompleted
    } else {
        JobState::Failed
    }
}

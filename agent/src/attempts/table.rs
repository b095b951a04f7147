//! The table of attempts: one entry each, moved on by [`Table::handle`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use mesh_proto::ids::AttemptKey;
use mesh_proto::v1;

use super::admission::{Admission, Capacity, InLine, Need};

mod said;

use said::is_inline;

/// The most attempts held at a time; more are answered with a withdrawal.
const MAX_HELD: usize = 20_000;
/// What ran for less is over in an instant, in milliseconds: others may stand in line where it ran.
const INSTANT_MS: u64 = 5;

/// Why a runner is asked to end its attempt. A later one of a higher order wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// The agent goes away with its tasks: the attempt ends as `infra` and runs elsewhere.
    Shutdown,
    /// The coordinator cancelled it: SIGTERM, grace, SIGKILL, and its end is told.
    Cancel,
    /// The attempt is not current any more: nobody wants to hear of it.
    Discard,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    Assigned(Arc<v1::Assignment>),
    /// An attempt found on disk whose process runs, or whose end is not told yet.
    Recovered {
        assignment: Arc<v1::Assignment>,
        slot: u32,
        started: Option<v1::Started>,
        ended: Option<Box<v1::Ended>>,
    },
    Withdraw(AttemptKey),
    Cancel(AttemptKey),
    Verdict(AttemptKey, v1::Verdict),
    Ack {
        key: AttemptKey,
        stale: bool,
        ended: bool,
    },
    /// Its process started just now. Told with its end if that comes at once, else by `Started`.
    Began(AttemptKey, v1::Started),
    Started(AttemptKey, v1::Started),
    Progress(AttemptKey, v1::Progress),
    /// The runner is through with it: this is its end.
    Ended(AttemptKey, Box<v1::Ended>),
    /// The runner is through with it and there is nothing to tell.
    Gone(AttemptKey),
    /// It stood in line and has not begun; the runner is through with it.
    Returned(AttemptKey),
    OutputDurable {
        key: AttemptKey,
        durable: u64,
        discard: bool,
    },
    /// Registered: everything unacknowledged is to be told in the new session.
    SessionOpened,
    /// End what runs, start nothing that waits: the agent goes away.
    Shutdown,
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Start a runner for it; where `after` is said, its process is to start when that one is over.
    Run { key: AttemptKey, slot: u32, assignment: Arc<v1::Assignment>, after: Option<AttemptKey> },
    /// Ask its runner to stop.
    Stop { key: AttemptKey, stop: Stop },
    /// Nothing of it is needed any more, and no process of it lives.
    Remove(AttemptKey),
}

#[derive(Debug)]
enum State {
    Waiting,
    /// Its process may start at any moment, in the place of another.
    InLine {
        stop: Option<Stop>,
        /// The coordinator wants it back if it has not begun.
        wanted_back: bool,
    },
    Active {
        started: Option<v1::Started>,
        stop: Option<Stop>,
    },
    Ended {
        ended: Box<v1::Ended>,
        acked: bool,
    },
    /// Given back. When that was not acknowledged before a session began, the coordinator may
    /// give it again in this one, after it has acknowledged: it is remembered until the next.
    Withdrawn {
        retold: bool,
        acked: bool,
    },
}

const GIVEN_BACK: State = State::Withdrawn { retold: false, acked: false };

/// What of an attempt waits to be sent in this session.
#[derive(Debug, Default)]
struct Unsent {
    queued: bool,
    started: bool,
    progress: Option<v1::Progress>,
    ended: bool,
    withdrawn: bool,
}

#[derive(Debug, Default)]
struct Output {
    /// Some of the spool went out on the output stream: its end carries none of it.
    streamed: bool,
    /// Its end will carry the spool: nothing goes out on the output stream.
    sealed: bool,
    durable: u64,
    /// The coordinator wants no more of it.
    closed: bool,
}

#[derive(Debug)]
struct Attempt {
    state: State,
    assignment: Arc<v1::Assignment>,
    unsent: Unsent,
    /// The start of its process, as long as it is not told.
    start: Option<v1::Started>,
    started_acked: bool,
    output: Output,
}

/// An attempt whose spool may have something to ship.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shippable {
    pub key: AttemptKey,
    pub durable: u64,
    /// The spool's final length, once the attempt has ended.
    pub length: Option<u64>,
    pub streamed: bool,
}

/// Every attempt that this node holds.
#[derive(Debug)]
pub struct Table {
    attempts: BTreeMap<AttemptKey, Attempt>,
    admission: Admission,
    outbox: VecDeque<AttemptKey>,
    stopping: bool,
    default_memory: u64,
}

impl Table {
    pub fn new(capacity: Capacity) -> Self {
        let default_memory = capacity.memory_bytes / u64::from(capacity.slots.max(1));
        Self {
            attempts: BTreeMap::new(),
            admission: Admission::new(capacity),
            outbox: VecDeque::new(),
            stopping: false,
            default_memory,
        }
    }

    /// Moves on by one input.
    pub fn handle(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Assigned(assignment) => self.assigned(assignment),
            Input::Recovered { assignment, slot, started, ended } => {
                self.recovered(assignment, slot, started, ended);
            }
            Input::Withdraw(key) => self.withdraw(key),
            Input::Cancel(key) => self.cancel(key, &mut effects),
            Input::Verdict(key, verdict) => self.verdict(key, verdict, &mut effects),
            Input::Ack { key, stale, ended } => self.acked(key, stale, ended, &mut effects),
            Input::Began(key, started) => self.began(key, started),
            Input::Started(key, started) => {
                self.began(key, started);
                self.started(key);
            }
            Input::Progress(key, progress) => self.progress(key, progress),
            Input::Ended(key, ended) => self.ended(key, ended, &mut effects),
            Input::Gone(key) => {
                self.admission.release(key, false);
                self.remove(key, &mut effects);
            }
            Input::Returned(key) => self.returned(key, &mut effects),
            Input::OutputDurable { key, durable, discard } => {
                if let Some(attempt) = self.attempts.get_mut(&key) {
                    attempt.output.durable = durable;
                    attempt.output.closed |= discard;
                }
                self.remove_if_done(key, &mut effects);
            }
            Input::SessionOpened => self.session_opened(),
            Input::Shutdown => self.shutdown(&mut effects),
        }
        if !self.stopping {
            for (key, slot) in self.admission.admit() {
                if let Some(attempt) = self.attempts.get_mut(&key) {
                    attempt.state = State::Active { started: None, stop: None };
                    let assignment = attempt.assignment.clone();
                    effects.push(Effect::Run { key, slot, assignment, after: None });
                }
            }
            for InLine { key, slot, after } in self.admission.line_up() {
                if let Some(attempt) = self.attempts.get_mut(&key) {
                    attempt.state = State::InLine { stop: None, wanted_back: false };
                    let assignment = attempt.assignment.clone();
                    effects.push(Effect::Run { key, slot, assignment, after: Some(after) });
                }
            }
        }
        effects
    }

    fn assigned(&mut self, assignment: Arc<v1::Assignment>) {
        let Ok(key) = AttemptKey::try_from(assignment.attempt) else { return };
        if self.attempts.contains_key(&key) {
            // Said again after a reconnect. What it already knows is told again anyway.
            return;
        }
        let full = self.stopping || self.attempts.len() >= MAX_HELD;
        let need = self.need(&assignment);
        let attempt = Attempt::new(assignment, if full { GIVEN_BACK } else { State::Waiting });
        self.attempts.insert(key, attempt);
        if full {
            self.tell(key, |unsent| unsent.withdrawn = true);
        } else {
            self.admission.queue(key, need);
        }
    }

    fn recovered(
        &mut self,
        assignment: Arc<v1::Assignment>,
        slot: u32,
        started: Option<v1::Started>,
        ended: Option<Box<v1::Ended>>,
    ) {
        let Ok(key) = AttemptKey::try_from(assignment.attempt) else { return };
        let need = self.need(&assignment);
        let state = if let Some(ended) = ended {
            State::Ended { ended, acked: false }
        } else {
            self.admission.occupy(key, slot, need);
            State::Active { started, stop: None }
        };
        let mut attempt = Attempt::new(assignment, state);
        // Whether some of it went out before the restart is not known: all of it goes that way.
        attempt.output.streamed = true;
        self.attempts.insert(key, attempt);
    }

    fn need(&self, assignment: &v1::Assignment) -> Need {
        let resources = assignment.resources.clone().unwrap_or_default();
        let memory_bytes =
            if resources.memory_bytes == 0 { self.default_memory } else { resources.memory_bytes };
        let cpu_millis = if resources.cpu_millis == 0 { 1000 } else { resources.cpu_millis.into() };
        let plain =
            assignment.inputs.is_empty() && !assignment.inputs_listed && assignment.outputs.is_empty();
        Need { cpu_millis, memory_bytes, named: resources.named.into_iter().collect(), plain }
    }

    fn withdraw(&mut self, key: AttemptKey) {
        match self.attempts.get_mut(&key).map(|attempt| &mut attempt.state) {
            None => {
                self.attempts.insert(key, Attempt::new(nothing(key), GIVEN_BACK));
                self.tell(key, |unsent| unsent.withdrawn = true);
            }
            Some(state @ State::Waiting) => {
                *state = GIVEN_BACK;
                self.admission.unqueue(key);
                self.tell(key, |unsent| unsent.withdrawn = true);
            }
            Some(State::InLine { wanted_back, .. }) => *wanted_back = true,
            Some(State::Active { started: Some(_), .. }) => self.tell(key, |unsent| unsent.started = true),
            // Its start or its end is on its way.
            Some(State::Active { .. } | State::Ended { .. } | State::Withdrawn { .. }) => {}
        }
    }

    fn cancel(&mut self, key: AttemptKey, effects: &mut Vec<Effect>) {
        match self.attempts.get_mut(&key).map(|attempt| &mut attempt.state) {
            None => {
                self.attempts.insert(key, Attempt::new(nothing(key), State::Waiting));
                self.end_unstarted(key, v1::Cause::Cancelled, "cancelled before it started");
            }
            Some(State::Waiting | State::Withdrawn { .. }) => {
                self.admission.unqueue(key);
                self.end_unstarted(key, v1::Cause::Cancelled, "cancelled before it started");
            }
            Some(State::Active { .. } | State::InLine { .. }) => self.stop(key, Stop::Cancel, effects),
            Some(State::Ended { .. }) => {}
        }
    }

    fn end_unstarted(&mut self, key: AttemptKey, cause: v1::Cause, message: &str) {
        let ended = v1::Ended { cause: cause.into(), message: message.to_owned(), ..v1::Ended::default() };
        if let Some(attempt) = self.attempts.get_mut(&key) {
            attempt.state = State::Ended { ended: Box::new(ended), acked: false };
            self.tell(key, |unsent| unsent.ended = true);
        }
    }

    fn verdict(&mut self, key: AttemptKey, verdict: v1::Verdict, effects: &mut Vec<Effect>) {
        match verdict {
            v1::Verdict::Unspecified | v1::Verdict::Keep => {}
            v1::Verdict::Kill => self.discard(key, effects),
            v1::Verdict::Collect => {
                if let Some(Attempt { state: State::Ended { acked, .. }, .. }) = self.attempts.get_mut(&key) {
                    *acked = false;
                    self.tell(key, |unsent| unsent.ended = true);
                }
            }
        }
    }

    fn acked(&mut self, key: AttemptKey, stale: bool, ended: bool, effects: &mut Vec<Effect>) {
        if stale {
            return self.discard(key, effects);
        }
        let Some(attempt) = self.attempts.get_mut(&key) else { return };
        match &mut attempt.state {
            State::Waiting | State::InLine { .. } => {}
            State::Active { .. } => attempt.started_acked = true,
            State::Ended { acked, .. } => {
                *acked |= ended;
                attempt.started_acked = true;
            }
            State::Withdrawn { retold: true, acked } => *acked = true,
            State::Withdrawn { retold: false, .. } => {
                self.attempts.remove(&key);
            }
        }
        self.remove_if_done(key, effects);
    }

    fn discard(&mut self, key: AttemptKey, effects: &mut Vec<Effect>) {
        match self.attempts.get(&key).map(|attempt| &attempt.state) {
            None => {}
            Some(State::Active { .. } | State::InLine { .. }) => self.stop(key, Stop::Discard, effects),
            Some(State::Waiting | State::Ended { .. } | State::Withdrawn { .. }) => {
                self.admission.unqueue(key);
                self.remove(key, effects);
            }
        }
    }

    fn stop(&mut self, key: AttemptKey, wanted: Stop, effects: &mut Vec<Effect>) {
        if let Some(Attempt { state: State::Active { stop, .. } | State::InLine { stop, .. }, .. }) =
            self.attempts.get_mut(&key)
            && *stop < Some(wanted)
        {
            *stop = Some(wanted);
            effects.push(Effect::Stop { key, stop: wanted });
        }
    }

    fn shutdown(&mut self, effects: &mut Vec<Effect>) {
        self.stopping = true;
        let keys: Vec<AttemptKey> = self.attempts.keys().copied().collect();
        for key in keys {
            match self.attempts.get(&key).map(|attempt| &attempt.state) {
                Some(State::Waiting) => {
                    self.admission.unqueue(key);
                    self.end_unstarted(key, v1::Cause::Infra, "the agent was stopped before it started");
                }
                Some(State::Active { .. } | State::InLine { .. }) => {
                    self.stop(key, Stop::Shutdown, effects);
                }
                Some(State::Ended { .. } | State::Withdrawn { .. }) | None => {}
            }
        }
    }

    fn began(&mut self, key: AttemptKey, now_started: v1::Started) {
        let Some(attempt) = self.attempts.get_mut(&key) else { return };
        match &mut attempt.state {
            State::Active { started, .. } => *started = Some(now_started),
            State::InLine { stop, wanted_back } => {
                let (stop, wanted_back) = (*stop, *wanted_back);
                attempt.state = State::Active { started: Some(now_started), stop };
                self.admission.begin(key);
                if wanted_back {
                    self.tell(key, |unsent| unsent.started = true);
                }
            }
            State::Waiting | State::Ended { .. } | State::Withdrawn { .. } => return,
        }
        if let Some(attempt) = self.attempts.get_mut(&key) {
            attempt.start = Some(now_started);
        }
    }

    /// It has not begun, and nobody will start it unless told again.
    fn returned(&mut self, key: AttemptKey, effects: &mut Vec<Effect>) {
        let Some(attempt) = self.attempts.get_mut(&key) else { return };
        let State::InLine { stop, wanted_back } = attempt.state else { return };
        match stop {
            None if wanted_back => {
                attempt.state = GIVEN_BACK;
                self.admission.forsake(key);
                self.tell(key, |unsent| unsent.withdrawn = true);
            }
            None => {
                attempt.state = State::Waiting;
                let assignment = attempt.assignment.clone();
                let need = self.need(&assignment);
                self.admission.put_back(key, need);
            }
            Some(Stop::Discard) => {
                self.admission.forsake(key);
                self.remove(key, effects);
            }
            Some(Stop::Cancel) => {
                self.admission.forsake(key);
                self.end_unstarted(key, v1::Cause::Cancelled, "cancelled before it started");
            }
            Some(Stop::Shutdown) => {
                self.admission.forsake(key);
                self.end_unstarted(key, v1::Cause::Infra, "the agent was stopped before it started");
            }
        }
    }

    fn started(&mut self, key: AttemptKey) {
        if let Some(Attempt { state: State::Active { started: Some(_), .. }, .. }) = self.attempts.get(&key) {
            self.tell(key, |unsent| unsent.started = true);
        }
    }

    fn progress(&mut self, key: AttemptKey, progress: v1::Progress) {
        if let Some(Attempt { state: State::Active { .. }, .. }) = self.attempts.get(&key) {
            self.tell(key, |unsent| unsent.progress = Some(progress));
        }
    }

    fn ended(&mut self, key: AttemptKey, ended: Box<v1::Ended>, effects: &mut Vec<Effect>) {
        let instant = ended.cause() == v1::Cause::Exit && ended.run_ms < INSTANT_MS;
        self.admission.release(key, instant);
        let Some(attempt) = self.attempts.get_mut(&key) else { return };
        match &attempt.state {
            State::Active { stop: Some(Stop::Discard), .. }
            | State::InLine { stop: Some(Stop::Discard), .. } => {
                self.remove(key, effects);
            }
            State::Active { .. } | State::InLine { .. } => {
                attempt.state = State::Ended { ended, acked: false };
                self.tell(key, |unsent| unsent.ended = true);
            }
            State::Waiting | State::Ended { .. } | State::Withdrawn { .. } => {}
        }
    }

    fn session_opened(&mut self) {
        self.outbox.clear();
        self.attempts.retain(|_, attempt| !matches!(attempt.state, State::Withdrawn { acked: true, .. }));
        for (key, attempt) in &mut self.attempts {
            let unsent = &mut attempt.unsent;
            match &mut attempt.state {
                State::Waiting => *unsent = Unsent::default(),
                State::InLine { wanted_back, .. } => {
                    // What is wanted now is said again.
                    *wanted_back = false;
                    *unsent = Unsent::default();
                }
                State::Withdrawn { retold, .. } => {
                    *retold = true;
                    unsent.withdrawn = true;
                }
                State::Active { started, .. } => {
                    unsent.started = started.is_some() && !attempt.started_acked;
                }
                State::Ended { acked, .. } => {
                    unsent.started = false;
                    unsent.ended = !*acked;
                }
            }
            unsent.queued = unsent.any();
            if unsent.queued {
                self.outbox.push_back(*key);
            }
        }
    }

    fn tell(&mut self, key: AttemptKey, what: impl FnOnce(&mut Unsent)) {
        if let Some(attempt) = self.attempts.get_mut(&key) {
            what(&mut attempt.unsent);
            if !std::mem::replace(&mut attempt.unsent.queued, true) {
                self.outbox.push_back(key);
            }
        }
    }

    fn remove(&mut self, key: AttemptKey, effects: &mut Vec<Effect>) {
        if self.attempts.remove(&key).is_some() {
            effects.push(Effect::Remove(key));
        }
    }

    fn remove_if_done(&mut self, key: AttemptKey, effects: &mut Vec<Effect>) {
        if self.attempts.get(&key).is_some_and(Attempt::is_done) {
            self.remove(key, effects);
        }
    }

    /// Whether nothing is held and everything is told: an agent that drained may go.
    pub fn is_idle(&self) -> bool {
        self.attempts
            .values()
            .all(|attempt| matches!(attempt.state, State::Withdrawn { .. }) && !attempt.unsent.queued)
    }

    /// Whether attempts follow each other so fast that they stand in line.
    pub fn is_busy(&self) -> bool {
        self.admission.in_line() > 0
    }

    pub fn running(&self) -> usize {
        self.admission.running()
    }

    pub fn waiting(&self) -> usize {
        self.admission.waiting()
    }
}

impl Attempt {
    fn new(assignment: Arc<v1::Assignment>, state: State) -> Self {
        Self {
            state,
            assignment,
            unsent: Unsent::default(),
            start: None,
            started_acked: false,
            output: Output::default(),
        }
    }

    fn is_done(&self) -> bool {
        match &self.state {
            State::Ended { ended, acked: true } => {
                is_inline(ended) || self.output.closed || self.output.durable >= ended.output_length
            }
            State::Waiting
            | State::InLine { .. }
            | State::Active { .. }
            | State::Ended { .. }
            | State::Withdrawn { .. } => false,
        }
    }
}

impl Unsent {
    fn any(&self) -> bool {
        self.started || self.progress.is_some() || self.ended || self.withdrawn
    }
}

/// What stands for an assignment that never arrived.
fn nothing(key: AttemptKey) -> Arc<v1::Assignment> {
    Arc::new(v1::Assignment { attempt: Some(key.into()), ..v1::Assignment::default() })
}

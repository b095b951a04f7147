//! An agent in a few lines: what it holds, what it was told, what it tells.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use mesh_proto::ids::{AttemptKey, SessionId};

use super::mesh::{ended, node_id};
use crate::engine::{
    effect::{Ack, Say, Verdict},
    event::{AttemptEnd, Event, Held},
    types::{Cause, SandboxLevel},
};

/// An order on the assignment stream.
#[derive(Clone, Copy, Debug)]
enum Order {
    Start(AttemptKey),
    Cancel(AttemptKey),
    GiveBack(AttemptKey),
}

/// An attempt that the agent wrote down.
#[derive(Clone, Debug)]
struct Work {
    cancelled: bool,
    started: bool,
    /// To be told that it was not begun.
    given_back: bool,
    end: Option<Arc<AttemptEnd>>,
}

impl Work {
    fn new() -> Self {
        Self { cancelled: false, started: false, given_back: false, end: None }
    }

    fn waits(&self) -> bool {
        !self.started && !self.given_back && self.end.is_none()
    }
}

#[derive(Debug)]
pub struct Agent {
    pub node: u32,
    pub boot: u32,
    /// None: it has to register.
    pub session: Option<SessionId>,
    /// Its assignment stream is there; only then it hears anything.
    pub open: bool,
    /// Whether it sends heartbeats.
    pub beats: bool,
    inbox: VecDeque<Order>,
    held: BTreeMap<AttemptKey, Work>,
    ran: BTreeSet<AttemptKey>,
}

impl Agent {
    pub fn new(node: u32) -> Self {
        Self {
            node,
            boot: 0,
            session: None,
            open: false,
            beats: true,
            inbox: VecDeque::new(),
            held: BTreeMap::new(),
            ran: BTreeSet::new(),
        }
    }

    /// The machine restarts: processes are gone, results on disk stay.
    pub fn reboot(&mut self) {
        self.boot += 1;
        self.held.retain(|_, work| work.end.is_some());
        self.disconnect();
    }

    /// Its data directory is gone.
    pub fn forget(&mut self) {
        self.held.clear();
        self.ran.clear();
        self.disconnect();
    }

    /// What was under way on its streams is lost.
    pub fn disconnect(&mut self) {
        self.inbox.clear();
        self.session = None;
        self.open = false;
    }

    pub fn inventory(&self) -> Vec<(AttemptKey, Held)> {
        let held = |work: &Work| match work {
            Work { end: Some(_), .. } => Held::Ended,
            Work { started: true, .. } => Held::Running,
            Work { .. } => Held::Accepted,
        };
        self.held.iter().map(|(attempt, work)| (*attempt, held(work))).collect()
    }

    /// The answer to a registration.
    pub fn registered(&mut self, session: SessionId, verdicts: &[(AttemptKey, Verdict)]) {
        self.session = Some(session);
        self.open = false;
        for (attempt, verdict) in verdicts {
            if *verdict == Verdict::Unknown {
                self.held.remove(attempt);
            }
        }
    }

    /// What the coordinator says, if it reaches this agent.
    pub fn hear(&mut self, say: &Say) {
        let here = node_id(self.node);
        let heard = self.session.filter(|_| self.open);
        match say {
            Say::Dispatch { node, session, attempt } if *node == here && heard == Some(*session) => {
                self.inbox.push_back(Order::Start(*attempt));
            }
            Say::Cancel { node, session, attempt, .. } if *node == here && heard == Some(*session) => {
                self.inbox.push_back(Order::Cancel(*attempt));
            }
            Say::Withdraw { node, session, attempt } if *node == here && heard == Some(*session) => {
                self.inbox.push_back(Order::GiveBack(*attempt));
            }
            Say::EndSession { node, session } if *node == here && self.session == Some(*session) => {
                self.disconnect();
            }
            Say::Ack { node, attempt, ack, ended }
                if *node == here && heard.is_some() && (*ack == Ack::Stale || *ended) =>
            {
                self.held.remove(attempt);
            }
            Say::Dispatch { .. }
            | Say::Cancel { .. }
            | Say::Withdraw { .. }
            | Say::EndSession { .. }
            | Say::Ack { .. }
            | Say::Reply(..)
            | Say::JobChanged(_)
            | Say::Ended { .. }
            | Say::Unplaced { .. }
            | Say::Placed { .. } => {}
        }
    }

    /// Obeys everything that was ordered.
    pub fn obey(&mut self) {
        for order in std::mem::take(&mut self.inbox) {
            match order {
                Order::Start(attempt) => {
                    self.held.entry(attempt).or_insert_with(Work::new);
                }
                Order::GiveBack(attempt) => {
                    let work = self.held.entry(attempt).or_insert_with(Work::new);
                    work.given_back |= work.waits();
                }
                Order::Cancel(attempt) => {
                    let Some(work) = self.held.get_mut(&attempt) else { continue };
                    work.cancelled = true;
                    work.given_back = false;
                    if !work.started && work.end.is_none() {
                        work.end = Some(Arc::new(AttemptEnd::declared(Cause::Cancelled, "before its start")));
                    }
                }
            }
        }
    }

    /// Starts one of the attempts that wait here and are not among the `queued`, which wait for
    /// resources. An attempt is never started twice.
    pub fn start(&mut self, pick: usize, queued: &BTreeSet<AttemptKey>) -> Result<bool, String> {
        // Without a session nobody else reckons with it: what runs may be all there is room for.
        if self.session.is_none() && !self.running().is_empty() {
            return Ok(false);
        }
        let waiting: Vec<AttemptKey> = self
            .held
            .iter()
            .filter(|(attempt, work)| work.waits() && !queued.contains(attempt))
            .map(|(attempt, _)| *attempt)
            .collect();
        let Some(attempt) = choose(&waiting, pick) else { return Ok(false) };
        if let Some(work) = self.held.get_mut(&attempt) {
            work.started = true;
        }
        if self.ran.insert(attempt) { Ok(true) } else { Err(format!("{attempt} started twice")) }
    }

    /// The processes that run, and whether their end was ordered.
    pub fn running(&self) -> Vec<(AttemptKey, bool)> {
        self.held
            .iter()
            .filter(|(_, work)| work.started && work.end.is_none())
            .map(|(attempt, work)| (*attempt, work.cancelled))
            .collect()
    }

    /// A process ends; after an order to do so, by it, unless it had done its work.
    pub fn finish(&mut self, attempt: AttemptKey, end: AttemptEnd) {
        if let Some(work) = self.held.get_mut(&attempt) {
            let end = if work.cancelled && !end.is_success() { ended(Cause::Cancelled) } else { end };
            work.end = Some(Arc::new(end));
        }
    }

    /// What it would tell of an attempt: its start, or its end if there is one and `end` is asked.
    pub fn word(&self, pick: usize, end: bool) -> Option<Event> {
        let node = node_id(self.node);
        let held: Vec<AttemptKey> = self.held.keys().copied().collect();
        let attempt = choose(&held, pick)?;
        let work = self.held.get(&attempt)?;
        match &work.end {
            Some(told) if end || !work.started => {
                Some(Event::AttemptEnded { node, attempt, end: Arc::clone(told) })
            }
            _ if work.given_back => Some(Event::AttemptWithdrawn { node, attempt }),
            _ if work.started => {
                Some(Event::AttemptStarted { node, attempt, sandbox: SandboxLevel::Basic.into() })
            }
            _ => None,
        }
    }

    /// Every word that it has to tell.
    pub fn words(&self) -> Vec<Event> {
        (0..self.held.len()).filter_map(|pick| self.word(pick, true)).collect()
    }

    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.inbox.is_empty()
    }
}

/// One of several, by any number.
pub fn choose<T: Copy>(from: &[T], pick: usize) -> Option<T> {
    from.get(pick.checked_rem(from.len())?).copied()
}

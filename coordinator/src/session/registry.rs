//! The sessions of agents: one per node, a newer one ends the older.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_proto::{
    code::Code,
    digest::Digest,
    ids::{AttemptKey, BootId, NodeId, SessionId},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{engine::effect::Ack, grpc::blobs::NodeReads};

/// Commands and acknowledgements that may wait for one session. An agent holds few attempts;
/// a queue this long means that it does not read.
const QUEUE: usize = 16 * 1024;

/// What is said on an assignment stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Dispatch(AttemptKey),
    Cancel(AttemptKey, String),
    Withdraw(AttemptKey),
    RegisterAgain,
}

/// What is said on a result stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acked {
    pub attempt: AttemptKey,
    pub ack: Ack,
    pub ended: bool,
}

/// A session as its streams see it.
#[derive(Clone, Debug)]
pub struct Live {
    pub node: NodeId,
    pub session: SessionId,
    /// Ends with the session.
    pub over: CancellationToken,
}

struct Entry {
    live: Live,
    name: String,
    commands: mpsc::Sender<Command>,
    acks: mpsc::Sender<Acked>,
    /// Taken by the stream that serves them.
    command_queue: Option<mpsc::Receiver<Command>>,
    ack_queue: Option<mpsc::Receiver<Acked>>,
    /// The inputs of the attempts that the node holds.
    reads: HashMap<AttemptKey, HashSet<Digest>>,
}

/// The live sessions. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Sessions(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    nodes: BTreeMap<NodeId, Entry>,
    progress: HashMap<AttemptKey, (u32, String)>,
    /// The newest registration of each node, also when its session is over.
    newest: HashMap<NodeId, Taken>,
}

/// When an agent took the inventory of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub boot: BootId,
    /// Microseconds on its boot-time clock, 0 when it does not tell.
    pub at_us: u64,
    /// The place of the connection that it came on among those that were accepted.
    pub opened: u64,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a session; the node's older one ends. A registration that comes late, behind a newer
    /// one of the same boot, is refused: what the node was given since is missing in it, and would
    /// count as lost. Of two boots the one with the newer connection is the newer: what an earlier boot
    /// had sent can still be read when the coordinator was stopped meanwhile.
    pub fn begin(&self, node: NodeId, name: &str, session: SessionId, taken: Taken) -> Result<(), Status> {
        let (commands, command_queue) = mpsc::channel(QUEUE);
        let (acks, ack_queue) = mpsc::channel(QUEUE);
        let live = Live { node, session, over: CancellationToken::new() };
        let mut state = self.lock();
        let newer = |last: &Taken| {
            if last.boot == taken.boot {
                taken.at_us > 0 && last.at_us >= taken.at_us
            } else {
                last.opened > taken.opened
            }
        };
        if state.newest.get(&node).is_some_and(newer) {
            return Err(stale());
        }
        state.newest.insert(node, taken);
        let entry = Entry {
            live,
            name: name.to_owned(),
            commands,
            acks,
            command_queue: Some(command_queue),
            ack_queue: Some(ack_queue),
            reads: HashMap::new(),
        };
        if let Some(old) = state.nodes.insert(node, entry) {
            old.live.over.cancel();
            if let Some(new) = state.nodes.get_mut(&node) {
                new.reads = old.reads;
            }
        }
        Ok(())
    }

    /// Ends every session: another coordinator leads.
    pub fn end_all(&self) {
        let mut state = self.lock();
        for entry in std::mem::take(&mut state.nodes).into_values() {
            entry.live.over.cancel();
        }
        state.progress.clear();
    }

    /// The node's session, if it is still this one and goes on.
    pub fn check(&self, node: NodeId, session: &str) -> Result<Live, Status> {
        let session: SessionId = session.parse().map_err(|_| stale())?;
        let state = self.lock();
        state
            .nodes
            .get(&node)
            .filter(|entry| entry.live.session == session && !entry.live.over.is_cancelled())
            .map(|entry| entry.live.clone())
            .ok_or_else(stale)
    }

    /// The queue of commands; for one stream only.
    pub fn take_commands(&self, live: &Live) -> Result<mpsc::Receiver<Command>, Status> {
        self.with(live, |entry| entry.command_queue.take()).flatten().ok_or_else(stale)
    }

    /// The queue of acknowledgements; for one stream only.
    pub fn take_acks(&self, live: &Live) -> Result<mpsc::Receiver<Acked>, Status> {
        self.with(live, |entry| entry.ack_queue.take()).flatten().ok_or_else(stale)
    }

    fn with<T>(&self, live: &Live, act: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut state = self.lock();
        let entry = state.nodes.get_mut(&live.node).filter(|entry| entry.live.session == live.session)?;
        Some(act(entry))
    }

    /// Says something on a session's assignment stream; a session that does not read ends.
    pub fn command(&self, node: NodeId, session: SessionId, command: Command) {
        let state = self.lock();
        if let Some(entry) = state.nodes.get(&node).filter(|entry| entry.live.session == session)
            && entry.commands.try_send(command).is_err()
        {
            entry.live.over.cancel();
        }
    }

    /// Acknowledges an attempt's word on the node's session, whichever that is now.
    pub fn ack(&self, node: NodeId, acked: Acked) {
        let mut state = self.lock();
        if acked.ended {
            state.progress.remove(&acked.attempt);
        }
        let Some(entry) = state.nodes.get_mut(&node) else { return };
        if acked.ended {
            entry.reads.remove(&acked.attempt);
        }
        if entry.acks.try_send(acked).is_err() {
            entry.live.over.cancel();
        }
    }

    /// Ends a session.
    pub fn end(&self, node: NodeId, session: SessionId) {
        let mut state = self.lock();
        if state.nodes.get(&node).is_some_and(|entry| entry.live.session == session)
            && let Some(entry) = state.nodes.remove(&node)
        {
            entry.live.over.cancel();
            for attempt in entry.reads.keys() {
                state.progress.remove(attempt);
            }
        }
    }

    /// The node holds these attempts and no others; what was known of others is forgotten. What
    /// it is sent from now on comes on top.
    pub fn holds(&self, node: NodeId, session: SessionId, attempts: &BTreeSet<AttemptKey>) {
        let mut state = self.lock();
        let State { nodes, progress, .. } = &mut *state;
        if let Some(entry) = nodes.get_mut(&node).filter(|entry| entry.live.session == session) {
            for (attempt, _) in entry.reads.extract_if(|attempt, _| !attempts.contains(attempt)) {
                progress.remove(&attempt);
            }
        }
    }

    /// Asks every agent to register again.
    pub fn register_again(&self) {
        for entry in self.lock().nodes.values() {
            if entry.commands.try_send(Command::RegisterAgain).is_err() {
                entry.live.over.cancel();
            }
        }
    }

    /// Lets a node read the inputs of an attempt that it holds.
    pub fn allow(&self, node: NodeId, attempt: AttemptKey, digests: Vec<Digest>) {
        if let Some(entry) = self.lock().nodes.get_mut(&node) {
            entry.reads.insert(attempt, digests.into_iter().collect());
        }
    }

    /// The node's name, for metrics.
    #[must_use]
    pub fn name(&self, node: NodeId) -> Option<String> {
        self.lock().nodes.get(&node).map(|entry| entry.name.clone())
    }

    /// Notes how far an attempt says it is, if the node holds it.
    pub fn set_progress(&self, node: NodeId, attempt: AttemptKey, percent: u32, message: String) {
        let mut state = self.lock();
        if state.nodes.get(&node).is_some_and(|entry| entry.reads.contains_key(&attempt)) {
            state.progress.insert(attempt, (percent.min(100), message));
        }
    }

    /// How far a running attempt says it is.
    #[must_use]
    pub fn progress(&self, attempt: AttemptKey) -> Option<(u32, String)> {
        self.lock().progress.get(&attempt).cloned()
    }
}

impl NodeReads for Sessions {
    fn may_read(&self, node: NodeId, digest: &Digest) -> bool {
        self.lock()
            .nodes
            .get(&node)
            .is_some_and(|entry| entry.reads.values().any(|digests| digests.contains(digest)))
    }
}

fn stale() -> Status {
    Code::Stale.status("this session is over: register again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_that_was_held_up_does_not_end_the_session_of_a_newer_boot() {
        let sessions = Sessions::default();
        let node = NodeId::generate();
        let begin = |boot, at_us, opened| {
            let taken = Taken { boot, at_us, opened };
            sessions.begin(node, "amber", SessionId::generate(), taken)
        };
        let (before, after) = (BootId::generate(), BootId::generate());
        begin(after, 10, 2).unwrap();
        let refused = begin(before, 9_000, 1).unwrap_err();
        assert_eq!(Code::of(&refused), Code::Stale, "it was sent before the reboot, and read after it");
        begin(after, 20, 2).unwrap();
        // A boot that comes after this one is the newer one, whatever its clock says.
        begin(BootId::generate(), 1, 3).unwrap();
    }
}

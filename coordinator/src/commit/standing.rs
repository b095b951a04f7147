//! Where the leader stands, as the other rooms see it: its epoch and commits, its lease, whether it is
//! halted, and who leads if somebody else does.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use mesh_proto::{ids::Incarnation, v1::CommitPoint};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::handle::CoreError;
use crate::{
    proof::Prover,
    store::{clock::boot_ms, coordinators::Addresses},
};

/// Where the leader stands: shared with readers and sessions.
#[derive(Debug)]
pub struct Standing {
    prover: Prover,
    epoch: AtomicU64,
    seq: AtomicU64,
    /// Boot-time milliseconds until which nobody else can have taken the lead.
    lease_until: AtomicU64,
    incarnation: watch::Sender<Option<Incarnation>>,
    highest: Mutex<Highest>,
    /// Where the leader is reached, while that is somebody else.
    leader: watch::Sender<Addresses>,
    /// Why nothing is dispatched or changed.
    halted: watch::Sender<Option<String>>,
    /// The last thing that could not be written failed for want of space.
    full: AtomicBool,
    /// Cancelled when this coordinator is deposed or halts; then there is a new one.
    reign: ArcSwap<CancellationToken>,
}

/// The highest commit that this coordinator has seen in the leader's row, leading or not.
#[derive(Debug, Default)]
struct Highest {
    incarnation: Option<Incarnation>,
    seq: u64,
    /// A lower one came after it.
    went_back: bool,
}

impl Standing {
    pub(super) fn new(prover: Prover) -> Self {
        Self {
            prover,
            epoch: AtomicU64::new(0),
            seq: AtomicU64::new(0),
            lease_until: AtomicU64::new(0),
            incarnation: watch::Sender::new(None),
            highest: Mutex::default(),
            leader: watch::Sender::default(),
            halted: watch::Sender::default(),
            full: AtomicBool::new(false),
            reign: ArcSwap::default(),
        }
    }

    pub(super) fn begin(&self, incarnation: Incarnation, epoch: u64) {
        self.incarnation.send_replace(Some(incarnation));
        self.epoch.store(epoch, Ordering::Release);
    }

    /// Somebody else leads, and is reached there.
    pub(super) fn follows(&self, leader: Addresses) {
        self.leader.send_replace(leader);
    }

    /// The lease and everything that hangs on the lead are over.
    pub(super) fn depose(&self) {
        self.lease_until.store(0, Ordering::Release);
        self.leader.send_replace(Addresses::default());
        self.halted.send_replace(None);
        self.reign.swap(Arc::default()).cancel();
    }

    pub(super) fn halts(&self, reason: Option<String>) {
        let halts = reason.is_some();
        self.halted.send_replace(reason);
        if halts {
            self.reign.swap(Arc::default()).cancel();
        }
    }

    /// Why nothing is dispatched or changed, if that is so.
    #[must_use]
    pub fn halted(&self) -> Option<String> {
        self.halted.borrow().clone()
    }

    /// Changes of it.
    #[must_use]
    pub fn halts_seen(&self) -> watch::Receiver<Option<String>> {
        self.halted.subscribe()
    }

    /// Whether it is for want of space on the database's disk that nothing can be written.
    pub fn fills(&self, full: bool) {
        self.full.store(full, Ordering::Release);
    }

    /// Why nobody is served at the moment.
    pub(super) fn hindrance(&self) -> CoreError {
        if self.full.load(Ordering::Acquire) { CoreError::Full } else { CoreError::Recovering }
    }

    /// Where the leader is reached, as far as a stand-by knows.
    #[must_use]
    pub fn leader(&self) -> Addresses {
        self.leader.borrow().clone()
    }

    /// Is cancelled when this coordinator is deposed.
    #[must_use]
    pub fn reign(&self) -> CancellationToken {
        self.reign.load().as_ref().clone()
    }

    /// Takes note of where the leader's row stands, or stood when this coordinator ran last. No later
    /// incarnation is followed by an earlier one, and within one `seq` never falls, unless the database
    /// goes back in time.
    pub fn saw(&self, incarnation: Incarnation, seq: u64) {
        let mut highest = self.highest.lock().unwrap_or_else(PoisonError::into_inner);
        if highest.incarnation < Some(incarnation) {
            *highest = Highest { incarnation: Some(incarnation), seq, went_back: false };
        }
        let seen = (highest.incarnation, highest.seq);
        highest.went_back |= (Some(incarnation), seq) < seen;
        if highest.incarnation == Some(incarnation) {
            highest.seq = highest.seq.max(seq);
        }
    }

    /// The highest commit that was seen, in words, if a lower one came after it.
    pub(super) fn went_back(&self) -> Option<String> {
        let highest = self.highest.lock().unwrap_or_else(PoisonError::into_inner);
        let later = *self.incarnation.borrow() < highest.incarnation;
        let of = if later { " of a later history" } else { "" };
        highest.went_back.then(|| format!("commit {}{of}", highest.seq))
    }

    /// The highest commit that was seen. None while the mesh is halted: what is committed then may be
    /// of a history that no operator will accept.
    #[must_use]
    pub fn highest(&self) -> Option<(Incarnation, u64)> {
        let halted = self.halted.borrow().is_some();
        let highest = self.highest.lock().unwrap_or_else(PoisonError::into_inner);
        let point = highest.incarnation.map(|incarnation| (incarnation, highest.seq));
        point.filter(|_| !halted && !highest.went_back)
    }

    /// A fence went through that was sent at `sent_ms`.
    pub(super) fn moved(&self, seq: u64, sent_ms: u64, lease_ms: u64) {
        let incarnation = *self.incarnation.borrow();
        if let Some(incarnation) = incarnation {
            self.saw(incarnation, seq);
        }
        self.seq.store(seq, Ordering::Release);
        self.lease_until.store(sent_ms + lease_ms, Ordering::Release);
    }

    /// Whether reads may be served: nobody else can lead yet.
    #[must_use]
    pub fn holds_lease(&self) -> bool {
        boot_ms() < self.lease_until.load(Ordering::Acquire)
    }

    #[must_use]
    pub fn epoch(&self) -> i64 {
        self.epoch.load(Ordering::Acquire).cast_signed()
    }

    /// The last commit, for agents.
    #[must_use]
    pub fn point(&self) -> CommitPoint {
        let mut point = CommitPoint {
            incarnation: self.incarnation.borrow().map(|id| id.to_string()).unwrap_or_default(),
            epoch: self.epoch.load(Ordering::Acquire),
            seq: self.seq.load(Ordering::Acquire),
            proof: Vec::new(),
        };
        self.prover.prove(&mut point);
        point
    }

    /// Whether a coordinator of this mesh gave this point out.
    #[must_use]
    pub fn gave(&self, point: &CommitPoint) -> bool {
        self.prover.proved(point)
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn incarnation(number: u128) -> Incarnation {
        Incarnation(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn a_commit_that_is_behind_what_was_seen_is_noticed_and_an_accepted_history_is_not() {
        let standing = Standing::new(Prover::new(b"of this test"));
        assert_eq!(standing.highest(), None);
        standing.saw(incarnation(5), 10);
        standing.saw(incarnation(5), 12);
        assert_eq!((standing.highest(), standing.went_back()), (Some((incarnation(5), 12)), None));
        standing.begin(incarnation(5), 1);
        standing.saw(incarnation(5), 11);
        assert_eq!(standing.went_back().as_deref(), Some("commit 12"));
        assert_eq!(standing.highest(), None, "what is committed now may be of no account");
        standing.saw(incarnation(6), 3);
        assert_eq!((standing.highest(), standing.went_back()), (Some((incarnation(6), 3)), None), "accepted");
        // A copy from before that was accepted, however long it went on.
        standing.begin(incarnation(5), 9);
        standing.saw(incarnation(5), 900);
        assert_eq!(standing.went_back().as_deref(), Some("commit 3 of a later history"));
        standing.saw(incarnation(7), 901);
        standing.halts(Some("an agent has seen more".to_owned()));
        assert_eq!((standing.highest(), standing.went_back()), (None, None));
        standing.halts(None);
        assert_eq!(standing.highest(), Some((incarnation(7), 901)));
    }
}

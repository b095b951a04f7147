//! The promises that are checked, each by the name under which `docs/invariants.md` lists it.

use std::fmt;

macro_rules! invariants {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// A promise.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Invariant {
            $($(#[doc = $doc])* $name,)*
        }

        /// Every one of them.
        pub const INVARIANTS: &[Invariant] = &[$(Invariant::$name,)*];
    };
}

invariants! {
    /// A commit of an epoch that is over does not land.
    Fenced,
    /// An epoch belongs to one process.
    OneWriter,
    /// Nobody takes the lead while the lease of another holds.
    LeaseExclusive,
    /// A heartbeat is answered with a lease only by a leader that nobody can have followed.
    LeaseGivenByLeader,
    /// Nothing is said before the commit that holds it.
    SaidAfterCommit,
    /// What the database refuses is refused alone.
    PoisonAlone,
    /// A guarded write finds the rows that it is for.
    GuardsHold,
    /// What is over never changes, and counters only grow.
    TerminalStays,
    /// Attempts are numbered without a gap, and at most the last one is open.
    OneAttempt,
    /// A completed task has exactly one good end, another none.
    OneResult,
    /// Losses and failures are counted apart, and a task fails only when they say so.
    CountedApart,
    /// Counts are those of the rows.
    CountsAgree,
    /// The end that is committed is the end of that attempt's process.
    TrueEnd,
    /// A process starts only for an assignment that is committed, for this node and boot.
    StartsCommitted,
    /// A process starts once.
    StartsOnce,
    /// A silent node is suspected, not replaced; what an agent holds is not lost.
    NotGivenUpEarly,
    /// What was replaced dies soon after its node is back.
    ReplacedDies,
    /// Of a task with `on_disconnect: kill` one process lives at a time.
    NoOverlap,
    /// What was given back never began, and never begins.
    GivenBackNeverBegan,
    /// Needs are completed before an assignment.
    NeedsFirst,
    /// A node that is cordoned or drained gets nothing new.
    CordonHolds,
    /// A node runs no more than it has.
    NoOverload,
    /// In a slot, which has a user of its own, one process runs at a time.
    OwnSlot,
    /// An agent lets go of nothing that is not ended in the database.
    NothingDropped,
    /// What is over leaves no process behind, but on a node that is offline.
    ProcessesGone,
    /// A job that was acknowledged is there, once for each key.
    AcknowledgedStays,
    /// A redrive that is told again, until there is an answer, is done once.
    RedrivenOnce,
    /// A cancel that was acknowledged ends the job.
    CancelHolds,
    /// Callers get the answer to what they asked.
    RightAnswer,
    /// An agent is never ahead of the database.
    HistoryForward,
    /// A halted coordinator says nothing to agents, and takes nothing from anybody.
    HaltHolds,
    /// Once all is healed everything comes to its end, and nothing is left behind.
    EverythingEnds,
    /// The engine's own invariants.
    EngineSound,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: Invariant,
    pub why: String,
}

impl Violation {
    #[must_use]
    pub fn new(invariant: Invariant, why: impl Into<String>) -> Self {
        Self { invariant, why: why.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.why)
    }
}

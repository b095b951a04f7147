//! Rules that are broken on purpose, to show that the checker bites. Each is broken in what
//! stands around the engine here, never in the engine itself.

use crate::invariant::Invariant;

/// A broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Broken {
    /// A commit of an epoch that is over lands.
    NoEpochCheck,
    /// A result is taken for the current attempt, whichever it is of.
    NoAttemptCheck,
    /// What the engine says goes out before the commit that holds it.
    SaysBeforeCommit,
    /// A node's tasks run elsewhere although it is only suspect.
    ReplacesBeforeOffline,
    /// A replacement does not end the attempt that it replaces.
    LeavesOldAttempt,
    /// An attempt that was replaced is kept when its node comes back.
    KeepsReplaced,
    /// A heartbeat is answered with a lease although another may lead by now.
    LeaseUnchecked,
    /// A stand-by does not wait until the leader stands still.
    TakesOverAtOnce,
    /// A task that was asked back counts as given back before its agent answered.
    WithdrawsUnanswered,
    /// What an agent holds is not looked at when it registers.
    IgnoresInventory,
    /// A redrive takes what had completed for dead letters as well.
    RedrivesCompleted,
}

/// Every one of them, and the invariant that it breaks.
pub const BROKEN: [(Broken, Invariant); 11] = [
    (Broken::NoEpochCheck, Invariant::Fenced),
    (Broken::NoAttemptCheck, Invariant::TrueEnd),
    (Broken::SaysBeforeCommit, Invariant::SaidAfterCommit),
    (Broken::ReplacesBeforeOffline, Invariant::NotGivenUpEarly),
    (Broken::LeavesOldAttempt, Invariant::OneAttempt),
    (Broken::KeepsReplaced, Invariant::ReplacedDies),
    (Broken::LeaseUnchecked, Invariant::LeaseGivenByLeader),
    (Broken::TakesOverAtOnce, Invariant::LeaseExclusive),
    (Broken::WithdrawsUnanswered, Invariant::GivenBackNeverBegan),
    (Broken::IgnoresInventory, Invariant::NotGivenUpEarly),
    (Broken::RedrivesCompleted, Invariant::TerminalStays),
];

/// The command that plays a seed again and shows all of it.
#[must_use]
pub fn replay(seed: u64, broken: Option<Broken>) -> String {
    use clap::ValueEnum as _;
    let broken = broken.and_then(|broken| broken.to_possible_value());
    let broken = broken.map(|broken| format!(" --broken {}", broken.get_name())).unwrap_or_default();
    format!("cargo run -p mesh-sim --release -- --seed {seed} --trace{broken}")
}

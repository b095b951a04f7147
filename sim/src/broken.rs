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
    /// Nobody is asked what later commits they have seen.
    NeverHalts,
    /// A halted coordinator goes on to speak to agents.
    SpeaksHalted,
    /// After an older state was accepted attempts are numbered as if nothing were lost.
    RepeatsNumbers,
    /// Who takes the lead begins no new epoch.
    SharesEpoch,
    /// A whole batch is refused for the one event in it that the database refuses.
    BlamesNeighbours,
    /// A commit whose outcome is unknown counts as failed, and memory is not read anew.
    TrustsMemory,
    /// The row of an attempt that ended well says that it failed.
    SpoilsResults,
    /// A loss of the infrastructure counts as a failure of the task as well.
    CountsTwice,
    /// The counts of a task are not written.
    ForgetsCounts,
    /// An assignment goes to another node.
    SendsElsewhere,
    /// A daemon that starts again starts again what ran.
    StartsAgain,
    /// Nobody ends what lives on a lease.
    OutlivesLease,
    /// What a task needs is not told to the engine.
    ForgetsNeeds,
    /// A cordon or a drain is acknowledged and not done.
    ForgetsCordon,
    /// An agent takes on more than its node has.
    TakesTooMuch,
    /// A jail starts one that is to stand in line behind what neither runs nor stands there.
    StartsBehindNobody,
    /// An end is acknowledged before it is committed.
    AcksUncommitted,
    /// What is not wanted any more is let go of with its process alive.
    LetsGoAlive,
    /// The key of a submit is not looked at.
    IgnoresKeys,
    /// The key of a redrive is not looked at.
    IgnoresRedriveKeys,
    /// A cancel is acknowledged and not done.
    ForgetsCancel,
    /// Who asks is answered what was asked before.
    MixesAnswers,
    /// A redrive takes what was cancelled for dead letters as well.
    RedrivesMisread,
    /// Every tenth message with assignments is lost, and nobody notices.
    LosesAssignments,
    /// The attempts of dead letters are not read.
    ForgetsAttempts,
}

/// Every one of them, and the invariant that it breaks.
pub const BROKEN: [(Broken, Invariant); 36] = [
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
    (Broken::NeverHalts, Invariant::HistoryForward),
    (Broken::SpeaksHalted, Invariant::HaltHolds),
    (Broken::RepeatsNumbers, Invariant::StartsOnce),
    (Broken::SharesEpoch, Invariant::OneWriter),
    (Broken::BlamesNeighbours, Invariant::PoisonAlone),
    (Broken::TrustsMemory, Invariant::NothingDropped),
    (Broken::RedrivesMisread, Invariant::GuardsHold),
    (Broken::SpoilsResults, Invariant::OneResult),
    (Broken::CountsTwice, Invariant::CountedApart),
    (Broken::ForgetsCounts, Invariant::CountsAgree),
    (Broken::SendsElsewhere, Invariant::StartsCommitted),
    (Broken::StartsAgain, Invariant::StartsOnce),
    (Broken::OutlivesLease, Invariant::NoOverlap),
    (Broken::ForgetsNeeds, Invariant::NeedsFirst),
    (Broken::ForgetsCordon, Invariant::CordonHolds),
    (Broken::TakesTooMuch, Invariant::NoOverload),
    (Broken::StartsBehindNobody, Invariant::OwnSlot),
    (Broken::AcksUncommitted, Invariant::NothingDropped),
    (Broken::LetsGoAlive, Invariant::ProcessesGone),
    (Broken::IgnoresKeys, Invariant::AcknowledgedStays),
    (Broken::IgnoresRedriveKeys, Invariant::RedrivenOnce),
    (Broken::ForgetsCancel, Invariant::CancelHolds),
    (Broken::MixesAnswers, Invariant::RightAnswer),
    (Broken::LosesAssignments, Invariant::EverythingEnds),
    (Broken::ForgetsAttempts, Invariant::EngineSound),
];

/// The command that plays a seed again and shows all of it.
#[must_use]
pub fn replay(seed: u64, broken: Option<Broken>) -> String {
    use clap::ValueEnum as _;
    let broken = broken.and_then(|broken| broken.to_possible_value());
    let broken = broken.map(|broken| format!(" --broken {}", broken.get_name())).unwrap_or_default();
    format!("cargo run -p mesh-sim --release -- --seed {seed} --trace{broken}")
}

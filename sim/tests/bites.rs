//! The checker bites: each rule that is broken on purpose is caught within 500 seeds, by the
//! invariant that names it.

use mesh_sim::{BROKEN, Broken, run};

const SEEDS: u64 = 500;

#[track_caller]
fn caught(broken: Broken) {
    let expected = BROKEN.iter().find(|(rule, _)| *rule == broken).map(|(_, invariant)| *invariant);
    let found = (0..SEEDS).find_map(|seed| Some((seed, run(seed, Some(broken), false).broken?)));
    let (seed, violation) = found.unwrap_or_else(|| panic!("{broken:?} is not caught by {SEEDS} seeds"));
    assert_eq!(Some(violation.invariant), expected, "seed {seed} catches {broken:?} by chance: {violation}");
}

#[test]
fn a_commit_without_epoch_check() {
    caught(Broken::NoEpochCheck);
}

#[test]
fn a_result_without_attempt_check() {
    caught(Broken::NoAttemptCheck);
}

#[test]
fn saying_before_the_commit() {
    caught(Broken::SaysBeforeCommit);
}

#[test]
fn replacing_before_offline() {
    caught(Broken::ReplacesBeforeOffline);
}

#[test]
fn a_replacement_that_does_not_end_the_old_attempt() {
    caught(Broken::LeavesOldAttempt);
}

#[test]
fn a_replaced_attempt_that_is_kept() {
    caught(Broken::KeepsReplaced);
}

#[test]
fn a_lease_from_one_who_may_not_lead_any_more() {
    caught(Broken::LeaseUnchecked);
}

#[test]
fn a_stand_by_that_does_not_wait() {
    caught(Broken::TakesOverAtOnce);
}

#[test]
fn a_withdrawal_without_answer() {
    caught(Broken::WithdrawsUnanswered);
}

#[test]
fn a_redrive_that_runs_again_what_had_completed() {
    caught(Broken::RedrivesCompleted);
}

#[test]
fn an_inventory_that_is_ignored() {
    caught(Broken::IgnoresInventory);
}

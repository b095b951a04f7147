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

#[test]
fn a_coordinator_that_never_halts() {
    caught(Broken::NeverHalts);
}

#[test]
fn a_halted_coordinator_that_speaks_to_agents() {
    caught(Broken::SpeaksHalted);
}

#[test]
fn numbers_of_attempts_that_are_given_again() {
    caught(Broken::RepeatsNumbers);
}

#[test]
fn a_lead_without_an_epoch_of_its_own() {
    caught(Broken::SharesEpoch);
}

#[test]
fn a_batch_that_is_refused_for_one_event() {
    caught(Broken::BlamesNeighbours);
}

#[test]
fn memory_that_is_kept_when_a_commit_was_lost() {
    caught(Broken::TrustsMemory);
}

#[test]
fn a_result_that_is_written_down_wrong() {
    caught(Broken::SpoilsResults);
}

#[test]
fn a_loss_that_counts_as_a_failure() {
    caught(Broken::CountsTwice);
}

#[test]
fn counts_that_are_not_written() {
    caught(Broken::ForgetsCounts);
}

#[test]
fn an_assignment_that_goes_to_another_node() {
    caught(Broken::SendsElsewhere);
}

#[test]
fn a_daemon_that_starts_again_what_ran() {
    caught(Broken::StartsAgain);
}

#[test]
fn a_process_that_outlives_its_lease() {
    caught(Broken::OutlivesLease);
}

#[test]
fn needs_that_are_not_read() {
    caught(Broken::ForgetsNeeds);
}

#[test]
fn a_cordon_that_is_forgotten() {
    caught(Broken::ForgetsCordon);
}

#[test]
fn an_agent_that_takes_too_much() {
    caught(Broken::TakesTooMuch);
}

#[test]
fn a_jail_that_starts_one_behind_nobody() {
    caught(Broken::StartsBehindNobody);
}

#[test]
fn an_end_that_is_acknowledged_before_its_commit() {
    caught(Broken::AcksUncommitted);
}

#[test]
fn a_process_that_is_let_go_of_alive() {
    caught(Broken::LetsGoAlive);
}

#[test]
fn a_key_that_is_not_looked_at() {
    caught(Broken::IgnoresKeys);
}

#[test]
fn a_cancel_that_is_forgotten() {
    caught(Broken::ForgetsCancel);
}

#[test]
fn answers_to_what_was_asked_before() {
    caught(Broken::MixesAnswers);
}

#[test]
fn an_assignment_that_is_lost() {
    caught(Broken::LosesAssignments);
}

#[test]
fn attempts_that_are_not_read() {
    caught(Broken::ForgetsAttempts);
}

#[test]
fn a_key_of_a_redrive_that_is_not_looked_at() {
    caught(Broken::IgnoresRedriveKeys);
}

#[test]
fn a_redrive_of_a_job_that_was_misread() {
    caught(Broken::RedrivesMisread);
}

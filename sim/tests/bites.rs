//! The checker bites: each rule that is broken on purpose is caught within 200 seeds.

use mesh_sim::{Broken, run};

/// The first seed that catches it, and what it says.
fn caught(broken: Broken) -> (u64, String) {
    let found = (0..200).find_map(|seed| Some((seed, run(seed, Some(broken), false).broken?)));
    found.unwrap_or_else(|| panic!("{broken:?} is not caught by 200 seeds"))
}

#[track_caller]
fn says(broken: Broken, words: &[&str]) {
    let (seed, why) = caught(broken);
    assert!(words.iter().any(|word| why.contains(word)), "seed {seed} catches {broken:?} by chance: {why}");
}

#[test]
fn a_result_without_attempt_check() {
    says(Broken::NoAttemptCheck, &["but its process"]);
}

#[test]
fn saying_before_the_commit() {
    says(Broken::SaysBeforeCommit, &["said, but not committed"]);
}

#[test]
fn replacing_before_offline() {
    says(Broken::ReplacesBeforeOffline, &["given up too early"]);
}

#[test]
fn a_replacement_that_does_not_end_the_old_attempt() {
    says(Broken::LeavesOldAttempt, &["its open attempts are"]);
}

#[test]
fn a_withdrawal_without_answer() {
    says(Broken::WithdrawsUnanswered, &["given back"]);
}

#[test]
fn an_inventory_that_is_ignored() {
    says(Broken::IgnoresInventory, &["given up too early"]);
}

#[test]
fn a_commit_without_epoch_check() {
    says(
        Broken::NoEpochCheck,
        &["has no row", "changes", "open attempts", "attempt", "counts back", "is ", "lead"],
    );
}

#[test]
fn a_replaced_attempt_that_is_kept() {
    says(Broken::KeepsReplaced, &["it lives on"]);
}

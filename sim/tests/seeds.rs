//! Seeds that every test run plays: all promises hold under each of them, everything that the
//! simulation can do is really done, and the same seed gives the same history.

use std::collections::BTreeMap;

use mesh_sim::{replay, run};

const SEEDS: u64 = 240;
const SHARDS: u64 = 8;

/// Seeds that once found a bug, one a line, with what it was.
const REGRESSIONS: &str = include_str!("regressions.txt");

#[test]
fn a_seed_that_once_found_a_bug_finds_none() {
    let seeds = REGRESSIONS.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let mut played = 0;
    for line in seeds {
        let seed = line.split_whitespace().next().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| panic!("not a seed: {line}"));
        if let Some(why) = run(seed, None, false).broken {
            panic!("seed {line}: {why}\n  to see all of it: {}", replay(seed, None));
        }
        played += 1;
    }
    assert!(played > 0);
}

/// Plays every eighth seed, and says what happened how often.
fn shard(number: u64) -> BTreeMap<&'static str, u64> {
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in (0..SEEDS).filter(|seed| seed % SHARDS == number) {
        let outcome = run(seed, None, false);
        if let Some(why) = outcome.broken {
            panic!("seed {seed}: {why}\n  to see all of it: {}", replay(seed, None));
        }
        for (what, count) in outcome.counts {
            *counts.entry(what).or_default() += count;
        }
    }
    counts
}

#[test]
fn promises_hold_0() {
    shard(0);
}

#[test]
fn promises_hold_1() {
    shard(1);
}

#[test]
fn promises_hold_2() {
    shard(2);
}

#[test]
fn promises_hold_3() {
    shard(3);
}

#[test]
fn promises_hold_4() {
    shard(4);
}

#[test]
fn promises_hold_5() {
    shard(5);
}

#[test]
fn promises_hold_6() {
    shard(6);
}

/// A simulation in which nothing goes wrong proves nothing.
#[test]
fn promises_hold_7_and_what_can_go_wrong_does() {
    let counts = shard(7);
    for what in [
        "acknowledged job is lost",
        "attempt buried",
        "attempt given back",
        "attempt lost",
        "attempt taken up",
        "cancel acknowledged",
        "commit fails",
        "commit given up",
        "commit lands, answer lost",
        "connection breaks",
        "coordinator dies",
        "coordinator stands still",
        "cut off from the database",
        "daemon killed",
        "database accepted",
        "database down",
        "database goes back in time",
        "dead letters redriven",
        "database read-only",
        "database slow",
        "lease is over",
        "lock broken",
        "link flaps",
        "machine reboots",
        "mesh halts",
        "message comes twice",
        "message lost",
        "partition",
        "poison event refused",
        "redrive acknowledged",
        "series begun",
        "stale word",
        "stands by",
        "steps down",
        "takes over",
        "task cancelled",
        "task completed",
        "task failed",
        "verdict: kill",
        "wall clock jumps",
        "withdrawal asked",
        "write refused",
    ] {
        assert!(counts.contains_key(what), "never happened: {what}; all: {counts:?}");
    }
}

/// In every third world: most attempts that stand in line have their turn, others are given back or ended.
#[test]
fn lines_form_and_attempts_have_their_turn_in_them() {
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in (2..60).step_by(3) {
        for (what, count) in run(seed, None, false).counts {
            *counts.entry(what).or_default() += count;
        }
    }
    let of = |what| counts.get(what).copied().unwrap_or(0);
    assert!(of("has its turn in line") > of("stands in line") / 2, "{counts:?}");
    assert!(of("returned from line") > 0 && of("killed in line") > 0, "{counts:?}");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in [3, 14, 159] {
        let (one, two) = (run(seed, None, false), run(seed, None, false));
        assert_eq!((one.digest, one.happenings), (two.digest, two.happenings), "seed {seed}");
    }
    assert_ne!(run(3, None, false).digest, run(4, None, false).digest);
}

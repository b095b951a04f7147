//! What follows from the end of an attempt: a pure table.

use mesh_proto::ids::AttemptKey;

use super::{
    event::AttemptEnd,
    types::{Cause, Retry},
};

/// What becomes of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Completed,
    Cancelled,
    Failed,
    /// Another attempt after this many milliseconds.
    Again(u64),
}

/// Who answers for a bad end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The task itself: counted against `retry.attempts`.
    Task,
    /// The infrastructure: counted against `retry.max_lost`.
    Infrastructure,
}

/// Whose fault a cause is.
#[must_use]
pub fn blame(cause: Cause) -> Blame {
    match cause {
        Cause::Exit
        | Cause::Signal
        | Cause::Timeout
        | Cause::Oom
        | Cause::Disk
        | Cause::Output
        | Cause::Staging
        | Cause::Sandbox => Blame::Task,
        // An end that nobody asked for and that no process chose.
        Cause::Unspecified | Cause::Infra | Cause::Lost | Cause::Cancelled | Cause::Fenced => {
            Blame::Infrastructure
        }
    }
}

/// Decides by the end, whether a cancel was asked for, and the failures so far, this one
/// included: `(own, lost)`.
#[must_use]
pub fn next(
    attempt: AttemptKey,
    end: &AttemptEnd,
    cancelling: bool,
    failures: (u32, u32),
    retry: &Retry,
    lost_backoff_ms: u64,
) -> Next {
    if end.is_success() {
        return Next::Completed;
    }
    if cancelling {
        return Next::Cancelled;
    }
    let (own, lost) = failures;
    match blame(end.cause) {
        Blame::Infrastructure if lost > retry.max_lost => Next::Failed,
        Blame::Infrastructure if end.cause == Cause::Lost => Next::Again(0),
        Blame::Infrastructure => Next::Again(backoff(attempt, lost, lost_backoff_ms, retry.max_backoff_ms)),
        Blame::Task if own >= retry.attempts || !retry.on.contains(&end.cause) => Next::Failed,
        Blame::Task => Next::Again(backoff(attempt, own, retry.backoff_ms, retry.max_backoff_ms)),
    }
}

/// Doubles from `base` up to `max`, less up to a quarter that differs from attempt to attempt,
/// so that the tasks of an array do not come back all at once. In milliseconds.
fn backoff(attempt: AttemptKey, failures: u32, base: u64, max: u64) -> u64 {
    let doubled = base.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(max);
    doubled - doubled / 4 * spread(attempt) / 256
}

/// 0 to 255, told by the attempt alone: spread without randomness (the finaliser of `SplitMix64`,
/// Steele and others, 2014).
fn spread(attempt: AttemptKey) -> u64 {
    let AttemptKey { task, number } = attempt;
    let parts = [task.job.0, u64::from(task.task), u64::from(task.index), u64::from(number)];
    let mixed = parts.iter().fold(0_u64, |seed, part| {
        let mut x = (seed ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    });
    mixed >> 56
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mesh_proto::ids::{JobNumber, TaskKey};
    use proptest::prelude::*;

    use super::*;

    const KEY: AttemptKey = attempt(0, 1);

    const fn attempt(index: u32, number: u32) -> AttemptKey {
        AttemptKey { task: TaskKey { job: JobNumber(1), task: 0, index }, number }
    }

    fn retry(attempts: u32) -> Retry {
        Retry {
            attempts,
            on: vec![Cause::Exit, Cause::Timeout],
            backoff_ms: 1000,
            max_backoff_ms: 60_000,
            max_lost: 2,
        }
    }

    fn end(cause: Cause, code: Option<i32>) -> AttemptEnd {
        AttemptEnd { exit_code: code, ..AttemptEnd::declared(cause, "") }
    }

    #[test]
    fn the_table() {
        let go = |cause, code, cancelling, failures| {
            next(KEY, &end(cause, code), cancelling, failures, &retry(2), 200)
        };
        assert_eq!(go(Cause::Exit, Some(0), false, (0, 0)), Next::Completed);
        assert_eq!(go(Cause::Exit, Some(0), true, (0, 0)), Next::Completed, "it finished before the cancel");
        assert_eq!(go(Cause::Exit, Some(1), true, (1, 0)), Next::Cancelled);
        assert_eq!(go(Cause::Cancelled, None, true, (0, 1)), Next::Cancelled);
        assert!(matches!(go(Cause::Exit, Some(1), false, (1, 0)), Next::Again(750..=1000)));
        assert_eq!(go(Cause::Exit, Some(1), false, (2, 0)), Next::Failed);
        assert_eq!(go(Cause::Signal, None, false, (1, 0)), Next::Failed, "not in retry.on");
        assert_eq!(go(Cause::Lost, None, false, (0, 2)), Next::Again(0));
        assert_eq!(go(Cause::Lost, None, false, (0, 3)), Next::Failed, "it keeps taking nodes down");
        assert!(matches!(go(Cause::Infra, None, false, (0, 1)), Next::Again(150..=200)));
        assert!(matches!(go(Cause::Cancelled, None, false, (0, 1)), Next::Again(150..=200)), "nobody asked");
    }

    proptest! {
        #[test]
        fn backoff_stays_within_its_bounds(index in any::<u32>(), number in any::<u32>(), failures in 1_u32..64, base in 0_u64..100_000, max in 0_u64..1_000_000) {
            let wait = backoff(attempt(index, number), failures, base, max);
            prop_assert!(wait <= max);
            prop_assert!(wait * 4 + 4 >= base.min(max) * 3);
        }
    }

    /// Tasks that failed together, and the attempts of one task, come back apart.
    #[test]
    fn backoff_differs_from_attempt_to_attempt() {
        let apart = |attempts: &mut dyn Iterator<Item = AttemptKey>| {
            attempts.map(|attempt| backoff(attempt, 1, 60_000, 60_000)).collect::<BTreeSet<u64>>().len()
        };
        assert!(apart(&mut (0..1000).map(|index| attempt(index, 1))) > 200);
        assert!(apart(&mut (1..100).map(|number| attempt(7, number))) > 60);
    }
}

//! What follows from the end of an attempt: a pure table.

use mesh_proto::ids::TaskKey;

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
    key: TaskKey,
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
        Blame::Infrastructure => Next::Again(backoff(key, lost, lost_backoff_ms, retry.max_backoff_ms)),
        Blame::Task if own >= retry.attempts || !retry.on.contains(&end.cause) => Next::Failed,
        Blame::Task => Next::Again(backoff(key, own, retry.backoff_ms, retry.max_backoff_ms)),
    }
}

/// Doubles from `base` up to `max`, less up to a quarter that differs from task to task, so
/// that the tasks of an array do not come back all at once. In milliseconds.
fn backoff(key: TaskKey, failures: u32, base: u64, max: u64) -> u64 {
    let doubled = base.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(max);
    // A multiplicative hash (Knuth): spread, without randomness.
    let spread = u64::from(key.index.wrapping_add(key.task).wrapping_mul(2_654_435_761) >> 24);
    doubled - doubled / 4 * spread / 256
}

#[cfg(test)]
mod tests {
    use mesh_proto::ids::JobNumber;
    use proptest::prelude::*;

    use super::*;

    const KEY: TaskKey = TaskKey { job: JobNumber(1), task: 0, index: 0 };

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
        assert_eq!(go(Cause::Exit, Some(1), false, (1, 0)), Next::Again(1000));
        assert_eq!(go(Cause::Exit, Some(1), false, (2, 0)), Next::Failed);
        assert_eq!(go(Cause::Signal, None, false, (1, 0)), Next::Failed, "not in retry.on");
        assert_eq!(go(Cause::Lost, None, false, (0, 2)), Next::Again(0));
        assert_eq!(go(Cause::Lost, None, false, (0, 3)), Next::Failed, "it keeps taking nodes down");
        assert_eq!(go(Cause::Infra, None, false, (0, 1)), Next::Again(200));
        assert_eq!(go(Cause::Cancelled, None, false, (0, 1)), Next::Again(200), "nobody asked for it");
    }

    proptest! {
        #[test]
        fn backoff_stays_within_its_bounds(index in any::<u32>(), failures in 1_u32..64, base in 0_u64..100_000, max in 0_u64..1_000_000) {
            let wait = backoff(TaskKey { index, ..KEY }, failures, base, max);
            prop_assert!(wait <= max);
            prop_assert!(wait * 4 + 4 >= base.min(max) * 3);
        }
    }
}

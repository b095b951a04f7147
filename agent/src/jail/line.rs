//! Attempts that stand in line: each is to start when another is over, in whose slot it is to run.
//! None of them has begun, so nothing of one is on disk and it may be dropped at any moment; none waits
//! long, for what stands behind a long one may have a place elsewhere by now.

use std::{collections::VecDeque, time::Duration};

use mesh_proto::ids::AttemptKey;

use super::protocol::{IN_LINE, StartRequest};

/// The most that stand in line.
const MOST: usize = 4096;

struct Waiting {
    request: Box<StartRequest>,
    after: AttemptKey,
    until: Duration,
}

/// All lines of a jail.
#[derive(Default)]
pub struct Line {
    /// As they came, and so in the order in which their time is up.
    waiting: VecDeque<Waiting>,
}

impl Line {
    pub fn holds(&self, attempt: AttemptKey) -> bool {
        self.waiting.iter().any(|waiting| waiting.request.attempt == attempt)
    }

    /// What was asked of an attempt that stands in line.
    pub fn request(&self, attempt: AttemptKey) -> Option<&StartRequest> {
        let waiting = self.waiting.iter().find(|waiting| waiting.request.attempt == attempt)?;
        Some(&waiting.request)
    }

    /// Lets an attempt stand behind `after` from now on; false when there is no place.
    pub fn join(&mut self, request: Box<StartRequest>, after: AttemptKey, now: Duration) -> bool {
        let free = self.waiting.len() < MOST && self.waiting.iter().all(|waiting| waiting.after != after);
        if free {
            self.waiting.push_back(Waiting { request, after, until: now.saturating_add(IN_LINE) });
        }
        free
    }

    /// Whose turn it is when `over` is over.
    pub fn next(&mut self, over: AttemptKey) -> Option<Box<StartRequest>> {
        let place = self.waiting.iter().position(|waiting| waiting.after == over)?;
        self.waiting.remove(place).map(|waiting| waiting.request)
    }

    /// Takes an attempt out.
    pub fn leave(&mut self, attempt: AttemptKey) -> bool {
        let place = self.waiting.iter().position(|waiting| waiting.request.attempt == attempt);
        place.and_then(|place| self.waiting.remove(place)).is_some()
    }

    /// When somebody's time is up.
    pub fn due(&self) -> Option<Duration> {
        self.waiting.front().map(|first| first.until)
    }

    /// Takes out whose time is up. What stands behind them is left to [`Self::leave_behind`].
    pub fn overdue(&mut self, now: Duration) -> Option<AttemptKey> {
        self.waiting.pop_front_if(|first| first.until <= now).map(|first| first.request.attempt)
    }

    /// Takes out all that stand behind this one, directly or not.
    pub fn leave_behind(&mut self, attempt: AttemptKey) -> Vec<AttemptKey> {
        let mut left = Vec::new();
        let mut before = attempt;
        while let Some(request) = self.next(before) {
            before = request.attempt;
            left.push(before);
        }
        left
    }

    /// How many stand behind this one, directly or not.
    pub fn behind(&self, attempt: AttemptKey) -> usize {
        let next = |before: &AttemptKey| {
            let next = self.waiting.iter().find(|waiting| waiting.after == *before)?;
            Some(next.request.attempt)
        };
        std::iter::successors(next(&attempt), next).count()
    }

    /// Takes everybody out.
    pub fn clear(&mut self) -> Vec<AttemptKey> {
        self.waiting.drain(..).map(|waiting| waiting.request.attempt).collect()
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::ids::{JobNumber, TaskKey};

    use super::{super::plan::tests::request, *};

    const fn key(index: u32) -> AttemptKey {
        AttemptKey { task: TaskKey { job: JobNumber(1), task: 0, index }, number: 1 }
    }

    fn join(line: &mut Line, index: u32, after: u32, now: Duration) -> bool {
        line.join(Box::new(StartRequest { attempt: key(index), ..request() }), key(after), now)
    }

    #[test]
    fn each_has_its_turn_behind_the_one_it_named() {
        let mut line = Line::default();
        for index in 1..4 {
            assert!(join(&mut line, index, index - 1, Duration::ZERO));
        }
        assert!(!join(&mut line, 9, 1, Duration::ZERO), "two behind one");
        assert_eq!((line.behind(key(0)), line.behind(key(2)), line.behind(key(3))), (3, 1, 0));
        assert!(line.next(key(3)).is_none());
        assert_eq!(line.next(key(0)).unwrap().attempt, key(1));
        assert!(!line.holds(key(1)) && line.holds(key(2)));
        assert_eq!(line.leave_behind(key(1)), [key(2), key(3)]);
        assert_eq!(line.due(), None);
    }

    #[test]
    fn nobody_waits_for_longer_than_may_be() {
        let mut line = Line::default();
        let later = Duration::from_millis(3);
        assert!(join(&mut line, 1, 0, Duration::ZERO) && join(&mut line, 5, 4, later));
        assert_eq!(line.due(), Some(IN_LINE));
        assert_eq!(line.overdue(IN_LINE.saturating_sub(later)), None);
        assert_eq!((line.overdue(IN_LINE), line.overdue(IN_LINE)), (Some(key(1)), None));
        assert!(line.leave(key(5)) && !line.leave(key(5)));
        assert!(line.clear().is_empty());
    }
}

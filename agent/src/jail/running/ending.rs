//! The ending of an attempt from the jail's side: who wants it, what is sent when, what is due next.

use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};

use super::{
    super::{
        clock,
        protocol::{ExitCause, Killer},
    },
    Kept, Running, Verdict,
};

/// How long a keeper outside of a pid namespace may hunt before it is killed and the jail hunts.
const HUNT: Duration = Duration::from_secs(5);

/// Why the jail ends an attempt.
#[derive(Clone, Debug)]
pub enum Reason {
    TimedOut,
    Killed(Killer),
    OutOfMemory,
    OutputLost(String),
}

/// How far the ending is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// SIGTERM was sent.
    Asked,
    /// Everything was to be killed.
    Forced,
    /// The keeper itself was killed.
    Over,
}

#[derive(Clone, Debug)]
pub struct Ending {
    pub reason: Reason,
    /// When the next stage begins.
    pub next: Duration,
    pub stage: Stage,
}

impl Running {
    /// Ends it on request.
    pub fn kill(&mut self, grace: Duration) {
        self.end(&Reason::Killed(Killer::Request), grace);
    }

    /// Ends it because the jail ends, with its own grace.
    pub fn shut(&mut self, killer: Killer) {
        self.end(&Reason::Killed(killer), self.grace);
    }

    /// Its lease, if it lives on one, goes on until then.
    pub fn prolong(&mut self, until: Duration) {
        self.lease = self.lease.map(|lease| lease.max(until));
    }

    /// Ends it because the jail cannot serve it.
    pub fn lose(&mut self, reason: &str) {
        self.end(&Reason::OutputLost(reason.to_owned()), Duration::ZERO);
    }

    pub(super) fn end(&mut self, reason: &Reason, grace: Duration) {
        if self.verdict.is_some() {
            return;
        }
        let now = clock::boot();
        match &mut self.ending {
            Some(ending) if ending.stage == Stage::Asked => {
                ending.next = ending.next.min(now.saturating_add(grace));
            }
            Some(_) => {}
            None => {
                self.ending = Some(Ending {
                    reason: reason.clone(),
                    next: now.saturating_add(grace),
                    stage: Stage::Asked,
                });
                if !grace.is_zero() {
                    self.signal(Signal::TERM);
                }
            }
        }
        self.tick(now);
    }

    /// Passes a request on to the keeper. A standing one forgets, when it takes an order, what was sent
    /// for the task before: it is told once it says that this one runs ([`Self::pass_on`]).
    fn signal(&self, signal: Signal) {
        if self.runs || matches!(self.kept, Kept::Own { .. }) {
            let _gone = pidfd_send_signal(&self.kept.keeper().pidfd, signal);
        }
    }

    /// What was asked for before a standing keeper said that the command runs.
    pub(super) fn pass_on(&self) {
        if let (Kept::Standing(_), Some(ending)) = (&self.kept, &self.ending) {
            match ending.stage {
                Stage::Asked => self.signal(Signal::TERM),
                Stage::Forced => self.signal(Signal::USR1),
                Stage::Over => {}
            }
        }
    }

    /// When it next wants a [`tick`](Self::tick) or to [`announce`](Self::announce).
    pub fn due(&self) -> impl Iterator<Item = Duration> {
        self.deadline().into_iter().chain(self.announce)
    }

    /// When something of it ends.
    fn deadline(&self) -> Option<Duration> {
        self.next_stage().into_iter().chain(self.patience).min()
    }

    /// When its ending begins or goes on.
    fn next_stage(&self) -> Option<Duration> {
        match &self.ending {
            // A task that was asked to end has no longer than its lease either.
            Some(ending) if ending.stage == Stage::Asked => {
                Some(self.lease.map_or(ending.next, |lease| ending.next.min(lease)))
            }
            Some(ending) => (ending.stage != Stage::Over).then_some(ending.next),
            None if self.verdict.is_some() => None,
            None => {
                let timeout = self.timeout.filter(|_| self.runs);
                let timeout = timeout.map(|timeout| self.began.saturating_add(timeout));
                self.lease.into_iter().chain(timeout).min()
            }
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Duration) {
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        if self.patience.is_some_and(|until| until <= now) {
            // Nothing runs yet, and nothing would ever be heard of it.
            self.patience = None;
            let why = "the keeper that stands ready does not answer".to_owned();
            self.verdict = Some(Verdict::Failed(ExitCause::SpawnFailed(why)));
            let _gone = pidfd_send_signal(&self.kept.keeper().pidfd, Signal::KILL);
            return;
        }
        let lease_is_over = self.lease.is_some_and(|lease| lease <= now);
        let Some(ending) = &mut self.ending else {
            // A lease has room for the killing behind its end, not for more.
            if lease_is_over {
                self.end(&Reason::Killed(Killer::Lease), Duration::ZERO);
            } else {
                self.end(&Reason::TimedOut, self.grace);
            }
            return;
        };
        match ending.stage {
            Stage::Asked if !self.contained => {
                // The keeper hunts; see `keeper::END_NOW`.
                ending.stage = Stage::Forced;
                ending.next = now + HUNT;
                self.signal(Signal::USR1);
            }
            Stage::Asked | Stage::Forced => {
                let _gone = pidfd_send_signal(&self.kept.keeper().pidfd, Signal::KILL);
                ending.stage = Stage::Over;
            }
            Stage::Over => {}
        }
    }
}

//! The way to the lead: a coordinator looks who leads, waits until that one has stood still, takes the
//! lead under a new epoch and reads everything.

use coordinator::engine::{Engine, Snapshot};

use crate::{
    broken::Broken,
    coordinator::{BEAT, Claim, RETRY, TAKEOVER},
    invariant::Invariant,
    network::Point,
    plan::{MS, Micros},
    transaction::TxAnswer,
    witness::Witness,
    world::{Happening, World},
};

const LOOK: Micros = 250 * MS;
/// A former leader that stands in the middle of a commit holds its row for so long.
const LOCK_WAIT: Micros = 500 * MS;

/// What is read as a broken rule would have it.
fn misread(broken: Broken, snapshot: &mut Snapshot) {
    for definition in snapshot.jobs.iter_mut().flat_map(|job| &mut job.tasks) {
        if broken == Broken::ForgetsAttempts {
            for index in definition.failed.iter().flatten() {
                definition.past.take(index);
            }
        }
    }
}

impl World {
    /// Looks who leads, and whether that one still moves.
    pub fn look_at_lead(&mut self, life: u64) {
        let host = self.turn;
        if self.core_of(life).is_none() {
            return;
        }
        if self.cut_off(host) {
            return self.term_failed(life);
        }
        let (at, holder, boot) = (self.database.point(), self.database.holder, self.clock());
        let hasty = self.broken == Some(Broken::TakesOverAtOnce);
        let Some(core) = self.core_of(life) else { return };
        core.saw(at);
        let still = core.look(at, boot);
        let own = match core.claim {
            Claim::Start => true,
            Claim::Epoch(epoch) => epoch == at.epoch,
            Claim::Deposed => false,
        };
        if holder.is_none() || holder == Some(host) && own || still >= TAKEOVER || hasty {
            let (wait, since) = (self.database_wait(), self.now);
            return self.after(wait, Happening::Seize { life, at, since });
        }
        self.history.note(self.now, "stands by", format_args!("{host}"));
        self.after(LOOK, Happening::Look { life });
    }

    /// Takes the lead as it was seen, under a new epoch.
    pub fn seize(&mut self, life: u64, at: Point, since: Micros) {
        let host = self.turn;
        if self.core_of(life).is_none() {
            return;
        }
        if self.cannot_write(host) {
            return self.term_failed(life);
        }
        let locked = self.broken != Some(Broken::NoEpochCheck) && self.leader_is_locked();
        if locked && self.now - since < LOCK_WAIT {
            return self.after(MS, Happening::Seize { life, at, since });
        }
        if locked {
            self.break_locks();
        }
        if self.database.point() != at {
            // It moved after all.
            return self.look_at_lead(life);
        }
        self.check_nobody_leads(host);
        if self.database.holder.is_some_and(|holder| holder != host) {
            self.history.note(self.now, "takes over", format_args!("{host}"));
        }
        if self.broken != Some(Broken::SharesEpoch) || self.database.epoch == 0 {
            self.database.epoch += 1;
        }
        self.database.seq += 1;
        self.database.holder = Some(host);
        let (epoch, seq, halted) = (self.database.epoch, self.database.seq, self.database.halted);
        let (point, timeline) = (self.database.point(), self.timeline);
        self.history.note(self.now, "lead taken", format_args!("epoch {epoch} by {host}"));
        let (snapshot, boot) = (Box::new(self.database.snapshot()), self.clock());
        let clock = (self.database_time(), boot);
        let load = self.database_wait();
        let ready = self.now + load;
        let Some(core) = self.core_of(life) else { return };
        core.epoch = epoch;
        core.standing = point;
        core.timeline = timeline;
        core.halted = halted;
        core.clock = clock;
        core.claim = Claim::Epoch(epoch);
        core.wait = RETRY.0;
        core.moved(seq, boot);
        let went_back = core.went_back;
        if halted {
            self.end_sessions();
        } else if went_back && self.checks_history() {
            self.halt("the database is behind its coordinator");
        }
        self.after(load.min(BEAT), Happening::Loaded { life, snapshot, ready });
    }

    /// Nobody takes the lead of one whose lease holds.
    fn check_nobody_leads(&mut self, host: usize) {
        let reigns = |at: &usize| {
            let other = &self.hosts[*at];
            let lease =
                other.process.as_ref().filter(|core| core.engine.is_some()).map(|core| core.lease_until);
            let same = other.process.as_ref().is_some_and(|core| core.timeline == self.timeline);
            // One that is halted gives no leases.
            let same = same && other.process.as_ref().is_some_and(|core| !core.halted);
            *at != host && same && lease.is_some_and(|until| other.clock.read(self.now) < until)
        };
        if self.database.holder.is_some()
            && let Some(other) = (0..self.hosts.len()).find(reigns)
        {
            let why = format!("{host} takes the lead while {other} holds a lease");
            self.history.fail(self.now, Invariant::LeaseExclusive, why);
        }
    }

    /// Everything was read; while that takes long, the lead goes on beating.
    pub fn loaded(&mut self, life: u64, snapshot: Box<Snapshot>, ready: Micros) {
        let (host, timeline) = (self.turn, self.timeline);
        let gone = self.core_of(life).is_some_and(|core| core.timeline != timeline);
        if self.cut_off(host) || gone {
            return self.term_failed(life);
        }
        let (now, time, boot) = (self.now, self.time(), self.clock());
        let (epoch, settings, broken) = (self.database.epoch, self.plan.settings.clone(), self.broken);
        let Some(core) = self.core_of(life) else { return };
        if now < ready {
            if core.epoch != epoch {
                return self.step_down(life);
            }
            if self.cannot_write(host) {
                return self.term_failed(life);
            }
            self.database.seq += 1;
            let seq = self.database.seq;
            if let Some(core) = self.core_of(life) {
                core.moved(seq, boot);
            }
            return self.after((ready - now).min(BEAT), Happening::Loaded { life, snapshot, ready });
        }
        let mut snapshot = *snapshot;
        if let Some(broken) = broken {
            misread(broken, &mut snapshot);
        }
        core.engine = Some(Engine::restore(settings, snapshot, time));
        core.untouched = true;
        core.tick_at = now;
        core.beat_at = now;
        core.witness = Witness::new(time);
        self.pump();
    }

    /// The connections that hold the leader's row are ended: who took the lead has seen their
    /// leader stand still.
    fn break_locks(&mut self) {
        let held: Vec<u64> =
            self.transactions.iter().filter(|(_, open)| open.locked).map(|(tx, _)| *tx).collect();
        for tx in held {
            self.history.note(self.now, "lock broken", format_args!("{tx}"));
            if let Some(gone) = self.transactions.remove(&tx) {
                self.after(MS, Happening::Committed { life: gone.life, tx, answer: TxAnswer::Failed });
            }
        }
    }

    pub fn leader_is_locked(&self) -> bool {
        self.transactions.values().any(|tx| tx.locked && tx.timeline == self.timeline)
    }
}

//! A database that goes back in time, as when an older copy of it is restored or a stand-by that
//! lagged behind is promoted. Every connection to it breaks. Who has seen later commits halts the
//! mesh, by the rules of `grpc/node/register.rs` and `commit/core.rs`, until an operator accepts what
//! is left (`store/history.rs`).

use std::collections::BTreeSet;

use mesh_proto::ids::{AttemptKey, JobNumber, NodeId};

use crate::{
    broken::Broken,
    invariant::Invariant,
    network::{Down, Message, Point},
    plan::{MS, SECOND},
    world::{Happening, World},
};

/// Jobs, and attempts of every task, are numbered on from the next but one multiple of this.
const NUMBERS: u64 = 10_000;

/// What was committed in a history that is over and is not in the one that goes on.
#[derive(Debug, Default)]
pub struct Lost {
    /// Attempts that were assigned.
    pub assigned: BTreeSet<(AttemptKey, NodeId)>,
    /// Attempts whose end was committed, in whatever history.
    pub ended: BTreeSet<(AttemptKey, NodeId)>,
}

impl World {
    /// A copy of the database is taken.
    pub fn copy_database(&mut self) {
        self.copy = Some(Box::new(self.database.clone()));
    }

    /// The copy takes the place of the database.
    pub fn restore_database(&mut self) {
        let Some(copy) = self.copy.take() else { return };
        let old = std::mem::replace(&mut self.database, *copy);
        self.timeline += 1;
        self.database.timeline = self.timeline;
        self.restored_to = Some(self.database.point());
        self.history.note(
            self.now,
            "database goes back in time",
            format_args!("from {:?} to {:?}", old.point(), self.database.point()),
        );
        for (key, row) in &old.attempts {
            if row.ended.is_some() {
                self.history.lost.ended.insert((*key, row.node));
            }
            if self.database.attempts.get(key).is_none_or(|kept| kept.node != row.node) {
                self.history.lost.assigned.insert((*key, row.node));
            }
        }
        let nodes = &self.database.nodes;
        self.history
            .cordoned
            .retain(|id| nodes.get(id).is_some_and(|record| record.cordoned || record.draining));
        self.people_look_again();
    }

    /// Whether what happens now is of a term that led another history.
    #[must_use]
    pub fn is_of_lost_history(&self) -> bool {
        self.core().is_some_and(|core| core.timeline != self.timeline)
    }

    /// Somebody tells of commits that this coordinator's database does not have.
    pub fn is_ahead(&self, seen: Point) -> bool {
        let mine = self.standing();
        let within = seen.epoch <= mine.epoch && seen.seq <= mine.seq;
        seen.incarnation > mine.incarnation || seen.incarnation == mine.incarnation && !within
    }

    /// Nothing is dispatched or changed any more; every stream ends.
    pub fn halt(&mut self, why: &'static str) {
        self.history.note(self.now, "mesh halts", why);
        let wait = self.database_wait();
        let Some(core) = self.core_mut() else { return };
        core.halted = true;
        if self.broken == Some(Broken::SpeaksHalted) {
            return;
        }
        let Some(core) = self.core_mut() else { return };
        let (life, epoch, timeline) = (core.life, core.epoch, core.timeline);
        self.end_sessions();
        self.after(wait, Happening::KeepHalt { life, epoch, timeline });
    }

    pub fn end_sessions(&mut self) {
        let Some(core) = self.core() else { return };
        let nodes: Vec<NodeId> = core.sessions.keys().copied().collect();
        for node in nodes {
            self.close_session(node);
        }
    }

    /// That it halts is written down, under the fence.
    pub fn keep_halt(&mut self, life: u64, epoch: u64, timeline: u64) {
        let fenced = self.database.epoch != epoch || self.timeline != timeline;
        if self.core_of(life).is_none() || fenced {
            return;
        }
        if self.cannot_write(self.turn) {
            // It is halted all the same, and its operator sees that.
            return self.after(SECOND, Happening::KeepHalt { life, epoch, timeline });
        }
        self.database.seq += 1;
        if !std::mem::replace(&mut self.database.halted, true) {
            self.history.note(self.now, "halt is kept", "");
            // An operator hears of it, and thinks about it.
            let wait = self.rng.skewed(SECOND, 90 * SECOND);
            self.after(wait, Happening::Accept);
        }
    }

    /// An operator accepts the database as it is, until that is acknowledged.
    pub fn accept_database(&mut self) {
        if !self.database.halted {
            return;
        }
        self.turn = self.rng.index(self.hosts.len());
        let epoch = self.database.epoch;
        let asked = self.core().is_some_and(|core| {
            core.leading && core.halted && core.epoch == epoch && core.timeline == self.timeline
        });
        if !asked || self.leader_is_locked() || !self.holds_lease() || self.cannot_write(self.turn) {
            let wait = self.rng.range(100 * MS, 2 * SECOND);
            return self.after(wait, Happening::Accept);
        }
        let database = &mut self.database;
        database.incarnation += 1;
        database.epoch += 1;
        database.seq += 1;
        database.holder = None;
        database.halted = false;
        let last = database.jobs.keys().next_back().map_or(0, |last| last.0);
        database.first_job = (last / NUMBERS + 2) * NUMBERS + 1;
        let last = database.tasks.values().map(|row| u64::from(row.attempt)).max().unwrap_or(0);
        let anew = self.broken != Some(Broken::RepeatsNumbers);
        database.first_attempt = u32::try_from((last / NUMBERS + 2) * NUMBERS + 1).unwrap_or(u32::MAX);
        if !anew {
            database.first_attempt = 1;
        }
        self.history.note(self.now, "database accepted", "");
        self.people_look_again();
    }

    /// People whose job is not there any more submit it again; a cancel that is lost is lost.
    pub fn people_look_again(&mut self) {
        for index in 0..self.clients.len() {
            let Some(number) = self.clients[index].number else { continue };
            if !self.knows(number, self.clients[index].job) {
                self.history.note(self.now, "acknowledged job is lost", number);
                self.submit_again(index);
            } else if self.cancel_is_lost(index) {
                self.history.note(self.now, "acknowledged cancel is lost", number);
            }
        }
    }

    fn knows(&self, number: JobNumber, planned: usize) -> bool {
        let job = self.database.jobs.get(&number);
        job.is_some_and(|job| (job.new.uuid.0.as_u128() >> 64) as usize == planned)
    }

    /// A node obeys a coordinator whose database must not be behind what the node has seen.
    pub fn check_forward(&mut self, node: usize, seen: Point, leader: Point) {
        if seen.incarnation == leader.incarnation && seen.seq > leader.seq {
            let why = format!("node {node} has seen {seen:?} and is answered from {leader:?}");
            self.history.fail(self.now, Invariant::HistoryForward, why);
        }
    }

    /// A node that saw what is lost is served, and nobody noticed: the database has made as many
    /// commits since. That is not promised (`docs/operations.md`), so nothing is concluded.
    pub fn is_unnoticed(&self, node: usize, leader: Point) -> bool {
        let back = self.restored_to.filter(|to| {
            leader.timeline > 0
                && leader.incarnation == to.incarnation
                && self.machines[node].seen_lost > to.seq
        });
        back.is_some()
    }

    /// What leaves a halted coordinator ends something or refuses something.
    pub fn check_halted(&mut self, process: u64, message: &Message) {
        let halted = self.host_of(process).and_then(|host| self.hosts[host].process.as_ref());
        if !halted.is_some_and(|core| core.halted) {
            return;
        }
        let speaks = match message {
            Message::Up(_)
            | Message::Down(
                Down::AssignEnded { .. }
                | Down::ResultsEnded { .. }
                | Down::Registered { answer: Err(_), .. }
                | Down::Beat { answer: Err(_), .. },
            ) => false,
            Message::Down(
                Down::Registered { answer: Ok(_), .. }
                | Down::Beat { answer: Ok(_), .. }
                | Down::Assign { .. }
                | Down::Acks { .. }
                | Down::OutputAck { .. },
            ) => true,
        };
        if speaks {
            self.history.fail(self.now, Invariant::HaltHolds, format!("halted, and says {message:?}"));
        }
    }

    /// Whether agents are asked what they have seen.
    #[must_use]
    pub fn checks_history(&self) -> bool {
        self.broken != Some(Broken::NeverHalts)
    }
}

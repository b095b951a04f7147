//! A commit at the database, statement by statement as far as it matters: the fence that locks
//! the leader's row, the COMMIT, the answer; and everything that can happen to each.

use crate::{
    broken::Broken,
    database::{Landed, Refused, Rows},
    invariant::Invariant,
    plan::{Micros, SECOND},
    trouble::{CommitPoint, Fault},
    world::{Happening, World},
};

const PATIENCE: Micros = 10 * SECOND;
/// Postgres ends a transaction that hears nothing for so long.
const IDLE: Micros = 5 * SECOND;

/// A transaction at the database.
#[derive(Debug)]
pub struct Transaction {
    pub life: u64,
    host: usize,
    epoch: u64,
    /// The history that its connection belongs to.
    pub timeline: u64,
    rows: Rows,
    pub locked: bool,
    pub lands: bool,
    /// When it hears nothing any more it is rolled back.
    stuck_since: Option<Micros>,
    sent: Micros,
    answer: Option<Micros>,
}

/// What the database answers to a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxAnswer {
    /// The new seq, and when the commit was sent by its coordinator's clock.
    Done { seq: u64, sent: Micros },
    /// Poison: the rows were refused.
    Refused,
    /// The epoch is over.
    Fenced,
    /// The connection broke: the outcome is unknown.
    Failed,
}

impl World {
    /// Sends a batch to the database.
    pub fn start_commit(&mut self) {
        let (tx, host, boot) = (self.number(), self.turn, self.clock());
        let early = self.broken == Some(Broken::SaysBeforeCommit);
        let Some(core) = self.core_mut() else { return };
        let mut batch = std::mem::take(&mut core.pending);
        let rows = Rows::of(std::mem::take(&mut batch.fx.writes));
        let beat = rows.is_empty();
        let (life, epoch, timeline) = (core.life, core.epoch, core.timeline);
        let says = if early { std::mem::take(&mut batch.fx.says) } else { Vec::new() };
        core.commit = Some((tx, batch));
        let crash_at = self.hosts[host].crash_at;
        if !beat && let Some((CommitPoint::BeforeSend, down)) = crash_at {
            self.history.note(self.now, "dies before the commit", "");
            return self.crash(down);
        }
        let fence = self.now + self.database_wait() / 4;
        let land = fence + self.database_wait();
        let answer = land + self.rng.range(50, 500);
        let mut transaction = Transaction {
            life,
            host,
            epoch,
            timeline,
            rows,
            locked: false,
            lands: true,
            stuck_since: None,
            sent: boot,
            answer: Some(answer),
        };
        let bad = self.cut_off(host) || self.rng.chance(self.plan.weather.commit) && !self.healed;
        if bad {
            self.spoil(tx, &mut transaction, (fence, land, answer));
        }
        self.transactions.insert(tx, transaction);
        self.at(fence, Happening::Fence { tx });
        self.at(land, Happening::Land { tx });
        self.after(PATIENCE, Happening::GiveUp { life, tx });
        if !beat && let Some((CommitPoint::InFlight, down)) = crash_at {
            self.history.note(self.now, "dies amid the commit", "");
            let when = self.rng.range(self.now, answer);
            self.hosts[host].crash_at = None;
            self.at(when, Happening::Fault(Fault::CrashCoordinator { host, down }));
        }
        self.release(says);
    }

    /// The commit fails, or its answer does not arrive.
    fn spoil(&mut self, tx: u64, transaction: &mut Transaction, times: (Micros, Micros, Micros)) {
        let (fence, land, answer) = times;
        let life = transaction.life;
        transaction.answer = None;
        let kind = if self.cut_off(transaction.host) { 0 } else { self.rng.range(0, 5) };
        transaction.lands = !matches!(kind, 0 | 1);
        let at = match kind {
            0 => fence,
            1 => answer,
            2 => land + 1,
            // The answer is known to be lost before the transaction is through.
            3 => self.rng.range(self.now, land),
            // Nothing is heard of it at all.
            _ => return self.history.note(self.now, "commit without an answer", format_args!("{tx}")),
        };
        let what = if transaction.lands { "commit lands, answer lost" } else { "commit fails" };
        self.history.note(self.now, what, format_args!("{tx}"));
        self.at(at, Happening::Committed { life, tx, answer: TxAnswer::Failed });
    }

    /// A connection to a database that is not there any more.
    fn broke(&mut self, tx: u64) -> bool {
        let broken = self.transactions.get(&tx).is_some_and(|open| open.timeline != self.timeline);
        if broken && let Some(Transaction { life, .. }) = self.transactions.remove(&tx) {
            self.after(1, Happening::Committed { life, tx, answer: TxAnswer::Failed });
        }
        broken
    }

    /// The first statement of a transaction.
    pub fn fence(&mut self, tx: u64) {
        if self.broke(tx) {
            return;
        }
        if self.now < self.database_read_only_until
            && let Some(Transaction { life, .. }) = self.transactions.remove(&tx)
        {
            self.history.note(self.now, "write refused", format_args!("{tx}"));
            return self.after(1, Happening::Committed { life, tx, answer: TxAnswer::Failed });
        }
        let (epoch, fenced) = (self.database.epoch, self.broken != Some(Broken::NoEpochCheck));
        let Some(transaction) = self.transactions.get_mut(&tx) else { return };
        if transaction.epoch == epoch || !fenced {
            transaction.locked = true;
            return;
        }
        let (life, answer) = (transaction.life, transaction.answer);
        self.history.note(self.now, "commit of an old epoch is refused", format_args!("{tx}"));
        self.transactions.remove(&tx);
        if let Some(at) = answer {
            self.at(at, Happening::Committed { life, tx, answer: TxAnswer::Fenced });
        }
    }

    /// COMMIT. A coordinator that stands still, or is cut off, in the middle of its statements
    /// leaves a transaction that holds the leader's row.
    pub fn land(&mut self, tx: u64) {
        if self.broke(tx) {
            return;
        }
        let stuck = self.rng.chance(500);
        let (now, epoch) = (self.now, self.database.epoch);
        let Some(transaction) = self.transactions.get_mut(&tx) else { return };
        let host = &self.hosts[transaction.host];
        let mute = host.process.as_ref().is_some_and(|core| core.life == transaction.life)
            && (now < host.frozen_until || now < host.cut_off_until);
        let since = transaction.stuck_since;
        if mute && (stuck || since.is_some()) {
            if now - *transaction.stuck_since.get_or_insert(now) < IDLE {
                let at = (now + SECOND).min(host.frozen_until.max(host.cut_off_until));
                return self.at(at, Happening::Land { tx });
            }
            transaction.lands = false;
        }
        let Some(transaction) = self.transactions.remove(&tx) else { return };
        let life = transaction.life;
        if !transaction.lands {
            if since.is_some() {
                self.history.note(now, "transaction rolled back for its silence", format_args!("{tx}"));
                self.after(1, Happening::Committed { life, tx, answer: TxAnswer::Failed });
            }
            return;
        }
        if transaction.epoch != epoch {
            let why = format!("a commit of epoch {} lands in epoch {epoch}", transaction.epoch);
            return self.history.fail(now, Invariant::Fenced, why);
        }
        if *self.history.writers.entry((self.timeline, epoch)).or_insert(life) != life {
            let why = format!("life {life} writes in epoch {epoch}, which is another's");
            return self.history.fail(now, Invariant::OneWriter, why);
        }
        let result = if transaction.rows.is_empty() {
            Ok(Landed::default())
        } else {
            self.database.commit(&transaction.rows)
        };
        let answer = match result {
            Ok(landed) => {
                self.database.seq += 1;
                self.history.note(now, "commit", format_args!("seq {}", self.database.seq));
                self.history.landed(now, &landed, &self.database);
                TxAnswer::Done { seq: self.database.seq, sent: transaction.sent }
            }
            Err(Refused::Rows) => {
                self.history.note(now, "rows refused", "");
                TxAnswer::Refused
            }
            Err(Refused::Broken(violation)) => return self.history.report(now, violation),
        };
        if let Some(at) = transaction.answer {
            self.at(at, Happening::Committed { life, tx, answer });
        }
    }

    /// Whether this process waits for this commit.
    fn waits_for(&self, life: u64, tx: u64) -> bool {
        let commit = self.core().filter(|core| core.life == life).and_then(|core| core.commit.as_ref());
        commit.is_some_and(|(waiting, _)| *waiting == tx)
    }

    pub fn give_up_commit(&mut self, life: u64, tx: u64) {
        if self.waits_for(life, tx) {
            self.history.note(self.now, "commit given up", format_args!("{tx}"));
            // Its connection is closed: the database may or may not have had it all.
            self.committed(life, tx, TxAnswer::Failed);
        }
    }

    /// The answer to a commit.
    pub fn committed(&mut self, life: u64, tx: u64, answer: TxAnswer) {
        if !self.waits_for(life, tx) {
            return;
        }
        let lost = self.now < self.hosts[self.turn].cut_off_until;
        if lost && answer != TxAnswer::Failed {
            // It will be given up.
            return self.history.note(self.now, "answer cut off", format_args!("{tx}"));
        }
        let crash_at = self.hosts[self.turn].crash_at;
        let Some(core) = self.core_mut() else { return };
        let Some((_, batch)) = core.commit.take() else { return };
        match answer {
            TxAnswer::Done { seq, sent } => {
                core.moved(seq, sent);
                let beat = batch.events.is_empty() && batch.fx.says.is_empty();
                if !beat && let Some((CommitPoint::BeforeRelease, down)) = crash_at {
                    self.history.note(self.now, "dies before saying", "");
                    return self.crash(down);
                }
                self.release_committed(batch.fx.says);
                self.pump();
            }
            TxAnswer::Refused => {
                let gathered = std::mem::take(&mut core.pending.events);
                if !gathered.is_empty() {
                    core.replay.push_front(gathered);
                }
                self.split(batch.events, batch.fresh);
                self.begin_term();
            }
            TxAnswer::Fenced => self.step_down(life),
            TxAnswer::Failed if self.broken == Some(Broken::TrustsMemory) => self.pump(),
            TxAnswer::Failed => self.rebuild(life),
        }
    }
}

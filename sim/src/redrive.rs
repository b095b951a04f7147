//! People who try dead letters again. They look which there are, name a whole job, a task or some
//! elements of it, and ask until there is an answer: a request whose answer was lost is told again.

use std::sync::Arc;

use coordinator::engine::{
    effect::{Refusal, Reply},
    event::{Event, Redrive, RedriveKey, ReplyId},
    types::{JobState, TaskState},
};
use mesh_proto::ids::{JobNumber, TaskKey};

use crate::{
    broken::Broken,
    edge::Asker,
    invariant::Invariant,
    plan::{MS, SECOND},
    world::{Happening, World},
};

/// How long somebody waits for an answer.
const DEADLINE: u64 = 5 * SECOND;
/// How often somebody asks for what cannot be had yet.
const TRIES: u32 = 40;

/// Dead letters that somebody wants tried again.
#[derive(Debug)]
pub struct Redriver {
    job: JobNumber,
    targets: Vec<(u32, Option<u32>)>,
    /// The call that is waited for, and the host that was asked.
    call: u64,
    asked: usize,
    tries: u32,
    pub done: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum RedriveStep {
    Ask,
    /// The request reached the coordinator.
    Arrives {
        call: u64,
    },
    /// The database was asked for the job.
    Known {
        call: u64,
    },
    /// No answer in time.
    Late {
        call: u64,
    },
}

/// Who asks.
fn redriver(index: usize) -> String {
    format!("redriver {index}")
}

impl World {
    /// Somebody looks for dead letters and wants some of them tried again.
    pub fn look_for_dead(&mut self) {
        let dead: Vec<TaskKey> = self
            .database
            .tasks
            .values()
            .filter(|row| row.state == TaskState::Failed)
            .map(|row| row.key)
            .collect();
        let Some(one) = self.rng.pick(&dead) else { return };
        let targets = match self.rng.range(0, 4) {
            0 | 1 => Vec::new(),
            2 => vec![(one.task, None)],
            _ => {
                let other = self.rng.pick(&dead).filter(|other| other.job == one.job);
                let named = [Some(one), other];
                named.into_iter().flatten().map(|key| (key.task, Some(key.index))).collect()
            }
        };
        self.history.note(self.now, "dead letters redriven", format_args!("{one}: {targets:?}"));
        self.redrivers.push(Redriver { job: one.job, targets, call: 0, asked: 0, tries: 0, done: false });
        self.redrive_step(self.redrivers.len() - 1, RedriveStep::Ask);
    }

    pub fn redrive_step(&mut self, index: usize, step: RedriveStep) {
        let redriver = &self.redrivers[index];
        if redriver.done {
            return;
        }
        let (current, asked) = (redriver.call, redriver.asked);
        self.turn = asked;
        match step {
            RedriveStep::Ask => self.ask_redrive(index),
            RedriveStep::Arrives { call } if call == current => {
                if self.core().is_none_or(|core| !core.leading || core.halted) {
                    return self.redrive_unavailable(index, call);
                }
                let wait = self.database_wait();
                self.after(wait, Happening::Redrive { redriver: index, step: RedriveStep::Known { call } });
            }
            RedriveStep::Known { call } if call == current => self.redrive_known(index, call),
            RedriveStep::Late { call } if call == current => self.redrive_unavailable(index, call),
            RedriveStep::Arrives { .. } | RedriveStep::Known { .. } | RedriveStep::Late { .. } => {}
        }
    }

    fn ask_redrive(&mut self, index: usize) {
        let call = self.number();
        let asked = self.rng.index(self.hosts.len());
        let redriver = &mut self.redrivers[index];
        (redriver.call, redriver.asked) = (call, asked);
        redriver.tries += 1;
        let loss = self.weather().client_loss;
        if !self.rng.chance(loss) {
            let wait = self.rng.skewed(100, 5 * MS);
            self.after(wait, Happening::Redrive { redriver: index, step: RedriveStep::Arrives { call } });
        }
        self.after(DEADLINE, Happening::Redrive { redriver: index, step: RedriveStep::Late { call } });
    }

    /// What `grpc/dead.rs` does before it asks the engine: a job that is over is read.
    fn redrive_known(&mut self, index: usize, call: u64) {
        let leads = self.core().is_some_and(|core| core.leading);
        if self.read_fails() || !leads {
            return self.redrive_unavailable(index, call);
        }
        let Redriver { job, ref targets, .. } = self.redrivers[index];
        if let Some(reply) = self.redriven_before(index) {
            return self.redrive_answered(index, call, &reply);
        }
        let all = self.broken == Some(Broken::RedrivesMisread);
        let targets = if all { Vec::new() } else { targets.clone() };
        let mut stored = self.database.stored(job).filter(|job| job.finished_at.is_some());
        if self.broken == Some(Broken::RedrivesCompleted) {
            for definition in stored.iter_mut().flat_map(|job| &mut job.tasks) {
                for range in std::mem::take(&mut definition.completed).iter() {
                    definition.failed.insert(range.clone());
                    definition.past.insert(range, 1);
                }
            }
        }
        if self.broken == Some(Broken::RedrivesMisread) {
            for definition in stored.iter_mut().flat_map(|job| &mut job.tasks) {
                let wrong = definition.past.among(&definition.cancelled);
                definition.cancelled.subtract(&wrong);
                for range in wrong.iter() {
                    definition.failed.insert(range);
                }
            }
        }
        let key = RedriveKey { key: redriver(index), payload_digest: [0; 32] };
        let key = Some(key).filter(|_| self.broken != Some(Broken::IgnoresRedriveKeys));
        let redrive = Redrive { job, targets, stored, by: redriver(index), detail: String::new(), key };
        let event = Event::JobRedriven { reply: ReplyId(0), redrive: Arc::new(redrive) };
        self.enqueue(event, Some(Asker::Redriver { redriver: index, call }));
    }

    /// What was done before under the same key, and was looked up.
    fn redriven_before(&self, index: usize) -> Option<Reply> {
        let number = self.redrivers[index].job;
        let (redriven, resumed) = *self.database.redrive_keys.get(&(number, redriver(index)))?;
        let state = self.database.jobs.get(&number)?.row.state;
        Some(Reply::Redriven { number, state, redriven, resumed })
    }

    pub fn redrive_answered(&mut self, index: usize, call: u64, reply: &Reply) {
        let loss = self.weather().client_loss;
        if self.redrivers[index].call != call || self.rng.chance(loss) {
            return;
        }
        let Redriver { job, tries, .. } = self.redrivers[index];
        let by = redriver(index);
        // The same may have been told before, and been done since it was looked for.
        let known = matches!(reply, Reply::Refused(_)).then(|| self.redriven_before(index)).flatten();
        let reply = known.as_ref().unwrap_or(reply);
        let row = self.database.jobs.get(&job).map(|job| &job.row);
        let cancelled =
            row.is_some_and(|row| [row.ending, Some(row.state)].contains(&Some(JobState::Cancelled)));
        let right = match reply {
            _ if self.timeline > 0 => true,
            Reply::Redriven { number, redriven, .. } => {
                let done = self.database.redrives.get(&job).is_some_and(|all| all.contains(&by));
                *number == job && *redriven > 0 && done
            }
            // Somebody was faster.
            Reply::Refused(Refusal::NothingDead(of)) => {
                *of == job && self.database.redrives.contains_key(&job)
            }
            Reply::Refused(Refusal::WasCancelled(of)) => *of == job && cancelled,
            Reply::Refused(Refusal::StillEnding(_) | Refusal::Changed(_)) if tries < TRIES => {
                return self.redrive_unavailable(index, call);
            }
            Reply::Refused(Refusal::StillEnding(_) | Refusal::Changed(_)) => true,
            Reply::Refused(
                Refusal::NoSuchJob | Refusal::NoSuchNode | Refusal::KeyUsed(_) | Refusal::Poison(_),
            )
            | Reply::Submitted { .. }
            | Reply::Cancelled { .. }
            | Reply::Registered { .. }
            | Reply::Heard { .. }
            | Reply::Node(_)
            | Reply::Nodes(_)
            | Reply::Explained(_) => false,
        };
        if !right {
            let why = format!("who redrives {job} is answered {reply:?}");
            self.history.fail(self.now, Invariant::RightAnswer, why);
        }
        let what = match reply {
            Reply::Redriven { .. } => "redrive acknowledged",
            _ => "redrive refused",
        };
        self.history.note(self.now, what, job);
        self.redrivers[index].done = true;
    }

    /// Tries again after a while.
    pub fn redrive_unavailable(&mut self, index: usize, call: u64) {
        if self.redrivers[index].call != call || self.redrivers[index].done {
            return;
        }
        self.redrivers[index].call = 0;
        let wait = self.rng.range(100 * MS, 2 * SECOND);
        self.after(wait, Happening::Redrive { redriver: index, step: RedriveStep::Ask });
    }
}

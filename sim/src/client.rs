//! People who submit and cancel jobs. They try again until they have an answer, with the same
//! idempotency key.

use std::sync::Arc;

use coordinator::engine::{
    effect::{Refusal, Reply},
    event::{Event, NewJob, ReplyId},
    types::JobState,
};
use mesh_proto::ids::{JobId, JobNumber};

use crate::{
    broken::Broken,
    database::{POISON, is_final},
    edge::Asker,
    invariant::Invariant,
    plan::{MS, Plan, SECOND},
    world::{Happening, World},
};

/// How long a client waits for an answer.
pub const DEADLINE: u64 = 5 * SECOND;

/// What a client wants at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Submit,
    Cancel,
    Nothing,
}

/// Somebody who submits one job and may cancel it.
#[derive(Debug)]
pub struct Client {
    /// Of the plan.
    pub job: usize,
    /// The call that it waits for, and the host that it asked.
    call: u64,
    asked: usize,
    wish: Wish,
    pub number: Option<JobNumber>,
    refused: bool,
    /// Its cancel was acknowledged.
    cancelled: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum ClientStep {
    Submit,
    Cancel,
    /// The request reached the coordinator.
    Arrives {
        call: u64,
    },
    /// The database was asked whether the key is known, or which job it is.
    Known {
        call: u64,
    },
    /// No answer in time.
    Late {
        call: u64,
    },
}

impl Client {
    #[must_use]
    pub fn all(plan: &Plan) -> Vec<Self> {
        let of = |job| Self {
            job,
            call: 0,
            asked: 0,
            wish: Wish::Submit,
            number: None,
            refused: false,
            cancelled: false,
        };
        let once = (0..plan.jobs.len()).map(of);
        let twice = (0..plan.jobs.len()).filter(|job| plan.jobs[*job].twice).map(of);
        once.chain(twice).collect()
    }
}

impl World {
    pub fn client_step(&mut self, index: usize, step: ClientStep) {
        self.turn = self.clients[index].asked;
        match step {
            ClientStep::Submit | ClientStep::Cancel => self.client_calls(index),
            ClientStep::Arrives { call } if self.clients[index].call == call => {
                if self.core().is_none_or(|core| !core.leading || core.halted) {
                    return self.client_unavailable(index, call);
                }
                let wait = self.database_wait();
                self.after(wait, Happening::Client { client: index, step: ClientStep::Known { call } });
            }
            ClientStep::Known { call } if self.clients[index].call == call => self.client_known(index, call),
            ClientStep::Late { call } if self.clients[index].call == call => {
                self.client_unavailable(index, call);
            }
            ClientStep::Arrives { .. } | ClientStep::Known { .. } | ClientStep::Late { .. } => {}
        }
    }

    fn client_calls(&mut self, index: usize) {
        let call = self.number();
        self.clients[index].call = call;
        self.clients[index].asked = self.rng.index(self.hosts.len());
        let loss = self.weather().client_loss;
        if !self.rng.chance(loss) {
            let wait = self.rng.skewed(100, 5 * MS);
            self.after(wait, Happening::Client { client: index, step: ClientStep::Arrives { call } });
        }
        self.after(DEADLINE, Happening::Client { client: index, step: ClientStep::Late { call } });
    }

    /// What `grpc/jobs.rs` does before and instead of asking the engine.
    fn client_known(&mut self, index: usize, call: u64) {
        let leads = self.core().is_some_and(|core| core.leading);
        if self.read_fails() || !leads {
            return self.client_unavailable(index, call);
        }
        let client = &self.clients[index];
        let (wish, job, number) = (client.wish, client.job, client.number);
        match (wish, number) {
            (Wish::Submit, _) => {
                let new = self.new_job(job);
                let known = new.idempotency_key.as_ref().and_then(|key| self.database.keys.get(key));
                let looks = self.broken != Some(Broken::IgnoresKeys);
                if let Some(number) = known.copied().filter(|_| looks) {
                    return self.submitted(index, number);
                }
                let event = Event::JobSubmitted { reply: ReplyId(0), job: Arc::new(new) };
                self.enqueue(event, Some(Asker::Client { client: index, call }));
            }
            (Wish::Cancel, Some(job)) => {
                if self.broken == Some(Broken::ForgetsCancel) {
                    let state = JobState::Cancelled;
                    return self.client_answered(index, call, &Reply::Cancelled { number: job, state });
                }
                let reason = "enough".to_owned();
                let event = Event::JobCancelled { reply: ReplyId(0), job, reason };
                self.enqueue(event, Some(Asker::Client { client: index, call }));
            }
            (Wish::Cancel | Wish::Nothing, _) => {}
        }
    }

    fn new_job(&mut self, index: usize) -> NewJob {
        let number = self.number();
        let planned = &self.plan.jobs[index];
        NewJob {
            // The upper half says which job of the plan it is.
            uuid: JobId(uuid::Uuid::from_u128(((index as u128) << 64) | u128::from(number))),
            name: if planned.poison { POISON.to_owned() } else { format!("job-{index}") },
            owner: "ann".to_owned(),
            priority: planned.priority,
            keep_going: planned.keep_going,
            idempotency_key: (self.broken != Some(Broken::IgnoresKeys)).then(|| format!("key-{index}")),
            payload_digest: [0; 32],
            spec: bytes::Bytes::new(),
            tasks: planned.definitions.clone(),
        }
    }

    pub fn client_answered(&mut self, index: usize, call: u64, reply: &Reply) {
        let loss = self.weather().client_loss;
        if self.clients[index].call != call || self.rng.chance(loss) {
            return;
        }
        match reply {
            Reply::Submitted { number, .. } => self.submitted(index, *number),
            Reply::Cancelled { .. } => {
                self.history.note(self.now, "cancel acknowledged", format_args!("client {index}"));
                self.clients[index].cancelled = true;
                self.content(index);
            }
            Reply::Refused(Refusal::NoSuchJob) => {
                let number = self.clients[index].number;
                let over = number.and_then(|number| self.database.jobs.get(&number));
                let open = over.is_none_or(|job| !is_final(job.row.state));
                let opened = number.is_some_and(|number| self.database.redrives.contains_key(&number));
                if open && (opened || self.is_of_lost_history()) {
                    // It was over when the engine was asked, and was opened since: asked again.
                    return self.client_unavailable(index, call);
                }
                if open {
                    self.history.fail(
                        self.now,
                        Invariant::AcknowledgedStays,
                        format!("{number:?} is not known, but not over either"),
                    );
                }
                self.content(index);
            }
            Reply::Refused(Refusal::Poison(_)) => {
                if !self.plan.jobs[self.clients[index].job].poison {
                    self.history.fail(
                        self.now,
                        Invariant::PoisonAlone,
                        format!("the job of client {index} is refused for nothing"),
                    );
                }
                self.clients[index].refused = true;
                self.content(index);
            }
            Reply::Refused(
                Refusal::NoSuchNode
                | Refusal::KeyUsed(_)
                | Refusal::NothingDead(_)
                | Refusal::WasCancelled(_)
                | Refusal::StillEnding(_)
                | Refusal::Changed(_),
            )
            | Reply::Redriven { .. }
            | Reply::Registered { .. }
            | Reply::Heard { .. }
            | Reply::Node(_)
            | Reply::Nodes(_)
            | Reply::Explained(_) => {
                self.history.fail(
                    self.now,
                    Invariant::RightAnswer,
                    format!("client {index} is answered {reply:?}"),
                );
            }
        }
    }

    fn submitted(&mut self, index: usize, number: JobNumber) {
        self.history.note(self.now, "submit acknowledged", format_args!("client {index}: {number}"));
        self.clients[index].number = Some(number);
        let cancel = self.plan.jobs[self.clients[index].job].cancel_after;
        self.content(index);
        if let Some(after) = cancel {
            self.clients[index].wish = Wish::Cancel;
            self.after(after, Happening::Client { client: index, step: ClientStep::Cancel });
        }
    }

    /// What was acknowledged is lost with the history that held it.
    pub fn submit_again(&mut self, index: usize) {
        let client = &mut self.clients[index];
        (client.number, client.cancelled, client.wish, client.call) = (None, false, Wish::Submit, 0);
        let wait = self.rng.range(100 * MS, 2 * SECOND);
        self.after(wait, Happening::Client { client: index, step: ClientStep::Submit });
    }

    /// Whether a cancel was acknowledged in a history that is over; then it does not count.
    pub fn cancel_is_lost(&mut self, index: usize) -> bool {
        let client = &self.clients[index];
        let row = client.number.and_then(|number| self.database.jobs.get(&number)).map(|job| &job.row);
        let holds = row.is_some_and(|row| [row.ending, Some(row.state)].contains(&Some(JobState::Cancelled)));
        let lost = client.cancelled && !holds;
        self.clients[index].cancelled &= holds;
        lost
    }

    fn content(&mut self, index: usize) {
        self.clients[index].wish = Wish::Nothing;
        self.clients[index].call = 0;
    }

    /// Tries again after a while.
    pub fn client_unavailable(&mut self, index: usize, call: u64) {
        if self.clients[index].call != call {
            return;
        }
        self.clients[index].call = 0;
        let step = match self.clients[index].wish {
            Wish::Submit => ClientStep::Submit,
            Wish::Cancel => ClientStep::Cancel,
            Wish::Nothing => return,
        };
        let wait = self.rng.range(100 * MS, 2 * SECOND);
        self.after(wait, Happening::Client { client: index, step });
    }

    /// What people still wait for.
    pub fn unserved(&self) -> Option<String> {
        let client = self.clients.iter().position(|client| client.wish != Wish::Nothing);
        let operation = self.operations.iter().find(|operation| !operation.done);
        let redriver = self.redrivers.iter().find(|redriver| !redriver.done);
        client
            .map(|index| format!("client {index} wants {:?}", self.clients[index].wish))
            .or_else(|| redriver.map(|redriver| format!("somebody wants {redriver:?}")))
            .or_else(|| operation.map(|operation| format!("an operator wants {operation:?}")))
    }

    /// What was acknowledged to people is there: each job once, its key its own.
    pub fn check_people(&mut self) {
        for index in 0..self.clients.len() {
            let Client { job, number, refused, cancelled, .. } = self.clients[index];
            let key = self.database.keys.get(&format!("key-{job}")).copied();
            if number != key || number.is_none() != refused {
                self.history.fail(
                    self.now,
                    Invariant::AcknowledgedStays,
                    format!("client {index} was told {number:?}, its key has {key:?}"),
                );
            }
            let state = number.and_then(|number| self.database.jobs.get(&number)).map(|job| job.row.state);
            if cancelled && state != Some(JobState::Cancelled) {
                self.history.fail(
                    self.now,
                    Invariant::CancelHolds,
                    format!("the job of client {index} was cancelled and is {state:?}"),
                );
            }
        }
        let made = self.database.jobs.len();
        let keys: std::collections::BTreeSet<_> =
            self.clients.iter().filter_map(|client| client.number).collect();
        if made != keys.len() {
            self.history.fail(
                self.now,
                Invariant::AcknowledgedStays,
                format!("{made} jobs were made, {} acknowledged", keys.len()),
            );
        }
    }
}

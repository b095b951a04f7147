//! What a daemon asks of the jail, one call after the other. An attempt that was ever begun, as far
//! as memory or disk can tell, is not begun again.

use std::{io, os::fd::AsFd, path::Path};

use mesh_proto::ids::AttemptKey;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::{
    super::{
        clock, log,
        plan::{self, Ground, Places},
        protocol::{Answer, Event, ExitCause, ExitRecord, Killer, Op, StartRequest, State, Status},
        record,
        running::{NotStarted, Running},
    },
    Known, Server,
};

impl Server {
    /// Does what a daemon asks; the events are to be told after the answer.
    pub(super) fn perform(&mut self, op: Op) -> (Answer, Vec<Event>) {
        let answer = match op {
            Op::Start(request) => {
                let attempt = request.attempt;
                return match self.start(&request) {
                    Ok(()) => (Answer::Done, self.event_of(attempt).into_iter().collect()),
                    Err(reason) => (Answer::Refused(reason), Vec::new()),
                };
            }
            Op::Kill { attempt, grace } => match self.known.get(&attempt) {
                Some(Known::Running(number)) => {
                    if let Some(running) = self.running.get_mut(number) {
                        running.kill(grace);
                    }
                    Answer::Done
                }
                Some(Known::Ended(_)) => Answer::Done,
                None => Answer::Refused(format!("attempt {attempt} is not known here")),
            },
            Op::List => Answer::List(self.list()),
            Op::Forget { attempt } => match self.known.get(&attempt) {
                Some(Known::Running(_)) => Answer::Refused(format!("attempt {attempt} is running")),
                Some(Known::Ended(_)) | None => {
                    self.known.remove(&attempt);
                    Answer::Done
                }
            },
            Op::Lease { until } => {
                if until > self.lease {
                    self.lease = until;
                    self.running.values_mut().for_each(|running| running.prolong(until));
                }
                Answer::Done
            }
            Op::Probe => Answer::Probe(self.options.probe.clone()),
            Op::Shutdown { kill_all } => {
                if kill_all || self.at_rest() {
                    self.shut(Killer::Request);
                    Answer::Done
                } else {
                    Answer::Refused(format!("{} tasks are running", self.running.len() + self.limbo.len()))
                }
            }
        };
        (answer, Vec::new())
    }

    fn list(&self) -> Vec<Status> {
        let state = |known: &Known| match known {
            Known::Ended(record) => State::Ended(record.clone()),
            Known::Running(number) => {
                self.live(*number).and_then(|running| running.started).map_or(State::Starting, State::Running)
            }
        };
        self.known.iter().map(|(&attempt, known)| Status { attempt, state: state(known) }).collect()
    }

    /// Starts an attempt that is not known yet. An error refuses it for good.
    fn start(&mut self, request: &StartRequest) -> Result<(), String> {
        let attempt = request.attempt;
        if self.known.contains_key(&attempt) {
            return Ok(());
        }
        if self.ending {
            return Err("the jail is ending".to_owned());
        }
        match record::read_exit_record(&request.attempt_dir) {
            Ok(Some(record)) if record.attempt == attempt => {
                self.known.insert(attempt, Known::Ended(record));
                return Ok(());
            }
            Ok(Some(record)) => return Err(format!("its directory holds the record of {}", record.attempt)),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        }
        if record::was_started(&request.attempt_dir) {
            return Err("it was started before, by a jail that died with it".to_owned());
        }
        if request.lease.is_some_and(|lease| lease <= clock::boot()) {
            self.known.insert(attempt, Known::Ended(unstarted(attempt, ExitCause::Killed, Killer::Lease)));
            return Ok(());
        }
        let places = self.places(request)?;
        let plan = plan::plan(request, &places, &self.options.facts).map_err(|error| error.to_string())?;
        match self.launch(request, plan) {
            Ok(mut running) => {
                running.prolong(self.lease);
                self.next += 1;
                let number = self.next;
                let watched = running.sources().try_for_each(|(source, fd)| {
                    epoll::add(
                        &self.epoll,
                        fd,
                        EventData::new_u64(number << 2 | source as u64),
                        EventFlags::IN,
                    )
                });
                if let Err(error) = watched {
                    running.lose(&format!("cannot watch the task: {}", io::Error::from(error)));
                }
                self.known.insert(attempt, Known::Running(number));
                self.running.insert(number, running);
            }
            Err(reason) => {
                log(&format!("{attempt}: cannot start in {}: {reason}", request.attempt_dir.display()));
                let record = unstarted(attempt, ExitCause::SpawnFailed(reason), Killer::Request);
                self.known.insert(attempt, Known::Ended(record));
            }
        }
        Ok(())
    }

    /// Starts it where it is to run. The error is for people.
    fn launch(&mut self, request: &StartRequest, plan: plan::Plan) -> Result<Running, String> {
        let slots = &mut self.options.slots;
        let slot = match Ground::of(request, &self.options.facts) {
            Some(ground) => Some(slots.take(&ground, &request.bounds, self.null.as_fd())?),
            None => None,
        };
        Running::start(request, plan, slot, self.null.as_fd()).map_err(|failed| {
            let NotStarted { why, slot } = *failed;
            if let Some(slot) = slot {
                slots.give_back(slot);
            }
            why
        })
    }

    /// The request's directories as they are on this machine.
    fn places(&self, request: &StartRequest) -> Result<Places, String> {
        let resolve = |path: &Path| {
            let resolved = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
            if resolved.is_dir() { Ok(resolved) } else { Err(format!("{}: not a directory", path.display())) }
        };
        let mut hidden = vec![self.options.dir.clone()];
        for path in &request.hidden {
            match resolve(path) {
                Ok(path) => hidden.push(path),
                // What is not there needs no hiding.
                Err(_) if !path.exists() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Places {
            work_dir: resolve(&request.work_dir)?,
            attempt_dir: resolve(&request.attempt_dir)?,
            hidden,
        })
    }
}

/// The end of what never ran.
fn unstarted(attempt: AttemptKey, cause: ExitCause, killer: Killer) -> ExitRecord {
    let now = clock::wall_ms();
    ExitRecord {
        attempt,
        cause,
        started_at_ms: 0,
        ended_at_ms: now,
        run_ms: 0,
        cpu_ms: 0,
        max_rss_bytes: 0,
        spool_len: 0,
        output_cut: false,
        killer,
    }
}

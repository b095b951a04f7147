//! What a daemon asks of the jail, one call after the other. An attempt that was ever begun, as far
//! as memory or disk can tell, is not begun again.

use std::{io, os::fd::AsFd, path::Path};

use mesh_proto::ids::AttemptKey;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::{
    super::{
        clock,
        keepers::Seat,
        log,
        plan::{self, Ground, Places},
        probe,
        protocol::{Answer, Event, ExitCause, ExitRecord, Killer, Level, Op, StartRequest, State, Status},
        record::{self, Pending},
        rooms::RoomError,
        running::{NotStarted, Post, Running},
    },
    KEEPER, Known, Server,
};

impl Server {
    /// Does what a daemon asks; the events are to be told after the answer.
    pub(super) fn perform(&mut self, op: Op) -> (Answer, Vec<Event>) {
        let answer = match op {
            Op::Start(request) => {
                let attempt = request.attempt;
                if let Some(after) = request.after {
                    return (Answer::Done, self.stand_in_line(request, after));
                }
                return match self.start(&request) {
                    Ok(()) => (Answer::Done, self.event_of(attempt).into_iter().collect()),
                    Err(reason) => (Answer::Refused(reason), Vec::new()),
                };
            }
            Op::Kill { attempt, .. } if self.line.leave(attempt) => {
                self.ended(unstarted(attempt, ExitCause::Killed, Killer::Request));
                self.send_back_behind(attempt);
                Answer::Done
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
            Op::Clear { attempts } => {
                let left = attempts.into_iter().filter(|attempt| {
                    if matches!(self.known.get(attempt), Some(Known::Running(_))) || self.line.holds(*attempt)
                    {
                        return true;
                    }
                    self.known.remove(attempt);
                    !self.rooms.take_back(*attempt)
                });
                Answer::Left(left.collect())
            }
            Op::Probe => Answer::Probe(self.options.probe.clone()),
            Op::TryMount(mount) => {
                probe::mount(&mount, &self.options.facts).map_or_else(Answer::Refused, |()| Answer::Done)
            }
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
                self.live(*number).and_then(Running::started).map_or(State::Starting, State::Running)
            }
        };
        self.known.iter().map(|(&attempt, known)| Status { attempt, state: state(known) }).collect()
    }

    /// Starts an attempt that is not known yet. An error refuses it for good.
    pub(super) fn start(&mut self, request: &StartRequest) -> Result<(), String> {
        let attempt = request.attempt;
        if self.known.contains_key(&attempt) {
            return Ok(());
        }
        if self.ending {
            return Err("the jail is ending".to_owned());
        }
        let over = request.lease.is_some_and(|lease| lease <= clock::boot());
        // Where a room is made, the name itself tells of an earlier start.
        if (request.room.is_none() || over) && self.ended_before(request)? {
            return Ok(());
        }
        if over {
            self.known.insert(attempt, Known::Ended(unstarted(attempt, ExitCause::Killed, Killer::Lease)));
            return Ok(());
        }
        let places = self.places(request)?;
        let plan = plan::plan(request, &places, &self.options.facts).map_err(|error| error.to_string())?;
        let pending = match &request.room {
            None => Pending::take(&request.attempt_dir)
                .map_err(|error| format!("cannot write in the attempt directory: {error}"))?,
            Some(room) => {
                let owner = if self.options.facts.uid == 0 { request.uid.zip(request.gid) } else { None };
                match self.rooms.begin(attempt, room, owner) {
                    Ok(pending) => pending,
                    Err(RoomError::Begun) if self.ended_before(request)? => return Ok(()),
                    Err(error) => return Err(error.to_string()),
                }
            }
        };
        match self.launch(request, plan, pending) {
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
                let watched = watched.and_then(|()| {
                    let Some(standing) = running.unwatched() else { return Ok(()) };
                    let data = EventData::new_u64(KEEPER | standing.keeper.pid as u64);
                    epoll::add(&self.epoll, standing.socket(), data, EventFlags::IN)?;
                    standing.watched = true;
                    Ok(())
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

    /// Whether it ended before, as its directory says; it is known from then on. What began and did
    /// not end is an error.
    fn ended_before(&mut self, request: &StartRequest) -> Result<bool, String> {
        match record::read_exit_record(&request.attempt_dir) {
            Ok(Some(record)) if record.attempt == request.attempt => {
                self.known.insert(request.attempt, Known::Ended(record));
                return Ok(true);
            }
            Ok(Some(record)) => return Err(format!("its directory holds the record of {}", record.attempt)),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        }
        if record::was_started(&request.attempt_dir) {
            return Err("it was started before, by a jail that died with it".to_owned());
        }
        Ok(false)
    }

    /// Starts it where it is to run. The error is for people.
    fn launch(
        &mut self,
        request: &StartRequest,
        plan: plan::Plan,
        pending: Pending,
    ) -> Result<Running, String> {
        let post = match self.post(request) {
            Ok(post) => post,
            Err(why) => {
                pending.give_up(&request.attempt_dir);
                return Err(why);
            }
        };
        Running::start(request, plan, post, self.null.as_fd(), pending).map_err(|failed| {
            let NotStarted { why, post, pending } = *failed;
            // It never ran: the same attempt may be tried again.
            pending.give_up(&request.attempt_dir);
            self.give_back(post);
            why
        })
    }

    /// Who of those that stand by is to serve it.
    fn post(&mut self, request: &StartRequest) -> Result<Post, String> {
        let (null, slots) = (self.null.as_fd(), &mut self.options.slots);
        let seat = match (Ground::of(request, &self.options.facts), request.uid.zip(request.gid)) {
            (Some(ground), _) if ground.stands => Seat::Slot(ground),
            (Some(ground), _) => return slots.take(&ground, &request.bounds, null).map(Post::Slot),
            (None, Some(owner)) if plan::stands(request, &self.options.facts) => Seat::Open(owner),
            (None, _) => return Ok(Post::Nobody),
        };
        let prepare = |ground: &Ground| slots.prepare(ground);
        self.keepers.take(seat, &request.bounds, request.after.is_some(), prepare, null).map(Post::Keeper)
    }

    /// The request's directories as they are on this machine.
    fn places(&mut self, request: &StartRequest) -> Result<Places, String> {
        let resolve = |path: &Path| {
            let resolved = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
            if resolved.is_dir() { Ok(resolved) } else { Err(format!("{}: not a directory", path.display())) }
        };
        let mut hidden = vec![self.options.dir.clone()];
        // The others look at none of them.
        let asked = if request.level == Level::Basic { &request.hidden[..] } else { &[] };
        for path in asked {
            match resolve(path) {
                Ok(path) => hidden.push(path),
                // What is not there needs no hiding.
                Err(_) if !path.exists() => {}
                Err(error) => return Err(error),
            }
        }
        if request.room.is_some() {
            let attempts = request.attempt_dir.parent().ok_or("the attempt directory has no name")?;
            let attempts = self.rooms.root(attempts).map_err(|error| error.to_string())?;
            let attempt_dir = attempts.join(request.attempt.to_string());
            return Ok(Places { work_dir: attempt_dir.join("work"), attempt_dir, hidden });
        }
        Ok(Places {
            work_dir: resolve(&request.work_dir)?,
            attempt_dir: resolve(&request.attempt_dir)?,
            hidden,
        })
    }
}

/// The end of what never ran.
pub(super) fn unstarted(attempt: AttemptKey, cause: ExitCause, killer: Killer) -> ExitRecord {
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
        untouched: false,
    }
}

//! One live attempt, from the jail's side: its keeper, its pipes, its spool, its deadlines, and
//! in the end its record. Driven by `server`; decides nothing about other attempts. `ending` is how it
//! is ended, `kept` who keeps it, `words` what that says, `output` the way from its pipes to its spool.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use mesh_proto::ids::AttemptKey;
use rustix::{
    event::epoll,
    io::Errno,
    process::{Gid, Uid},
};

use super::{
    clock,
    held::Held,
    keeper::Keeper,
    keepers::{PATIENCE, Standing},
    log,
    plan::Plan,
    protocol::{ExitCause, ExitRecord, Killer, StartRequest, Started},
    record::Pending,
    slot::Slot,
    spool::{Buffer, Spool},
    sweep,
    sys::{self, Dead},
};

mod ending;
mod kept;
mod output;
mod words;

use ending::{Ending, Reason, Stage};
use kept::{Kept, keep};
use output::pipe;

pub use kept::Post;

/// A start is told after this time, or with its end when that comes sooner: at short tasks a daemon is
/// woken half as often.
const LINGER: Duration = Duration::from_millis(5);

/// A descriptor of an attempt in the event loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Control,
    Stdout,
    Stderr,
    /// The slot's group says that its memory has run out.
    Memory,
}

/// What the keeper said last, when that decides how it ended.
#[derive(Clone, Debug)]
enum Verdict {
    Ended(i32),
    Failed(ExitCause),
}

/// An attempt whose keeper lives.
pub struct Running {
    pub attempt: AttemptKey,
    /// Where it runs, by the daemon's count.
    pub place: Option<u32>,
    kept: Kept,
    /// Until when a standing keeper may leave its order unanswered.
    patience: Option<Duration>,
    /// Whether the command runs.
    runs: bool,
    /// When that is to be told, as long as it is not.
    announce: Option<Duration>,
    contained: bool,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    spool: Spool,
    pending: Pending,
    attempt_dir: PathBuf,
    /// Until the command runs: names the step that failed.
    plan: Option<Plan>,
    command: String,
    process: i32,
    began: Duration,
    began_ms: u64,
    timeout: Option<Duration>,
    /// When its lease ends, if it lives on one.
    lease: Option<Duration>,
    grace: Duration,
    ending: Option<Ending>,
    verdict: Option<Verdict>,
    usage: sys::Usage,
    /// The keeper's status, when it died without a last word.
    abandoned: Option<i32>,
    /// The keeper is dead.
    unkept: bool,
}

/// An attempt that was not started: why, for people, and who was to serve it.
pub struct NotStarted {
    pub why: String,
    pub post: Post,
    pub pending: Pending,
}

impl Running {
    /// Starts `request` as `plan` says, at `post`.
    pub fn start(
        request: &StartRequest,
        plan: Plan,
        post: Post,
        null: BorrowedFd<'_>,
        pending: Pending,
    ) -> Result<Self, Box<NotStarted>> {
        let pipes = || -> Result<_, Errno> {
            let (stdout, stderr) = (pipe()?, pipe()?);
            if let (Some(uid), Some(gid)) = (request.uid, request.gid) {
                // The task's own: /dev/stdout and /dev/stderr are opened by their owner alone.
                let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                rustix::fs::fchown(&stdout.1, uid, gid)?;
                rustix::fs::fchown(&stderr.1, uid, gid)?;
            }
            Ok((stdout, stderr))
        };
        let (stdout, stderr) = match pipes() {
            Ok(pipes) => pipes,
            Err(error) => {
                let why = format!("cannot make pipes: {}", io::Error::from(error));
                return Err(Box::new(NotStarted { why, post, pending }));
            }
        };
        let kept = match keep(request, &plan, post, [null, stdout.1.as_fd(), stderr.1.as_fd()]) {
            Ok(kept) => kept,
            Err(failed) => {
                let (why, post) = *failed;
                return Err(Box::new(NotStarted { why, post, pending }));
            }
        };
        let patience = matches!(kept, Kept::Standing(_)).then(|| clock::boot() + PATIENCE);
        Ok(Self {
            attempt: request.attempt,
            place: request.slot,
            kept,
            patience,
            runs: false,
            announce: None,
            contained: plan.contained(),
            stdout: Some(stdout.0),
            stderr: Some(stderr.0),
            spool: Spool::new(&request.attempt_dir, request.max_output),
            pending,
            attempt_dir: request.attempt_dir.clone(),
            plan: Some(plan),
            command: request.argv.first().cloned().unwrap_or_default(),
            process: 0,
            began: clock::boot(),
            began_ms: clock::wall_ms(),
            timeout: request.timeout,
            lease: request.lease,
            grace: request.grace,
            ending: None,
            verdict: None,
            usage: sys::Usage::default(),
            abandoned: None,
            unkept: false,
        })
    }

    /// Who keeps it.
    pub fn keeper(&self) -> &Keeper {
        self.kept.keeper()
    }

    fn slot(&self) -> Option<&Slot> {
        match &self.kept {
            Kept::Own { slot, .. } => slot.as_ref(),
            Kept::Standing(_) => None,
        }
    }

    fn held_mut(&mut self) -> Option<&mut Held> {
        match &mut self.kept {
            Kept::Own { slot, .. } => slot.as_mut().map(|slot| &mut slot.held),
            Kept::Standing(standing) => Some(&mut standing.held),
        }
    }

    /// The slot's helper, where there is one.
    pub fn helper(&self) -> Option<i32> {
        self.slot().map(|slot| slot.pid)
    }

    /// That helper is dead; the attempt is not.
    pub fn lose_helper(&mut self) {
        if let Kept::Own { slot: Some(slot), .. } = &mut self.kept {
            slot.lose();
        }
    }

    /// The standing keeper, when the event loop does not know it yet.
    pub fn unwatched(&mut self) -> Option<&mut Standing> {
        match &mut self.kept {
            Kept::Standing(standing) if !standing.watched => Some(standing),
            Kept::Standing(_) | Kept::Own { .. } => None,
        }
    }

    /// The slot's group has something to say: memory has run out, and whoever of the task the
    /// kernel has not killed goes too.
    pub fn out_of_memory(&mut self) {
        if self.held_mut().is_some_and(Held::take_event) {
            self.end(&Reason::OutOfMemory, Duration::ZERO);
        }
    }

    /// Its descriptors, for the event loop.
    pub fn sources(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>)> {
        let (control, held) = match &self.kept {
            Kept::Own { control, slot, .. } => {
                (Some((Source::Control, control.as_fd())), slot.as_ref().map(|slot| &slot.held))
            }
            Kept::Standing(standing) => (None, Some(&standing.held)),
        };
        [
            control,
            self.stdout.as_ref().map(|fd| (Source::Stdout, fd.as_fd())),
            self.stderr.as_ref().map(|fd| (Source::Stderr, fd.as_fd())),
            held.and_then(Held::event).map(|fd| (Source::Memory, fd)),
        ]
        .into_iter()
        .flatten()
    }

    /// Nothing more comes from the keeper.
    pub fn unwatch_control(&self, epoll: BorrowedFd<'_>) {
        let _gone = match &self.kept {
            Kept::Own { control, .. } => epoll::delete(epoll, control),
            Kept::Standing(standing) => epoll::delete(epoll, standing.socket()),
        };
    }

    /// The start of the command, when it runs.
    pub fn started(&self) -> Option<Started> {
        self.runs.then(|| Started {
            attempt: self.attempt,
            pid: self.process,
            start_time: sweep::stat(self.process).map_or(0, |stat| stat.start_time),
            at_ms: self.began_ms,
        })
    }

    /// The start, when it is time to tell of it; once.
    pub fn announce(&mut self, now: Duration) -> Option<Started> {
        self.announce.take_if(|at| *at <= now)?;
        self.started()
    }

    /// The start, when nobody was told of it and the command has ended.
    pub fn announce_late(&mut self) -> Option<Started> {
        self.announce.take()?;
        Some(Started { attempt: self.attempt, pid: self.process, start_time: 0, at_ms: self.began_ms })
    }

    /// The keeper is dead. Tells whether some of the task may have outlived it.
    pub fn buried(&mut self, dead: &Dead) -> bool {
        self.listen();
        self.unkept = true;
        if self.verdict.is_none() {
            self.abandoned = Some(dead.status);
        }
        match &self.kept {
            Kept::Own { .. } => {
                self.usage = dead.usage;
                self.abandoned.is_some() && !self.contained
            }
            // What it used before is not known, but of its last words.
            Kept::Standing(standing) => !standing.is_free(),
        }
    }

    /// Everything is dead: takes the last output, writes the record, gives it and who served it.
    pub fn finish(mut self, buffer: &mut Buffer) -> (ExitRecord, Post) {
        for source in [Source::Stdout, Source::Stderr] {
            self.drain(source, buffer);
        }
        let ended = clock::boot();
        let record = ExitRecord {
            attempt: self.attempt,
            cause: self.cause(),
            started_at_ms: self.began_ms,
            ended_at_ms: clock::wall_ms(),
            run_ms: ended.saturating_sub(self.began).as_millis() as u64,
            cpu_ms: self.usage.cpu.as_millis() as u64,
            max_rss_bytes: self.usage.max_rss_bytes,
            spool_len: self.spool.length(),
            output_cut: self.spool.cut(),
            killer: match &self.ending {
                Some(Ending { reason: Reason::Killed(killer), .. }) => *killer,
                Some(_) | None => Killer::Request,
            },
            untouched: false,
        };
        if let Err(error) = self.pending.write(&self.attempt_dir, &record) {
            // The daemon still hears of it; only a jail that dies before would lose it.
            log(&format!("{}: cannot write its exit record: {error}", self.attempt));
        }
        let post = match self.kept {
            Kept::Own { slot, .. } => slot.map_or(Post::Nobody, Post::Slot),
            Kept::Standing(_) if self.unkept => Post::Nobody,
            Kept::Standing(standing) => Post::Keeper(standing),
        };
        (record, post)
    }

    fn cause(&mut self) -> ExitCause {
        if let Some(Verdict::Failed(cause)) = &self.verdict {
            return cause.clone();
        }
        // A task that lost a process to the memory killer and yet succeeded has coped with it.
        let succeeded = matches!(self.verdict, Some(Verdict::Ended(0)));
        if self.ending.is_none() && !succeeded && self.held_mut().is_some_and(Held::was_killed_into) {
            return ExitCause::OutOfMemory;
        }
        if let Some(ending) = &self.ending {
            return match &ending.reason {
                Reason::TimedOut => ExitCause::TimedOut,
                Reason::Killed(_) => ExitCause::Killed,
                Reason::OutOfMemory => ExitCause::OutOfMemory,
                Reason::OutputLost(error) => ExitCause::OutputLost(error.clone()),
            };
        }
        match (&self.verdict, self.abandoned.and_then(sys::signal_of)) {
            (Some(Verdict::Ended(status)), _) => match sys::signal_of(*status) {
                // How the kernel says it.
                Some(libc::SIGXFSZ) => ExitCause::DiskFull("it wrote a larger file than it may".to_owned()),
                Some(signal) => ExitCause::Signalled(signal),
                None => ExitCause::Exited(sys::code_of(*status)),
            },
            // The whole tree went with its keeper: the machine's memory killer or its operator.
            (Some(Verdict::Failed(_)) | None, Some(signal)) if self.runs => ExitCause::Signalled(signal),
            (Some(Verdict::Failed(_)) | None, _) => {
                ExitCause::SpawnFailed("the process that keeps the task died".to_owned())
            }
        }
    }
}

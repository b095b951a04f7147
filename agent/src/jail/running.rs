//! One live attempt, from the jail's side: its keeper, its pipes, its spool, its deadlines, and
//! in the end its record. Driven by `server`; decides nothing about other attempts.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use mesh_proto::{frame::Kind, ids::AttemptKey};
use rustix::{
    event::epoll,
    io::Errno,
    pipe::PipeFlags,
    process::{Gid, Signal, Uid, pidfd_send_signal},
};

use super::{
    clock,
    keeper::{self, Keeper, Stdio, Word},
    log,
    plan::Plan,
    protocol::{Bounds, ExitCause, ExitRecord, Killer, StartRequest, Started, Wall},
    record::Pending,
    slot::Slot,
    spool::{Buffer, Spool},
    sweep,
    sys::{self, Dead},
};

/// How long a keeper outside of a pid namespace may hunt before it is killed and the jail hunts.
const HUNT: Duration = Duration::from_secs(5);
/// A start is told after this time, or with its end when that comes sooner: at short tasks a daemon is
/// woken half as often.
const LINGER: Duration = Duration::from_millis(5);
/// The most that is read from a pipe after the end, in bytes: no pipe holds more, but one
/// whose other end escaped may go on filling it.
const LAST: usize = 4 * 1024 * 1024;

/// A descriptor of an attempt in the event loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Control,
    Stdout,
    Stderr,
    /// The slot's group says that its memory has run out.
    Memory,
}

/// Why the jail ends an attempt.
#[derive(Clone, Debug)]
enum Reason {
    TimedOut,
    Killed(Killer),
    OutOfMemory,
    OutputLost(String),
}

/// How far the ending is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// SIGTERM was sent.
    Asked,
    /// Everything was to be killed.
    Forced,
    /// The keeper itself was killed.
    Over,
}

#[derive(Clone, Debug)]
struct Ending {
    reason: Reason,
    /// When the next stage begins.
    next: Duration,
    stage: Stage,
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
    pub keeper: Keeper,
    /// Whether the command runs.
    runs: bool,
    /// When that is to be told, as long as it is not.
    announce: Option<Duration>,
    contained: bool,
    control: OwnedFd,
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
    /// Where it runs, at level strict.
    slot: Option<Slot>,
}

/// An attempt that was not started: why, for people, and the slot that was meant for it.
pub struct NotStarted {
    pub why: String,
    pub slot: Option<Slot>,
    pub pending: Pending,
}

impl Running {
    /// Starts `request` as `plan` says, in `slot` when it needs one.
    pub fn start(
        request: &StartRequest,
        plan: Plan,
        mut slot: Option<Slot>,
        null: BorrowedFd<'_>,
        pending: Pending,
    ) -> Result<Self, Box<NotStarted>> {
        match Self::make(request, plan, slot.as_mut(), null, pending.clone()) {
            Ok(running) => Ok(Self { slot, ..running }),
            Err(why) => Err(Box::new(NotStarted { why, slot, pending })),
        }
    }

    fn make(
        request: &StartRequest,
        plan: Plan,
        slot: Option<&mut Slot>,
        null: BorrowedFd<'_>,
        pending: Pending,
    ) -> Result<Self, String> {
        let failed = |what: &str, error: io::Error| format!("{what}: {error}");
        let spool = Spool::new(&request.attempt_dir, request.max_output);
        let pipes = || -> Result<_, Errno> {
            let (stdout, stderr) = (pipe()?, pipe()?);
            if let (Some(uid), Some(gid)) = (request.uid, request.gid) {
                // The task's own: /dev/stdout and /dev/stderr are opened by their owner alone.
                let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                rustix::fs::fchown(&stdout.1, uid, gid)?;
                rustix::fs::fchown(&stderr.1, uid, gid)?;
            }
            Ok((stdout, stderr, keeper::control()?))
        };
        let (stdout, stderr, control) = pipes().map_err(|error| failed("cannot make pipes", error.into()))?;
        let stdio = Stdio {
            stdin: null,
            stdout: stdout.1.as_fd(),
            stderr: stderr.1.as_fd(),
            control: control.1.as_fd(),
        };
        let keeper = match slot {
            Some(slot) => {
                let bounds =
                    if request.without.contains(&Wall::Limits) { Bounds::default() } else { request.bounds };
                slot.start(&plan, &bounds, &stdio)?
            }
            None => keeper::start(&plan, &stdio).map_err(|error| failed("cannot fork", error.into()))?,
        };
        Ok(Self {
            attempt: request.attempt,
            keeper,
            runs: false,
            announce: None,
            contained: plan.contained(),
            control: control.0,
            stdout: Some(stdout.0),
            stderr: Some(stderr.0),
            spool,
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
            slot: None,
        })
    }

    /// The slot's helper, where there is one.
    pub fn helper(&self) -> Option<i32> {
        self.slot.as_ref().map(|slot| slot.pid)
    }

    /// That helper is dead; the attempt is not.
    pub fn lose_helper(&mut self) {
        if let Some(slot) = &mut self.slot {
            slot.lose();
        }
    }

    /// The slot's group has something to say: memory has run out, and whoever of the task the
    /// kernel has not killed goes too.
    pub fn out_of_memory(&mut self) {
        if self.slot.as_mut().is_some_and(Slot::take_event) {
            self.end(&Reason::OutOfMemory, Duration::ZERO);
        }
    }

    /// Its descriptors, for the event loop.
    pub fn sources(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>)> {
        [
            Some((Source::Control, self.control.as_fd())),
            self.stdout.as_ref().map(|fd| (Source::Stdout, fd.as_fd())),
            self.stderr.as_ref().map(|fd| (Source::Stderr, fd.as_fd())),
            self.slot.as_ref().and_then(Slot::event).map(|fd| (Source::Memory, fd)),
        ]
        .into_iter()
        .flatten()
    }

    /// Nothing more comes from the keeper.
    pub fn unwatch_control(&self, epoll: BorrowedFd<'_>) {
        let _gone = epoll::delete(epoll, &self.control);
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

    /// Takes what the keeper has to say.
    pub fn listen(&mut self) {
        while let Some(word) = keeper::hear(self.control.as_fd()) {
            match word {
                Word::Process(pid) => self.process = pid,
                Word::Runs => {
                    self.began = clock::boot();
                    self.began_ms = clock::wall_ms();
                    self.runs = true;
                    self.announce = Some(self.began + LINGER);
                    self.plan = None;
                }
                Word::StepFailed { step, errno } => {
                    let what = self.plan.as_ref().and_then(|plan| plan.steps.get(step));
                    let what = what.map_or("setting up the process", |step| step.describe());
                    let error = io::Error::from(errno);
                    self.verdict = Some(Verdict::Failed(ExitCause::SpawnFailed(format!("{what}: {error}"))));
                }
                Word::NoExec(errno) => self.verdict = Some(Verdict::Failed(self.no_exec(errno))),
                Word::Ended(status) => self.verdict = Some(Verdict::Ended(status)),
                Word::TooMuch { files } => {
                    let what = if files { "more files" } else { "more bytes" };
                    let why = format!("its work directory held {what} than it may");
                    self.verdict = Some(Verdict::Failed(ExitCause::DiskFull(why)));
                }
            }
        }
    }

    /// What it means that the command cannot be executed: the machine's fault or the job's.
    fn no_exec(&mut self, errno: Errno) -> ExitCause {
        let reason = match errno {
            Errno::NOMEM | Errno::AGAIN | Errno::NFILE | Errno::MFILE | Errno::IO | Errno::NOSPC => {
                return ExitCause::SpawnFailed(format!("executing the command: {}", io::Error::from(errno)));
            }
            Errno::NOENT if self.command.contains('/') => {
                "no such file, or its interpreter is missing".to_owned()
            }
            Errno::NOENT => "not found in PATH".to_owned(),
            Errno::NOEXEC => "neither a program for this machine nor a script with a #! line".to_owned(),
            Errno::TOOBIG => "its arguments and environment are too long".to_owned(),
            errno => io::Error::from(errno).to_string(),
        };
        let command: String = self.command.chars().take(200).collect();
        let line = format!("mesh: cannot run {command:?}: {reason}\n");
        let mut buffer = Buffer::new();
        buffer.data()[..line.len()].copy_from_slice(line.as_bytes());
        if let Err(error) = self.spool.append(Kind::Stderr, clock::wall_ms(), &mut buffer, line.len()) {
            return ExitCause::OutputLost(error.to_string());
        }
        ExitCause::Exited(if errno == Errno::NOENT { 127 } else { 126 })
    }

    /// Reads one piece of output; tells whether there may be more.
    fn read(&mut self, source: Source, buffer: &mut Buffer) -> bool {
        let (fd, kind) = match source {
            Source::Stdout => (&mut self.stdout, Kind::Stdout),
            Source::Stderr => (&mut self.stderr, Kind::Stderr),
            Source::Control | Source::Memory => return false,
        };
        let Some(open) = fd else { return false };
        match rustix::io::read(&*open, buffer.data()) {
            Ok(0) => false,
            Ok(length) => {
                if let Err(error) = self.spool.append(kind, clock::wall_ms(), buffer, length) {
                    log(&format!("{}: cannot write its output: {error}", self.attempt));
                    self.end(&Reason::OutputLost(error.to_string()), Duration::ZERO);
                }
                true
            }
            Err(Errno::INTR | Errno::AGAIN) => true,
            Err(_) => false,
        }
    }

    /// One turn of a readable output; at its end it leaves the event loop.
    pub fn pump(&mut self, source: Source, buffer: &mut Buffer) {
        if self.read(source, buffer) {
            return;
        }
        let fd = match source {
            Source::Stdout => &mut self.stdout,
            Source::Stderr => &mut self.stderr,
            Source::Control | Source::Memory => return,
        };
        // Closed, it leaves the event loop by itself: nobody else has it open.
        *fd = None;
    }

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

    fn end(&mut self, reason: &Reason, grace: Duration) {
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
                    let _gone = pidfd_send_signal(&self.keeper.pidfd, Signal::TERM);
                }
            }
        }
        self.tick(now);
    }

    /// When it next wants a [`tick`](Self::tick) or to [`announce`](Self::announce).
    pub fn due(&self) -> impl Iterator<Item = Duration> {
        self.deadline().into_iter().chain(self.announce)
    }

    /// When something of it ends.
    fn deadline(&self) -> Option<Duration> {
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
                let _gone = pidfd_send_signal(&self.keeper.pidfd, Signal::USR1);
                ending.stage = Stage::Forced;
                ending.next = now + HUNT;
            }
            Stage::Asked | Stage::Forced => {
                let _gone = pidfd_send_signal(&self.keeper.pidfd, Signal::KILL);
                ending.stage = Stage::Over;
            }
            Stage::Over => {}
        }
    }

    /// The keeper is dead. Tells whether some of the task may have outlived it.
    pub fn buried(&mut self, dead: &Dead) -> bool {
        self.listen();
        self.usage = dead.usage;
        if self.verdict.is_none() {
            self.abandoned = Some(dead.status);
        }
        self.abandoned.is_some() && !self.contained
    }

    /// Everything is dead: takes the last output, writes the record, gives it and the slot.
    pub fn finish(mut self, buffer: &mut Buffer) -> (ExitRecord, Option<Slot>) {
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
        };
        if let Err(error) = self.pending.write(&self.attempt_dir, &record) {
            // The daemon still hears of it; only a jail that dies before would lose it.
            log(&format!("{}: cannot write its exit record: {error}", self.attempt));
        }
        (record, self.slot)
    }

    /// What is still in a pipe. Nobody writes any more; should an end have escaped, not for ever.
    fn drain(&mut self, source: Source, buffer: &mut Buffer) {
        let before = self.spool.length();
        let fd = match source {
            Source::Stdout => self.stdout.take(),
            Source::Stderr => self.stderr.take(),
            Source::Control | Source::Memory => None,
        };
        let Some(fd) = fd else { return };
        let kind = if source == Source::Stdout { Kind::Stdout } else { Kind::Stderr };
        let mut drained = 0;
        while drained < LAST && !self.spool.cut() {
            let Ok(length @ 1..) = rustix::io::read(&fd, buffer.data()) else { return };
            drained += length;
            if let Err(error) = self.spool.append(kind, clock::wall_ms(), buffer, length) {
                log(&format!("{}: cannot write its output after {before} bytes: {error}", self.attempt));
                self.ending = Some(Ending {
                    reason: Reason::OutputLost(error.to_string()),
                    next: Duration::ZERO,
                    stage: Stage::Over,
                });
                return;
            }
        }
    }

    fn cause(&mut self) -> ExitCause {
        if let Some(Verdict::Failed(cause)) = &self.verdict {
            return cause.clone();
        }
        // A task that lost a process to the memory killer and yet succeeded has coped with it.
        let succeeded = matches!(self.verdict, Some(Verdict::Ended(0)));
        if self.ending.is_none() && !succeeded && self.slot.as_mut().is_some_and(Slot::was_killed_into) {
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

/// A pipe to read without waiting; the end to write is the task's and does wait.
fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}

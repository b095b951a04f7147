//! What keepers say of an attempt, and what that means for it.

use std::{io, os::fd::AsFd as _, time::Duration};

use mesh_proto::frame::Kind;
use rustix::io::Errno;

use super::{
    super::{
        clock,
        keeper::{self, Word},
        protocol::ExitCause,
        spool::Buffer,
        standing::News,
    },
    Kept, LINGER, Running, Verdict,
};

impl Running {
    /// Takes what the keeper has to say.
    pub fn listen(&mut self) {
        match &mut self.kept {
            Kept::Own { control, .. } => {
                let mut words = Vec::new();
                while let Some(word) = keeper::hear(control.as_fd()) {
                    words.push(word);
                }
                for word in words {
                    self.take(word);
                }
            }
            Kept::Standing(standing) => {
                for news in standing.hear() {
                    self.patience = None;
                    self.learn(news);
                }
            }
        }
    }

    fn take(&mut self, word: Word) {
        match word {
            Word::Process(pid) => self.process = pid,
            Word::Runs => self.run(clock::boot(), clock::wall_ms()),
            Word::StepFailed { step, errno } => {
                let what = self.plan.as_ref().and_then(|plan| plan.steps.get(step));
                let what = what.map_or("setting up the process", |step| step.describe());
                self.fail(what, errno);
            }
            Word::NoExec(errno) => self.verdict = Some(Verdict::Failed(self.no_exec(errno))),
            Word::Ended(status) => self.verdict = Some(Verdict::Ended(status)),
            Word::TooMuchWaits => self.verdict = Some(Verdict::Failed(ExitCause::OutOfMemory)),
            Word::TooMuch { files } => {
                let what = if files { "more files" } else { "more bytes" };
                let why = format!("its work directory held {what} than it may");
                self.verdict = Some(Verdict::Failed(ExitCause::DiskFull(why)));
            }
        }
    }

    fn learn(&mut self, news: News) {
        match news {
            News::Unready { step, errno } => {
                if let Kept::Standing(standing) = &self.kept {
                    self.fail(standing.describe(step), errno);
                }
            }
            News::Runs { process, since, at_ms } => {
                self.process = process;
                self.run(since, at_ms);
            }
            News::Said(word) => self.take(word),
            News::Over(usage) => self.usage = usage,
        }
    }

    /// Its command runs, since this moment.
    fn run(&mut self, since: Duration, at_ms: u64) {
        self.began = since;
        self.began_ms = at_ms;
        self.runs = true;
        self.announce = Some(since + LINGER);
        self.plan = None;
        self.pass_on();
    }

    fn fail(&mut self, what: &str, errno: Errno) {
        let why = format!("{what}: {}", io::Error::from(errno));
        self.verdict = Some(Verdict::Failed(ExitCause::SpawnFailed(why)));
    }

    /// Whether its standing keeper says that nothing of it is alive.
    pub fn is_over(&self) -> bool {
        match &self.kept {
            Kept::Own { .. } => false,
            Kept::Standing(standing) => standing.is_free(),
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
}

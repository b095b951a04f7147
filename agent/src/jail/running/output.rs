//! The output of an attempt: from its pipes into its spool.

use std::{os::fd::OwnedFd, time::Duration};

use mesh_proto::frame::Kind;
use rustix::{io::Errno, pipe::PipeFlags};

use super::{
    super::{clock, log, spool::Buffer},
    Ending, Reason, Running, Source, Stage,
};

/// The most that is read from a pipe after the end, in bytes: no pipe holds more, but one
/// whose other end escaped may go on filling it.
const LAST: usize = 4 * 1024 * 1024;

impl Running {
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

    /// What is still in a pipe. Nobody writes any more; should an end have escaped, not for ever.
    pub(super) fn drain(&mut self, source: Source, buffer: &mut Buffer) {
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
}

/// A pipe to read without waiting; the end to write is the task's and does wait.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}

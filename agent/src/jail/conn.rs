//! One daemon's connection, without waiting: bytes in, calls out; messages in, bytes out.
//! Bounded both ways: a daemon that does not read is dropped, and hears everything again
//! when it comes back.

use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use serde::Serialize;

use super::protocol::{Call, Hello, ProtocolError, decode, encode};

/// Bytes that may wait for a daemon that does not read.
const MAX_WAITING: usize = 64 * 1024 * 1024;

/// The most that is read in one turn, in bytes.
const PIECE: usize = 16 * 1024;

/// A connection; until it has greeted, it may ask nothing.
pub struct Conn {
    stream: UnixStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    sent: usize,
    pub greeted: bool,
    /// Whether the event loop tells when the other side takes more.
    pub watched: bool,
}

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
pub enum ConnError {
    #[error("closed by the other side")]
    Closed,
    #[error("it does not read what it is told")]
    Slow,
    #[error("it speaks protocol {0} to {1}")]
    Version(u32, u32),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

impl Conn {
    /// Takes over an accepted stream.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, inbox: Vec::new(), outbox: Vec::new(), sent: 0, greeted: false, watched: false })
    }

    /// Its descriptor, for the event loop.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Reads what is there, at most a piece. At the other side's end of sending it is over.
    pub fn fill(&mut self) -> Result<(), ConnError> {
        let mut piece = [0; PIECE];
        match self.stream.read(&mut piece) {
            Ok(0) => Err(ConnError::Closed),
            Ok(length) => {
                self.inbox.extend_from_slice(&piece[..length]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Answers the greeting when it has come; true in that moment.
    pub fn greet(&mut self) -> Result<bool, ConnError> {
        if self.greeted {
            return Ok(false);
        }
        let Some(hello) = decode::<Hello>(&mut self.inbox)? else { return Ok(false) };
        self.send(&Hello::ours())?;
        if !hello.suits() {
            let _gone = self.flush();
            return Err(ConnError::Version(hello.oldest, hello.version));
        }
        self.greeted = true;
        Ok(true)
    }

    /// The next call that has come whole.
    pub fn next_call(&mut self) -> Result<Option<Call>, ConnError> {
        Ok(decode(&mut self.inbox)?)
    }

    /// Puts a message in the queue.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<(), ConnError> {
        let bytes = encode(message)?;
        if self.outbox.len() + bytes.len() > MAX_WAITING {
            return Err(ConnError::Slow);
        }
        self.outbox.extend_from_slice(&bytes);
        Ok(())
    }

    /// Whether something waits to be sent.
    pub fn waits(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Writes as much as the other side takes; tells whether something is left.
    pub fn flush(&mut self) -> Result<bool, ConnError> {
        while self.sent < self.outbox.len() {
            match self.stream.write(&self.outbox[self.sent..]) {
                Ok(0) => return Err(ConnError::Closed),
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.outbox.drain(..self.sent);
                    self.sent = 0;
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.outbox.clear();
        self.sent = 0;
        Ok(false)
    }
}

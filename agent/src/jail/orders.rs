//! Orders of the jail to a process that stands by for it: a slot's helper, a standing keeper. A stream
//! of messages as in `protocol`, the descriptors of a task beside the message that starts it.

use std::{
    collections::VecDeque,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags,
    },
    time::Timespec,
};
use serde::{Deserialize, Serialize};

use super::{plan::Plan, protocol, sys};

/// What the jail tells.
#[derive(Serialize, Deserialize)]
pub enum Order<P> {
    /// Start a task; its standard output and standard error come along, then a keeper's control socket
    /// where the keeper is another process, or the mounts that the jail brings.
    Start(P),
    /// A task has ended: be ready for another.
    Clean,
}

/// Where such a process has its socket, and nothing to read for its tasks.
const SOCKET: i32 = 3;
const NULL: i32 = 4;

/// In a new fork of the jail: keeps nothing open but these two, and nothing to read at 0 to 2.
pub fn place<'a>(socket: BorrowedFd<'_>, null: BorrowedFd<'_>) -> (BorrowedFd<'a>, BorrowedFd<'a>) {
    // First above the places, so that neither overwrites the other.
    let above = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 16);
    if let (Ok(socket), Ok(null)) = (above(socket), above(null)) {
        sys::place(socket.as_fd(), SOCKET);
        sys::place(null.as_fd(), NULL);
        for stdio in 0..SOCKET {
            sys::place(null.as_fd(), stdio);
        }
        sys::close_from(NULL + 1);
        // Closed just now.
        std::mem::forget((socket, null));
    }
    #[expect(unsafe_code, reason = "descriptors by their numbers")]
    // SAFETY: placed a moment ago, open as long as this process lives.
    unsafe {
        (BorrowedFd::borrow_raw(SOCKET), BorrowedFd::borrow_raw(NULL))
    }
}

/// The most descriptors that come with one order.
const DESCRIPTORS: usize = 3;

/// Sends an order, its descriptors with the first byte.
pub fn send(socket: BorrowedFd<'_>, order: &Order<&Plan>, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let bytes = protocol::encode(order).map_err(|_| Errno::TOOBIG)?;
    let mut sent = 0;
    while sent < bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if sent == 0 && !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let piece = [IoSlice::new(&bytes[sent..])];
        match rustix::net::sendmsg(socket, &piece, &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(length) => sent += length,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Orders as they come in.
#[derive(Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Inbox {
    /// Whether there is something to take, within this time.
    pub fn arrives(&self, socket: BorrowedFd<'_>, within: Duration) -> bool {
        let mut ready = [PollFd::new(&socket, PollFlags::IN)];
        let within = Timespec { tv_sec: within.as_secs() as i64, tv_nsec: within.subsec_nanos().into() };
        // A failure shows when it is read.
        !self.bytes.is_empty() || rustix::event::poll(&mut ready, Some(&within)) != Ok(0)
    }

    /// Waits for the next order; none when the jail has gone or makes no sense.
    pub fn next(&mut self, socket: BorrowedFd<'_>) -> Option<Order<Plan>> {
        loop {
            if let Some(order) = protocol::decode(&mut self.bytes).ok()? {
                return Some(order);
            }
            let mut piece = [0; 16 * 1024];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let received = rustix::net::recvmsg(
                socket,
                &mut [IoSliceMut::new(&mut piece)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            );
            let length = match received {
                Ok(received) => received.bytes,
                Err(Errno::INTR) => continue,
                Err(_) => return None,
            };
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    self.descriptors.extend(fds);
                }
            }
            if length == 0 {
                return None;
            }
            self.bytes.extend_from_slice(&piece[..length]);
        }
    }

    /// The descriptors that came with the last order, if there are so many.
    pub fn descriptors<const N: usize>(&mut self) -> Option<[OwnedFd; N]> {
        if self.descriptors.len() < N {
            return None;
        }
        self.descriptors.drain(..N).collect::<Vec<_>>().try_into().ok()
    }
}

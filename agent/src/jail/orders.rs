//! Orders of the jail to a process that stands by for it: a slot's helper, a standing keeper. A stream
//! of messages, each with its length before it, the descriptors of a task beside the message that starts
//! it. Both sides are forks of one program, so the form is compact and nobody else's.

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

use super::{plan::Plan, protocol::MAX_MESSAGE, sys};

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

/// Bytes of a length.
const HEAD: usize = size_of::<u32>();

fn encode(order: &Order<&Plan>) -> Result<Vec<u8>, Errno> {
    let mut bytes = postcard::to_extend(order, vec![0; HEAD]).map_err(|_| Errno::INVAL)?;
    let length = bytes.len() - HEAD;
    if length > MAX_MESSAGE {
        return Err(Errno::TOOBIG);
    }
    bytes[..HEAD].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// Takes one order off the front, if a whole one is there.
fn decode(buffer: &mut Vec<u8>) -> Result<Option<Order<Plan>>, Errno> {
    let Some(head) = buffer.first_chunk::<HEAD>() else { return Ok(None) };
    let length = u32::from_le_bytes(*head) as usize;
    if length > MAX_MESSAGE {
        return Err(Errno::TOOBIG);
    }
    let Some(body) = buffer.get(HEAD..HEAD + length) else { return Ok(None) };
    let order = postcard::from_bytes(body).map_err(|_| Errno::INVAL)?;
    buffer.drain(..HEAD + length);
    Ok(Some(order))
}

/// The most descriptors that come with one order.
const DESCRIPTORS: usize = 3;

/// Sends an order, its descriptors with the first byte.
pub fn send(socket: BorrowedFd<'_>, order: &Order<&Plan>, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let bytes = encode(order)?;
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
            if let Some(order) = decode(&mut self.bytes).ok()? {
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

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::{
        super::plan::{Access, Limit, Room, Rule, Step},
        *,
    };

    #[test]
    fn an_order_arrives_as_it_was_sent_however_it_is_cut() {
        let text = |text: &str| CString::new(text).unwrap();
        let plan = Plan {
            namespaces: 1 << 40,
            brought: vec![Step::Hold(text("/a b")), Step::Harden { read_only: true }],
            steps: vec![
                Step::MapOwner { owner: (1, 2), task: (3, u32::MAX) },
                Step::Rules(vec![Rule { path: text("/\u{fc}"), access: Access::Own }]),
                Step::Limit(Limit::Data, u64::MAX),
                Step::OomScore(-900),
                Step::Fork,
            ],
            programs: vec![text("/bin/true")],
            argv: vec![text("true"), text("")],
            env: vec![text("A=\n\"")],
            room: Room { bytes: Some(7), files: None, memory: Some(u64::MAX) },
        };
        let bytes = encode(&Order::Start(&plan)).unwrap();
        let mut buffer = Vec::new();
        let mut arrived = Vec::new();
        for byte in [&bytes[..], &encode(&Order::Clean).unwrap(), &bytes].concat() {
            buffer.push(byte);
            arrived.extend(decode(&mut buffer).unwrap());
        }
        assert!(buffer.is_empty());
        let [Order::Start(first), Order::Clean, Order::Start(last)] = &arrived[..] else { panic!() };
        for back in [first, last] {
            assert_eq!((back.namespaces, &back.brought, &back.steps), (1 << 40, &plan.brought, &plan.steps));
            assert_eq!((&back.programs, &back.argv, &back.env), (&plan.programs, &plan.argv, &plan.env));
            assert_eq!(back.room, plan.room);
        }
        assert!(decode(&mut u32::MAX.to_le_bytes().to_vec()).is_err(), "a length that no order has");
    }
}

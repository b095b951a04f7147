//! A slot's helper: a small process that sits on prepared ground (control groups, a network, a user
//! namespace, a file tree) and forks a keeper for each task that the jail sends. A keeper starts
//! with all of it as its own, at the price of a fork.
//!
//! The keeper is the jail's child, not the helper's, so the jail waits for it and dies with it as
//! with any other. After a task the helper looks whether its network was used and takes a new one if
//! so: nothing of a task is there for the next. While a task runs it looks for what only it may see
//! (`mapped`).

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags},
    process::Signal,
};

use super::{
    keeper::{self, STACK, Stdio},
    mapped::Mapped,
    orders::{self, Inbox, Order},
    plan::Step,
    steps::{Hands, carry_out},
    stood::Traffic,
    sys::{self, Fork, Signals},
};

/// What a helper answers to a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Forked(i32),
    CannotFork(Errno),
    /// The ground could not be prepared: this step of it failed.
    NoGround {
        step: usize,
        errno: Errno,
    },
    /// It does not understand the jail.
    Confused,
}

impl Reply {
    pub const SIZE: usize = 12;

    fn encode(self) -> [u8; Self::SIZE] {
        let words = match self {
            Self::Forked(pid) => [1, pid, 0],
            Self::CannotFork(errno) => [2, errno.raw_os_error(), 0],
            Self::NoGround { step, errno } => [3, step as i32, errno.raw_os_error()],
            Self::Confused => [4, 0, 0],
        };
        let mut bytes = [0; Self::SIZE];
        for (place, word) in words.into_iter().enumerate() {
            bytes[4 * place..4 * place + 4].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    pub fn decode(bytes: [u8; Self::SIZE]) -> Self {
        let word = |place: usize| {
            i32::from_ne_bytes([bytes[place], bytes[place + 1], bytes[place + 2], bytes[place + 3]])
        };
        match word(0) {
            1 => Self::Forked(word(4)),
            2 => Self::CannotFork(Errno::from_raw_os_error(word(4))),
            3 => Self::NoGround { step: word(4) as usize, errno: Errno::from_raw_os_error(word(8)) },
            _ => Self::Confused,
        }
    }
}

/// Forks a helper into `namespaces` that prepares `ground` and serves `socket`.
pub fn fork(
    namespaces: u64,
    ground: &[Step],
    socket: BorrowedFd<'_>,
    null: BorrowedFd<'_>,
) -> Result<(i32, OwnedFd), Errno> {
    #[expect(unsafe_code, reason = "a fork")]
    // SAFETY: the jail has one thread (checked when it starts).
    match unsafe { sys::fork_into(namespaces) }? {
        Fork::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Fork::Child => {
            // A panic must not unwind into the jail's loop in this copy of it.
            let _never = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let (socket, null) = orders::place(socket, null);
                serve(ground, socket, null)
            }));
            sys::exit_now(1)
        }
    }
}

fn serve(ground: &[Step], socket: BorrowedFd<'_>, null: BorrowedFd<'_>) -> ! {
    Signals::all().block_only();
    let _named = rustix::thread::set_name(c"mesh-slot");
    let _armed = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let mut hands = Hands::default();
    for (number, step) in ground.iter().enumerate() {
        if let Err(errno) = carry_out(step, &mut hands) {
            reply(socket, Reply::NoGround { step: number, errno });
            // Until the jail has read it and closes.
            let _closed = rustix::net::recv(socket, &mut [0_u8; 1], RecvFlags::PEEK);
            sys::exit_now(1)
        }
    }
    // Again: a step may have changed who this is.
    let _armed = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let mut network = ground.contains(&Step::OwnNetwork).then(Traffic::watch);
    let mut stack = Vec::with_capacity(STACK);
    let mut inbox = Inbox::default();
    let mut mapped: Option<Mapped> = None;
    loop {
        if let Some(watch) = &mut mapped
            && !inbox.arrives(socket, watch.pause())
        {
            watch.look();
            continue;
        }
        match inbox.next(socket) {
            Some(Order::Clean) => {
                mapped = None;
                if network.as_ref().is_some_and(Traffic::seen) {
                    if carry_out(&Step::OwnNetwork, &mut hands).is_err() {
                        // The jail makes another slot.
                        sys::exit_now(1)
                    }
                    network = Some(Traffic::watch());
                }
            }
            Some(Order::Start(plan)) => {
                let Some([stdout, stderr, control]) = inbox.descriptors() else {
                    reply(socket, Reply::Confused);
                    sys::exit_now(1)
                };
                let stdio = Stdio {
                    stdin: null,
                    stdout: stdout.as_fd(),
                    stderr: stderr.as_fd(),
                    control: control.as_fd(),
                };
                let forked = keeper::start_from_helper(&plan, &stdio, &mut hands, stack.spare_capacity_mut());
                match forked {
                    Ok(keeper) => {
                        reply(socket, Reply::Forked(keeper.pid));
                        mapped = Mapped::new(&plan, keeper, control);
                    }
                    Err(errno) => reply(socket, Reply::CannotFork(errno)),
                }
            }
            None => sys::exit_now(0),
        }
    }
}

fn reply(socket: BorrowedFd<'_>, reply: Reply) {
    // Without a jail this process ends anyway.
    let _unheard = rustix::net::send(socket, &reply.encode(), SendFlags::NOSIGNAL);
}

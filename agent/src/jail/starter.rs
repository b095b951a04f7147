//! A starter: a second process of whoever keeps one task after another in a slot. It has gone once through
//! what each task would go through alike (user namespace, bounding set, `no_new_privs`, filter), and every
//! task is born of it by `vfork`, as the keeper's child. So a task gets all of that for nothing, where a
//! filter alone costs more than the fork.
//!
//! It shares the keeper's memory and open files, and nothing else; of the two one sleeps while the other
//! works, but for what the kernel does. It is no child that the keeper waits for with others, and it ends
//! with all else in the slot when that is emptied: then, and when the keeper has gone into another
//! namespace, another one is made. A task can reach it no more than the keeper: it is of another user,
//! and hidden.

#![expect(unsafe_code, reason = "a process in this memory")]

use std::{
    cell::UnsafeCell,
    ffi::{c_int, c_void},
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::{
    io::Errno,
    thread::futex::{self, Flags},
    time::Timespec,
};

use super::{
    plan::Step,
    steps::{Hands, carry_out},
    sys,
};

/// The starter sleeps, and what it was to do is done.
const READY: u32 = 0;
/// The keeper sleeps, and has something to be done.
const GO: u32 = 1;
/// That is begun.
const TAKEN: u32 = 2;
/// Its stack, in units of 16 bytes.
const STACK: usize = 4 * 1024;
/// How long the keeper sleeps before it looks whether the starter lives.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// A process's main function.
pub type Main = extern "C" fn(*mut c_void) -> c_int;

/// A starter, from the keeper's side.
pub struct Starter {
    pid: i32,
    shared: Box<Shared>,
    /// It lives on this.
    _stack: Vec<u128>,
}

struct Shared {
    turn: AtomicU32,
    /// Whoever's turn it is may touch this.
    work: UnsafeCell<Work>,
}

enum Work {
    /// Get ready by these steps.
    Prepare {
        steps: Vec<Step>,
        hands: *mut Hands,
    },
    Start {
        main: Main,
        stack: *mut [MaybeUninit<u128>],
        argument: *mut c_void,
    },
    Done(Result<i32, Errno>),
    /// It could not do this step, and has ended.
    Unready {
        step: usize,
        errno: Errno,
    },
}

impl Starter {
    /// Sees to it that there is one that lives, is where this process is and has gone through what is
    /// inherited of these steps; the error names the one that failed.
    pub fn ready(
        starter: &mut Option<Self>,
        steps: &[Step],
        hands: &mut Hands,
    ) -> Result<(), (usize, Errno)> {
        if !hands.has_moved() && starter.as_mut().is_some_and(|starter| !starter.is_dead()) {
            return Ok(());
        }
        *starter = None;
        let inherited = steps.iter().cloned().enumerate().filter(|(_, step)| step.is_inherited());
        let (places, steps): (Vec<usize>, Vec<Step>) = inherited.unzip();
        let made = Self::make(steps, hands);
        *starter = Some(made.map_err(|(step, errno)| (places.get(step).copied().unwrap_or(0), errno))?);
        Ok(())
    }

    /// One that has gone through these steps; the error names the one that failed.
    fn make(steps: Vec<Step>, hands: &mut Hands) -> Result<Self, (usize, Errno)> {
        let work = UnsafeCell::new(Work::Prepare { steps, hands });
        let mut shared = Box::new(Shared { turn: AtomicU32::new(GO), work });
        let mut stack = Vec::with_capacity(STACK);
        // SAFETY: `live` neither returns nor unwinds; stack and `shared` are kept until it is dead.
        let pid = unsafe {
            sys::process_beside(live, stack.spare_capacity_mut(), ptr::from_mut(&mut *shared).cast())
        };
        let mut starter = Self { pid: pid.map_err(|errno| (0, errno))?, shared, _stack: stack };
        match starter.wait() {
            Work::Unready { step, errno } => Err((step, errno)),
            Work::Prepare { .. } | Work::Start { .. } | Work::Done(_) => Ok(starter),
        }
    }

    /// Starts `main` on `stack` and returns when it has exec'd or exited; gives its pid. `OWNERDEAD`: the
    /// starter was killed before it began. Killed in the middle, it takes the keeper along, and so the whole
    /// slot: nobody else knows what was born.
    ///
    /// # Safety
    /// As for [`sys::vfork_with`].
    pub unsafe fn start(
        &mut self,
        main: Main,
        stack: &mut [MaybeUninit<u128>],
        argument: *mut c_void,
    ) -> Result<i32, Errno> {
        *self.shared.work.get_mut() = Work::Start { main, stack, argument };
        self.shared.turn.store(GO, Ordering::Release);
        let _awake = futex::wake(&self.shared.turn, Flags::PRIVATE, 1);
        match self.wait() {
            Work::Done(born) => born,
            Work::Prepare { .. } | Work::Start { .. } | Work::Unready { .. } => Err(Errno::OWNERDEAD),
        }
    }

    /// Sleeps until it has done its work, or has died.
    fn wait(&mut self) -> Work {
        loop {
            let turn = self.shared.turn.load(Ordering::Acquire);
            if turn == READY {
                break;
            }
            let woken = futex::wait(&self.shared.turn, Flags::PRIVATE, turn, Some(&LOOK));
            if woken == Err(Errno::TIMEDOUT) && self.is_dead() {
                match self.shared.turn.load(Ordering::Acquire) {
                    TAKEN => sys::exit_now(1),
                    _ => break,
                }
            }
        }
        std::mem::replace(self.shared.work.get_mut(), Work::Done(Err(Errno::CHILD)))
    }

    /// The processor time that it has used.
    pub fn used(&self) -> Duration {
        sys::used_by(self.pid).unwrap_or_default()
    }

    /// Whether it has died: with all else in the slot, as a rule.
    pub fn is_dead(&mut self) -> bool {
        self.pid == 0 || sys::bury_beside(self.pid, false).is_some() && std::mem::take(&mut self.pid) != 0
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        if self.pid != 0 {
            sys::kill_now(self.pid);
            sys::bury_beside(self.pid, true);
        }
    }
}

/// Its whole life, in the keeper's memory.
extern "C" fn live(shared: *mut c_void) -> c_int {
    // SAFETY: the keeper keeps it until this process is dead.
    let shared = unsafe { &*shared.cast::<Shared>() };
    let _unnamed = rustix::thread::set_name(c"mesh-starter");
    // Not where the keeper is: it would hold that task's directory for as long as it lives.
    let _there = rustix::process::chdir(c"/");
    // SAFETY: it is this side's turn, and the keeper's hands are still.
    let work = unsafe { &mut *shared.work.get() };
    if let Work::Prepare { steps, hands } = work {
        // SAFETY: as above.
        let hands = unsafe { &mut **hands };
        let failed =
            steps.iter().enumerate().find_map(|(step, what)| Some((step, carry_out(what, hands).err()?)));
        if let Some((step, errno)) = failed {
            *work = Work::Unready { step, errno };
            shared.hand_over();
            sys::exit_now(1)
        }
    }
    // A slot ends with its keeper anyway; a worker of a measurement has none.
    let _armed = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    loop {
        shared.hand_over();
        while shared.turn.load(Ordering::Acquire) == READY {
            let _woken = futex::wait(&shared.turn, Flags::PRIVATE, READY, None);
        }
        shared.turn.store(TAKEN, Ordering::Release);
        // SAFETY: it is this side's turn.
        let work = unsafe { &mut *shared.work.get() };
        if let Work::Start { main, stack, argument } = work {
            // SAFETY: as the caller of `start` promises, who waits.
            let born = unsafe { sys::vfork_sibling_with(*main, &mut **stack, *argument) };
            *work = Work::Done(born);
        }
    }
}

impl Shared {
    fn hand_over(&self) {
        self.turn.store(READY, Ordering::Release);
        let _awake = futex::wake(&self.turn, Flags::PRIVATE, 1);
    }
}

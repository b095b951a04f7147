//! Who keeps an attempt: a keeper of its own or one that stands by.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use super::super::{
    keeper::{self, Keeper, Stdio},
    keepers::Standing,
    plan::Plan,
    protocol::{Bounds, StartRequest, Wall},
    slot::Slot,
};

/// What of the processes that stand by serves an attempt.
pub enum Post {
    /// None: it gets a keeper of its own from the jail.
    Nobody,
    /// It gets a keeper of its own from a slot's helper.
    Slot(Slot),
    Keeper(Standing),
}

/// Who keeps it.
pub enum Kept {
    /// A keeper of its own, to the socket on which it speaks, in a slot at level strict.
    Own { keeper: Keeper, control: OwnedFd, slot: Option<Slot> },
    /// One that keeps others after it.
    Standing(Standing),
}

impl Kept {
    pub fn keeper(&self) -> &Keeper {
        match self {
            Self::Own { keeper, .. } => keeper,
            Self::Standing(standing) => &standing.keeper,
        }
    }
}

/// Has somebody keep it; `given` is what the task has at 0 to 2. The error is for people.
pub fn keep(
    request: &StartRequest,
    plan: &Plan,
    post: Post,
    given: [BorrowedFd<'_>; 3],
) -> Result<Kept, Box<(String, Post)>> {
    let [stdin, stdout, stderr] = given;
    let bounds = if request.without.contains(&Wall::Limits) { Bounds::default() } else { request.bounds };
    if let Post::Keeper(mut standing) = post {
        return match standing.start(plan, &bounds, stdout, stderr) {
            Ok(()) => Ok(Kept::Standing(standing)),
            Err(why) => Err(Box::new((why, Post::Keeper(standing)))),
        };
    }
    let (control, theirs) = match keeper::control() {
        Ok(control) => control,
        Err(error) => {
            let why = format!("cannot make a socket: {}", io::Error::from(error));
            return Err(Box::new((why, post)));
        }
    };
    let ends = Stdio { stdin, stdout, stderr, control: theirs.as_fd() };
    match post {
        Post::Slot(mut slot) => match slot.start(plan, &bounds, &ends) {
            Ok(keeper) => Ok(Kept::Own { keeper, control, slot: Some(slot) }),
            Err(why) => Err(Box::new((why, Post::Slot(slot)))),
        },
        Post::Nobody | Post::Keeper(_) => match keeper::start(plan, &ends) {
            Ok(keeper) => Ok(Kept::Own { keeper, control, slot: None }),
            Err(error) => {
                let why = format!("cannot fork: {}", io::Error::from(error));
                Err(Box::new((why, Post::Nobody)))
            }
        },
    }
}

//! The points of the commit path at which tests let the process die.
//!
//! Only the tests of this crate can arm one: in every other build [`reach`] is an empty function
//! that is compiled away. A point belongs to the thread of its test, so tests do not meet.
//! `commit/tests/crash.rs` dies at every one of them, each time that it is reached.

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident,)*) => {
        /// A step of the commit path.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Point {
            $($(#[$doc])* $point,)*
        }

        #[cfg(test)]
        impl Point {
            /// Every one of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$point,)*];
        }
    };
}

points! {
    /// A batch is decided; nothing of it was sent.
    BeforeCommit,
    /// Committed; the loop does not know it yet.
    AfterCommit,
    /// The loop knows it, and has said nothing.
    BeforeRelease,
    /// Before each word of a batch that is said.
    AmidRelease,
    /// All of a batch was said.
    AfterRelease,
    /// The database refused a batch; it is not yet taken apart.
    BeforeSplit,
    /// A term begins: who leads is read, the lead is not taken.
    BeforeTake,
    /// The new epoch stands; nothing was read.
    AfterTake,
    /// Everything unfinished was read; nobody was told.
    AfterLoad,
    /// The process ends in good order; the lead is still held.
    BeforeLayDown,
    /// The lead was laid down.
    AfterLayDown,
}

/// Outside of tests: nothing.
#[cfg(not(test))]
#[inline]
pub(crate) const fn reach(_: Point) {}

#[cfg(test)]
pub(crate) use armed::{arm, disarm, reach};

#[cfg(test)]
mod armed {
    use std::{cell::RefCell, panic::resume_unwind};

    use tokio::task::AbortHandle;

    use super::Point;

    /// Where to die.
    struct Armed {
        point: Point,
        /// How often it is passed by before.
        passes: u32,
        process: AbortHandle,
    }

    thread_local! {
        static ARMED: RefCell<Option<Armed>> = const { RefCell::new(None) };
    }

    /// Lets the commit loop that runs as `process` die where the point is reached the next time
    /// after so many passes.
    pub(crate) fn arm(point: Point, passes: u32, process: AbortHandle) {
        ARMED.replace(Some(Armed { point, passes, process }));
    }

    /// Whether a point was still armed: nobody died there.
    pub(crate) fn disarm() -> bool {
        ARMED.take().is_some()
    }

    /// Dies if this point is armed: the loop, and the task that reached it, at once.
    pub(crate) fn reach(point: Point) {
        let dies = ARMED.with_borrow_mut(|armed| {
            let here = armed.as_mut().filter(|armed| armed.point == point)?;
            if here.passes > 0 {
                here.passes -= 1;
                return None;
            }
            armed.take()
        });
        if let Some(armed) = dies {
            armed.process.abort();
            // Unwinds without the noise of a panic.
            resume_unwind(Box::new("dies at a failpoint"));
        }
    }
}

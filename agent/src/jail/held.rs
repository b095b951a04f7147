//! What holds the tasks of a slot: its control groups, where there are any, and how many of its processes
//! the memory killer had taken before the task.

use std::{io, os::fd::BorrowedFd, path::PathBuf};

use super::{cgroup::Group, protocol::Bounds};

/// The hold on one slot.
pub struct Held {
    group: Option<Group>,
    kills: u64,
}

impl Held {
    pub fn by(group: Option<Group>) -> Self {
        Self { group, kills: 0 }
    }

    /// The files by which a process goes into it.
    pub fn lists(&self) -> Vec<PathBuf> {
        self.group.as_ref().map(Group::lists).unwrap_or_default()
    }

    /// Whether a task with these bounds would have room beside what former ones have left.
    pub fn fits(&self, bounds: &Bounds) -> bool {
        self.group.as_ref().is_none_or(|group| group.fits(bounds))
    }

    /// Bounds the next task.
    pub fn bound(&mut self, bounds: &Bounds) -> io::Result<()> {
        let Some(group) = &mut self.group else { return Ok(()) };
        self.kills = group.kills();
        group.bound(bounds)
    }

    /// Becomes readable when the task's memory has run out.
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        self.group.as_ref().map(Group::event)
    }

    /// Takes that; tells whether it has.
    pub fn take_event(&mut self) -> bool {
        let kills = self.kills;
        self.group.as_mut().is_some_and(|group| group.take_event(kills))
    }

    /// Whether the memory killer has taken a process of the task that was bounded last.
    pub fn was_killed_into(&mut self) -> bool {
        let kills = self.kills;
        self.group.as_mut().is_some_and(|group| group.kills() > kills)
    }

    /// Whether nobody but this process is in it.
    pub fn is_clean(&self, pid: i32) -> bool {
        self.group.as_ref().is_none_or(|group| group.is_clean(pid))
    }
}

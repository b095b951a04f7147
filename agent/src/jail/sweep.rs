//! Finding processes by descent, for where no pid namespace holds them together. Works because
//! keeper and jail are subreapers: whoever loses its parent becomes their child, so everything
//! that a task ever started descends from its keeper, or, if that was killed, from the jail.

use std::{collections::HashMap, fs};

use super::sys;

/// Parent of each process on this machine, as far as /proc shows them.
fn parents() -> Vec<(i32, i32)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| Some((pid, stat(pid)?.parent)))
        .collect()
}

/// Some fields of `/proc/PID/stat`.
pub struct Stat {
    pub parent: i32,
    /// Clock ticks since boot when the process started.
    pub start_time: u64,
}

/// Reads them; none when the process is gone.
pub fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may itself hold parentheses and blanks, and need not be UTF-8.
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let rest = str::from_utf8(text.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let start_time = fields.nth(17)?.parse().ok()?;
    Some(Stat { parent, start_time })
}

/// Every process that descends from one of `roots`, they themselves not.
fn below(roots: &[i32]) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for (pid, parent) in parents() {
        children.entry(parent).or_default().push(pid);
    }
    let mut found = Vec::new();
    let mut next = roots.to_vec();
    while let Some(pid) = next.pop() {
        if let Some(children) = children.remove(&pid) {
            next.extend(&children);
            found.extend(children);
        }
    }
    found
}

/// Signals every process that descends from `root`.
pub fn signal_descendants(root: i32, signal: i32) {
    for pid in below(&[root]) {
        sys::signal(pid, signal);
    }
}

/// Kills every child of `jail` that is none of its `keepers`, and what descends from it: what a
/// keeper that was killed has left. Tells whether any was there.
pub fn kill_orphans(jail: i32, keepers: &[i32]) -> bool {
    let orphans: Vec<i32> = parents()
        .into_iter()
        .filter(|(pid, parent)| *parent == jail && !keepers.contains(pid))
        .map(|(pid, _)| pid)
        .collect();
    for &pid in orphans.iter().chain(&below(&orphans)) {
        sys::signal(pid, libc::SIGKILL);
    }
    !orphans.is_empty()
}

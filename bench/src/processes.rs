//! What processes have used and hold, from /proc.

use std::{collections::BTreeMap, fs, time::Duration};

use nix::unistd::{SysconfVar, sysconf};

/// Processor time of single processes, their children apart.
#[derive(Clone, Debug, Default)]
pub struct Usage(BTreeMap<u32, Duration>);

impl Usage {
    /// What these processes have used until now.
    #[must_use]
    pub fn of(pids: &[u32]) -> Self {
        Self(pids.iter().filter_map(|pid| Some((*pid, stat(*pid)?.own))).collect())
    }

    /// What the dead children of these processes had used, and theirs, as far as they were buried.
    #[must_use]
    pub fn of_buried(pids: &[u32]) -> Self {
        Self(pids.iter().filter_map(|pid| Some((*pid, stat(*pid)?.buried))).collect())
    }

    /// Used since `earlier`. A process that is new since then counts in full.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Duration {
        self.0
            .iter()
            .map(|(pid, now)| now.saturating_sub(earlier.0.get(pid).copied().unwrap_or_default()))
            .sum()
    }
}

struct Stat {
    parent: u32,
    own: Duration,
    buried: Duration,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The fields after the name, which stands in brackets and may hold anything: state, parent, …
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let per_second = sysconf(SysconfVar::CLK_TCK).ok()??.cast_unsigned();
    let time = |ticks: u64| Duration::from_nanos(ticks * (1_000_000_000 / per_second.max(1)));
    let (own, buried) = (time(number(11)? + number(12)?), time(number(13)? + number(14)?));
    Some(Stat { parent: number(1)? as u32, own, buried })
}

/// The processes whose parent this is.
#[must_use]
pub fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == parent)).collect()
}

/// What strict tasks are born of, at these keepers. They live as long as those and are buried with them.
#[must_use]
pub fn starters(keepers: &[u32]) -> Vec<u32> {
    let below = keepers.iter().flat_map(|keeper| children(*keeper));
    below.filter(|pid| name(*pid) == "mesh-starter").collect()
}

/// The name that a process gave itself.
#[must_use]
pub fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// A process's resident memory in MiB.
#[must_use]
pub fn resident_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0.0);
    kib / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_with_what_it_uses_and_its_parent() {
        let own = std::process::id();
        let before = Usage::of(&[own]);
        while Usage::of(&[own]).since(&before).is_zero() {
            std::hint::black_box(vec![0_u8; 1 << 20]);
        }
        assert!(resident_mib(own) > 1.0);
        let mut child =
            std::process::Command::new("/bin/cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert!(children(own).contains(&child.id()));
        assert_eq!(name(child.id()), "cat");
        drop(child.stdin.take());
        child.wait().unwrap();
        let before = Usage::of_buried(&[own]);
        while Usage::of_buried(&[own]).since(&before).is_zero() {
            assert!(std::process::Command::new("/bin/true").status().unwrap().success());
        }
    }
}

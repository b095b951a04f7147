//! Which nodes may run a class at all, whatever is free at the moment.

use super::super::{
    node::Node,
    types::{Requirements, SandboxLevel},
};

/// Why a node may not run a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It has not registered since the coordinator started.
    Unknown,
    Name,
    Os,
    Arch,
    Tag(String),
    Capability(String),
    /// The level is not available there, or is weaker than it accepts.
    Sandbox,
    Limits,
    /// Its operator does not let tasks use its network.
    Network,
    /// Its operator does not allow a mount of this name, or not to write.
    Mount(String),
    /// It could not hold the task even when idle.
    TooSmall,
}

impl Unfit {
    /// The reason's kind, a word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unknown => "away",
            Self::Name => "name",
            Self::Os => "os",
            Self::Arch => "arch",
            Self::Tag(_) => "tag",
            Self::Capability(_) => "capability",
            Self::Sandbox => "sandbox",
            Self::Limits => "limits",
            Self::Network => "network",
            Self::Mount(_) => "mount",
            Self::TooSmall => "size",
        }
    }
}

/// Whether `node` may run tasks with these requirements when it is idle.
pub fn admits(wanted: &Requirements, node: &Node) -> Result<(), Unfit> {
    let facts = node.facts.as_ref().ok_or(Unfit::Unknown)?;
    if wanted.node.as_ref().is_some_and(|name| *name != node.record.name) {
        return Err(Unfit::Name);
    }
    if wanted.os.as_ref().is_some_and(|os| *os != facts.os) {
        return Err(Unfit::Os);
    }
    if wanted.arch.as_ref().is_some_and(|arch| *arch != facts.arch) {
        return Err(Unfit::Arch);
    }
    for (tag, value) in &wanted.tags {
        let has = node.record.tags.get(tag).or_else(|| facts.tags.get(tag));
        if has != Some(value) {
            return Err(Unfit::Tag(tag.clone()));
        }
    }
    if let Some(missing) = wanted.capabilities.difference(&facts.capabilities).next() {
        return Err(Unfit::Capability(missing.clone()));
    }
    let (strongest, weakest) = facts.sandbox;
    if strength(wanted.sandbox) > strength(strongest) || strength(wanted.sandbox) < strength(weakest) {
        return Err(Unfit::Sandbox);
    }
    if wanted.cgroup && !facts.cgroup {
        return Err(Unfit::Limits);
    }
    if wanted.host_network && !facts.host_network {
        return Err(Unfit::Network);
    }
    for (name, written) in &wanted.mounts {
        if facts.mounts.get(name).is_none_or(|writable| *written && !writable) {
            return Err(Unfit::Mount(name.clone()));
        }
    }
    let share = node.share(&wanted.resources);
    let holds = share.cpu_millis <= facts.total.cpu_millis
        && share.memory <= facts.total.memory
        && share
            .named
            .iter()
            .all(|(name, units)| facts.total.named.get(name).is_some_and(|total| units <= total));
    if holds { Ok(()) } else { Err(Unfit::TooSmall) }
}

fn strength(level: SandboxLevel) -> u8 {
    match level {
        SandboxLevel::Unspecified | SandboxLevel::None => 0,
        SandboxLevel::Basic => 1,
        SandboxLevel::Strict => 2,
    }
}

//! What this machine is and how busy it is: the facts that a node registers with, and the load
//! that its heartbeats carry.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use mesh_proto::v1;

use crate::attempts::Capacity;
use crate::config::{AllowNetwork, Config};
use crate::jail;

/// What was found out about the machine when the daemon started.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The kernel's id of this boot.
    pub boot_id: String,
    cores: u32,
    total_memory: u64,
    kernel: String,
    gpus: Vec<v1::Gpu>,
}

impl Machine {
    /// Looks at the machine. Blocks for as long as the drivers take to answer.
    pub fn look() -> io::Result<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Ok(Self { boot_id, cores, total_memory: memory().total, kernel: kernel(), gpus: gpus() })
    }

    /// What tasks may use here; nobody stands in line.
    pub fn capacity(&self, config: &Config) -> Capacity {
        let slots = config.slots.unwrap_or(self.cores);
        let memory_bytes = config.memory_bytes.unwrap_or_else(|| without_reserve(self.total_memory));
        Capacity {
            slots,
            // A slot is a core: more slots than cores say that tasks may share them.
            cpu_millis: u64::from(slots) * 1000,
            memory_bytes,
            named: config.resources.clone(),
            in_line: 0,
        }
    }

    /// The facts to register with; without slots while the node drains.
    pub fn facts(&self, config: &Config, name: &str, sandbox: &v1::Sandbox, draining: bool) -> v1::NodeFacts {
        let capacity = self.capacity(config);
        v1::NodeFacts {
            name: name.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            slots: if draining { 0 } else { capacity.slots },
            cpu_millis: if draining { 0 } else { u32::try_from(capacity.cpu_millis).unwrap_or(u32::MAX) },
            memory_bytes: capacity.memory_bytes,
            disk_bytes: disk(&config.data_dir).total,
            resources: capacity.named.into_iter().collect(),
            tags: config.tags.clone().into_iter().collect::<HashMap<_, _>>(),
            capabilities: config.capabilities.clone(),
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            gpus: self.gpus.clone(),
            sandbox: Some(sandbox.clone()),
            cores: self.cores,
            total_memory_bytes: self.total_memory,
            kernel: self.kernel.clone(),
        }
    }
}

/// The sandbox as the jail proved it and the operator allows it.
pub fn sandbox(probe: &jail::Probe, config: &Config) -> v1::Sandbox {
    let strongest = wire_level(probe.strongest);
    let layers = probe.layers.iter().map(|layer| v1::SandboxLayer {
        name: layer.name.clone(),
        present: layer.present,
        remedy: layer.remedy.clone(),
    });
    v1::Sandbox {
        strongest: strongest.into(),
        weakest: config.sandbox_allow.wire().into(),
        limits: match probe.limits {
            jail::Limits::Cgroup => "cgroup",
            jail::Limits::Rlimit => "rlimit",
        }
        .to_owned(),
        layers: layers.collect(),
        host_network: config.allow_network == AllowNetwork::Host,
        mounts: config
            .mounts
            .iter()
            .map(|(name, mount)| v1::Mount {
                name: name.clone(),
                to: String::new(),
                read_only: mount.read_only,
            })
            .collect(),
    }
}

/// A level of the jail as it is told to the coordinator.
pub fn wire_level(level: jail::Level) -> v1::SandboxLevel {
    match level {
        jail::Level::None => v1::SandboxLevel::None,
        jail::Level::Basic => v1::SandboxLevel::Basic,
        jail::Level::Strict => v1::SandboxLevel::Strict,
    }
}

/// All but what the machine itself needs: a tenth, at least 256 MiB, at most 2 GiB.
fn without_reserve(total: u64) -> u64 {
    let reserve = (total / 10).clamp(256 << 20, 2 << 30);
    total.saturating_sub(reserve).max(total / 2)
}

/// Size and free part of something, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    pub total: u64,
    pub free: u64,
}

/// The machine's memory; `free` counts what caches give back.
pub fn memory() -> Space {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    Space { total: field("MemTotal"), free: field("MemAvailable") }
}

/// The filesystem that holds `path`; `free` is what an ordinary user may still fill.
pub fn disk(path: &Path) -> Space {
    match rustix::fs::statvfs(path) {
        Ok(stat) => Space { total: stat.f_blocks * stat.f_frsize, free: stat.f_bavail * stat.f_frsize },
        Err(_) => Space::default(),
    }
}

fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The machine's NVIDIA devices. No driver, no library and no device all mean: none.
fn gpus() -> Vec<v1::Gpu> {
    let Ok(nvml) = nvml_wrapper::Nvml::init() else { return Vec::new() };
    let count = nvml.device_count().unwrap_or(0);
    let gpu = |index| {
        let device = nvml.device_by_index(index).ok()?;
        Some(v1::Gpu {
            name: device.name().ok()?,
            uuid: device.uuid().ok()?,
            memory_bytes: device.memory_info().ok()?.total,
        })
    };
    (0..count).filter_map(gpu).collect()
}

/// How busy the processors were between two looks.
#[derive(Debug, Default)]
pub struct Load {
    busy: u64,
    total: u64,
}

impl Load {
    /// The share of processor time that was used since the last look, in thousandths.
    pub fn permille(&mut self) -> u32 {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        self.advance(&text)
    }

    fn advance(&mut self, stat: &str) -> u32 {
        let ticks: Vec<u64> = stat
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("cpu "))
            // user nice system idle iowait irq softirq steal; guest time is in user already
            .map(|line| line.split_ascii_whitespace().take(8).filter_map(|n| n.parse().ok()).collect())
            .unwrap_or_default();
        let total: u64 = ticks.iter().sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        let busy = total - idle;
        let (all, used) = (total.saturating_sub(self.total), busy.saturating_sub(self.busy));
        (self.busy, self.total) = (busy, total);
        (used * 1000).checked_div(all).map_or(0, |permille| permille.min(1000) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_the_share_of_busy_time_since_the_last_look() {
        let mut load = Load::default();
        load.advance("cpu  100 0 100 800 0 0 0 0 0 0\n");
        assert_eq!(load.advance("cpu  150 0 125 900 25 0 0 0 0 0\n"), 375);
        assert_eq!(load.advance("cpu  150 0 125 900 25 0 0 0 0 0\n"), 0, "no time passed");
        assert_eq!(load.advance("nonsense"), 0);
    }

    #[test]
    fn the_reserve_leaves_tasks_most_of_the_memory() {
        assert_eq!(without_reserve(64 << 30), 62 << 30);
        assert_eq!(without_reserve(4 << 30), (4 << 30) - (4 << 30) / 10);
        assert_eq!(without_reserve(400 << 20), 200 << 20);
    }

    #[test]
    fn this_machine_has_memory_and_a_disk() {
        let space = memory();
        assert!(space.total > 0 && space.free <= space.total);
        assert!(disk(Path::new("/")).total > 0);
        assert!(!Machine::look().unwrap().boot_id.is_empty());
    }
}

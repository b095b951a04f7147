//! P1 and P2: no-op processes on two slots, against the rate at which this machine starts and reaps
//! them at all; and the processor time of everything, the tasks' own apart.

use std::time::{Duration, Instant};

use mesh_e2e::Agent;
use mesh_proto::v1::SandboxLevel;

use crate::{
    bed::{Bed, jail_of},
    floor::{process_ms, spawns_per_second},
    jobs::{completed, no_ops, submit},
    processes::{Usage, children, starters},
    report::Figure,
};

/// Processes at a time, of the mesh and of the floor.
pub const SLOTS: u32 = 2;

struct Level {
    id: &'static str,
    sandbox: SandboxLevel,
    name: &'static str,
    rate: &'static str,
    way: &'static str,
}

const LEVELS: [Level; 3] = [
    Level { id: "P1", sandbox: SandboxLevel::None, name: "none", rate: "ratio ≥ 0.70", way: "≤ 0.30 ms" },
    Level { id: "P1", sandbox: SandboxLevel::Basic, name: "basic", rate: "", way: "" },
    Level { id: "P2", sandbox: SandboxLevel::Strict, name: "strict", rate: "ratio ≥ 0.50", way: "" },
];

/// Those of these figures; tasks of one run take some seconds on two slots.
pub async fn run(
    bed: &Bed,
    agent: &Agent,
    ids: &[&str],
    tasks: u32,
    runs: usize,
) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for level in LEVELS.iter().filter(|level| ids.contains(&level.id)) {
        figures.extend(level.run(bed, agent, tasks, runs).await?);
    }
    Ok(figures)
}

impl Level {
    async fn run(&self, bed: &Bed, agent: &Agent, tasks: u32, runs: usize) -> anyhow::Result<Vec<Figure>> {
        let (mut rates, mut floors, mut process) = (Vec::new(), Vec::new(), Vec::new());
        let mut used: [Vec<f64>; 4] = Default::default();
        // The first is a warm-up.
        for run in 0..=runs {
            let tasks = if run == 0 { tasks / 4 } else { tasks };
            let floor = spawns_per_second(SLOTS as usize, Duration::from_secs(1));
            let alone = process_ms();
            let before = usage(bed, agent)?;
            let began = Instant::now();
            let mut jobs = bed.jobs();
            let number = submit(&mut jobs, no_ops(tasks, self.sandbox)).await?;
            completed(&mut jobs, number).await?;
            let rate = f64::from(tasks) / began.elapsed().as_secs_f64();
            let after = usage(bed, agent)?;
            if run > 0 {
                rates.push(rate);
                floors.push(floor);
                process.push(alone);
                for (part, (before, after)) in used.iter_mut().zip(before.iter().zip(&after)) {
                    part.push(after.since(before).as_secs_f64() * 1000.0 / f64::from(tasks));
                }
            }
        }
        let Self { id, name, .. } = self;
        let [coordinator, postgres, jail, inside] = used;
        let way = (0..runs).map(|run| coordinator[run] + postgres[run] + jail[run]).collect();
        Ok(vec![
            Figure::new(id, format!("no-op processes, {SLOTS} slots, sandbox {name}"), "/s", rates)
                .floor("/bin/true, 2 at a time", floors)
                .target(self.rate),
            Figure::new(id, format!("processor time of a task's way, sandbox {name}"), "ms", way)
                .target(self.way),
            Figure::new(id, "… of the coordinator", "ms", coordinator),
            Figure::new(id, "… of the Postgres", "ms", postgres),
            Figure::new(id, "… of agent and jail, slots' helpers included", "ms", jail),
            Figure::new(id, "and of the task, keeper and sandbox included", "ms", inside)
                .floor("/bin/true", process),
        ])
    }
}

/// Coordinator, Postgres, agent with its jail and what stands ready under it; and the tasks.
fn usage(bed: &Bed, agent: &Agent) -> anyhow::Result<[Usage; 4]> {
    let [coordinator, postgres] = bed.coordinator_usage()?;
    let jail = jail_of(agent)?;
    let mut keepers = children(jail);
    keepers.push(jail);
    let tasks = Usage::of_buried(&keepers);
    keepers.extend(starters(&keepers));
    keepers.push(agent.pid());
    Ok([coordinator, postgres, Usage::of(&keepers), tasks])
}

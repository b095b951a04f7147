//! P1: no-op processes on two slots, against the rate at which this machine starts and reaps
//! them at all; and the processor time of everything but the tasks.

use std::time::{Duration, Instant};

use mesh_e2e::Agent;
use mesh_proto::v1::SandboxLevel;

use crate::{
    bed::{Bed, jail_of},
    floor::spawns_per_second,
    jobs::{completed, no_ops, submit},
    processes::{Usage, children},
    report::Figure,
};

/// Processes at a time, of the mesh and of the floor.
pub const SLOTS: u32 = 2;

/// Tasks of one run take some seconds on two slots.
pub async fn run(bed: &Bed, agent: &Agent, tasks: u32, runs: usize) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (sandbox, name) in [(SandboxLevel::None, "none"), (SandboxLevel::Basic, "basic")] {
        let (mut rates, mut floors) = (Vec::new(), Vec::new());
        let mut used: [Vec<f64>; 3] = Default::default();
        // The first is a warm-up.
        for run in 0..=runs {
            let tasks = if run == 0 { tasks / 4 } else { tasks };
            let floor = spawns_per_second(SLOTS as usize, Duration::from_secs(1));
            let before = usage(bed, agent)?;
            let began = Instant::now();
            let mut jobs = bed.jobs();
            let number = submit(&mut jobs, no_ops(tasks, sandbox)).await?;
            completed(&mut jobs, number).await?;
            let rate = f64::from(tasks) / began.elapsed().as_secs_f64();
            let after = usage(bed, agent)?;
            if run > 0 {
                rates.push(rate);
                floors.push(floor);
                for (part, (before, after)) in used.iter_mut().zip(before.iter().zip(&after)) {
                    part.push(after.since(before).as_secs_f64() * 1000.0 / f64::from(tasks));
                }
            }
        }
        let target = if sandbox == SandboxLevel::None { "ratio ≥ 0.70" } else { "" };
        figures.push(
            Figure::new("P1", format!("no-op processes, {SLOTS} slots, sandbox {name}"), "/s", rates)
                .floor("/bin/true, 2 at a time", floors)
                .target(target),
        );
        let sums = (0..runs).map(|run| used.iter().map(|part| part[run]).sum()).collect();
        let target = if sandbox == SandboxLevel::None { "≤ 0.30 ms" } else { "" };
        figures.push(
            Figure::new("P1", format!("processor time of a task's way, sandbox {name}"), "ms", sums)
                .target(target),
        );
        for (part, name) in used.into_iter().zip(["coordinator", "Postgres", "agent and jail"]) {
            figures.push(Figure::new("P1", format!("… of the {name}"), "ms", part));
        }
    }
    Ok(figures)
}

/// Coordinator, Postgres, agent with its jail and what stands ready under it. What those have buried are
/// the tasks.
fn usage(bed: &Bed, agent: &Agent) -> anyhow::Result<[Usage; 3]> {
    let [coordinator, postgres] = bed.coordinator_usage()?;
    let jail = jail_of(agent)?;
    let mut agents = children(jail);
    agents.extend([jail, agent.pid()]);
    Ok([coordinator, postgres, Usage::of(&agents)])
}

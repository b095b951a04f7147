//! P5: finished tasks a second, each assigned and ended durably, from simulated agents over
//! real gRPC; with a short queue and with a long one.

use std::time::{Duration, Instant};

use anyhow::ensure;
use mesh_proto::v1::{CancelJobRequest, SandboxLevel};
use tokio::time::sleep;

use crate::{
    bed::Bed,
    fleet::Fleet,
    floor::queue_rows_per_second,
    jobs::{ended, no_ops, submit},
    report::Figure,
};

/// What is measured, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub agents: u32,
    /// Of each agent.
    pub slots: u32,
    /// Elements of the long array.
    pub long: u32,
    /// Elements of each of the short ones.
    pub short: u32,
    /// Of one run.
    pub window: Duration,
}

impl Default for Load {
    fn default() -> Self {
        Self { agents: 16, slots: 64, long: 1_000_000, short: 1000, window: Duration::from_secs(3) }
    }
}

pub async fn run(bed: &Bed, load: Load, runs: usize) -> anyhow::Result<Vec<Figure>> {
    let mut fleet = Fleet::connect(bed, "load", load.agents, load.slots).await?;
    let (mut few, mut many, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    let mut used: [Vec<f64>; 2] = Default::default();
    let postgres = bed.postgres();
    for _ in 0..runs {
        floors.push(queue_rows_per_second(&postgres, Duration::from_secs(1)).await?);
        few.push(short_queue(bed, &mut fleet, load).await?);
        let before = bed.coordinator_usage()?;
        let (rate, count) = long_queue(bed, &mut fleet, load).await?;
        let after = bed.coordinator_usage()?;
        many.push(rate);
        for (part, (before, after)) in used.iter_mut().zip(before.iter().zip(&after)) {
            part.push(after.since(before).as_secs_f64() * 1000.0 / count as f64);
        }
    }
    let agents = load.agents;
    let what = |queued: u32| format!("finished tasks, {queued} queued, {agents} simulated agents");
    let floor = "Postgres: rows claimed and completed, 100 a commit";
    let mut figures = vec![
        Figure::new("P5", what(load.short), "/s", few).floor(floor, floors.clone()).target("≥ 20,000 /s"),
        Figure::new("P5", what(load.long), "/s", many).floor(floor, floors).target("≥ 20,000 /s"),
    ];
    for (part, name) in used.into_iter().zip(["coordinator", "Postgres"]) {
        figures.push(Figure::new("P5", format!("processor time of a task at the {name}"), "ms", part));
    }
    Ok(figures)
}

/// Small jobs, submitted so that about one is waiting whole while others run.
async fn short_queue(bed: &Bed, fleet: &mut Fleet, load: Load) -> anyhow::Result<f64> {
    let start = fleet.finished();
    let mut submitted = 0_u64;
    // What agents hold: what runs there, as much in their short queues, and what makes these deep.
    let held = u64::from(load.agents * (load.slots * 2 + 64));
    let wanted = held + u64::from(load.short);
    let warm = Instant::now() + load.window / 3;
    let mut measured: Option<(Instant, u64)> = None;
    let rate = loop {
        let finished = fleet.finished() - start;
        while submitted - finished.min(submitted) < wanted {
            submit(&mut bed.jobs(), no_ops(load.short, SandboxLevel::None)).await?;
            submitted += u64::from(load.short);
        }
        let now = Instant::now();
        match measured {
            None if now >= warm => measured = Some((now, finished)),
            Some((since, from)) if now - since >= load.window => {
                break (finished - from) as f64 / (now - since).as_secs_f64();
            }
            None | Some(_) => {}
        }
        fleet.check()?;
        sleep(Duration::from_millis(2)).await;
    };
    finish(fleet, start + submitted).await?;
    Ok(rate)
}

/// One array that is far from its end when the measuring ends.
async fn long_queue(bed: &Bed, fleet: &mut Fleet, load: Load) -> anyhow::Result<(f64, u64)> {
    let begin = fleet.finished();
    let mut jobs = bed.jobs();
    let number = submit(&mut jobs, no_ops(load.long, SandboxLevel::None)).await?;
    sleep(load.window / 3).await;
    let (since, from) = (Instant::now(), fleet.finished());
    sleep(load.window).await;
    let rate = (fleet.finished() - from) as f64 / since.elapsed().as_secs_f64();
    fleet.check()?;
    ensure!(fleet.finished() - begin < u64::from(load.long), "the long queue ran dry");
    jobs.cancel_job(CancelJobRequest { job: number.to_string(), reason: String::new() }).await?;
    ended(&mut jobs, number).await?;
    Ok((rate, fleet.finished() - begin))
}

async fn finish(fleet: &mut Fleet, count: u64) -> anyhow::Result<()> {
    let limit = Instant::now() + Duration::from_mins(1);
    while fleet.finished() < count {
        fleet.check()?;
        ensure!(Instant::now() < limit, "{} of {count} tasks ended", fleet.finished());
        sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

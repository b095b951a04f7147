//! P3: from the submit of one no-op task until its end is durable and told.

use std::time::Instant;

use anyhow::ensure;
use mesh_proto::v1::SandboxLevel;

use crate::{
    bed::Bed,
    floor::{millis, spawn_ms, sync_ms},
    jobs::{completed, no_ops, submit},
    report::Figure,
    stats::quantile,
};

/// Takes `count` of each kind in every run.
pub async fn run(bed: &Bed, count: usize, runs: usize) -> anyhow::Result<Vec<Figure>> {
    let mut cli: [Vec<f64>; 2] = Default::default();
    let mut cli_floor = Vec::new();
    let mut open: [Vec<f64>; 2] = Default::default();
    let mut open_floor = Vec::new();
    let mut jobs = bed.jobs();
    for run in 0..=runs {
        // The first is a warm-up.
        let count = if run == 0 { 5 } else { count };
        let (mut processes, mut statuses, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            statuses.push(meshctl(bed, &["status"])?);
            processes.push(meshctl(bed, &["run", "--sandbox=none", "--", "/bin/true"])?);
        }
        for _ in 0..count {
            let began = Instant::now();
            let number = submit(&mut jobs, no_ops(1, SandboxLevel::None)).await?;
            completed(&mut jobs, number).await?;
            calls.push(millis(began.elapsed()));
        }
        if run == 0 {
            continue;
        }
        for (place, share) in [0.5, 0.99].into_iter().enumerate() {
            cli[place].push(quantile(&processes, share));
            open[place].push(quantile(&calls, share));
        }
        cli_floor.push(quantile(&statuses, 0.5));
        // Submitted and ended are two durable writes with a process between them.
        open_floor.push(bed.call_ms().await? + 2.0 * sync_ms(&bed.mesh.data_dir())? + spawn_ms());
    }
    let [cli_half, cli_most] = cli;
    let [open_half, open_most] = open;
    let status = "`meshctl status`, p50";
    let least = "a call, two fdatasync, a process";
    Ok(vec![
        Figure::new("P3", "`meshctl run -- true`, p50", "ms", cli_half)
            .floor(status, cli_floor.clone())
            .target("≤ 15 ms"),
        Figure::new("P3", "`meshctl run -- true`, p99", "ms", cli_most)
            .floor(status, cli_floor)
            .target("≤ 30 ms"),
        Figure::new("P3", "submit and watch over an open connection, p50", "ms", open_half)
            .floor(least, open_floor.clone())
            .target("≤ 3 ms"),
        Figure::new("P3", "submit and watch over an open connection, p99", "ms", open_most)
            .floor(least, open_floor)
            .target("≤ 8 ms"),
    ])
}

fn meshctl(bed: &Bed, args: &[&str]) -> anyhow::Result<f64> {
    let began = Instant::now();
    let output = bed.mesh.command(args).output()?;
    let took = millis(began.elapsed());
    ensure!(output.status.success(), "meshctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(took)
}

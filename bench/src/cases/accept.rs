//! P4: an array of a million elements, until its acceptance is durable; and what the
//! coordinator's memory grows by.

use std::time::Instant;

use mesh_proto::v1::{CancelJobRequest, SandboxLevel};

use crate::{
    bed::Bed,
    floor::{millis, sync_ms},
    jobs::{ended, no_ops, submit},
    processes::resident_mib,
    report::Figure,
};

const ELEMENTS: u32 = 1_000_000;

/// In a mesh without agents.
pub async fn run(bed: &Bed, runs: usize) -> anyhow::Result<Vec<Figure>> {
    let mut jobs = bed.jobs();
    let (mut times, mut growth, mut floors, mut numbers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // Code and statements that are used for the first time are no growth by the array.
    for _ in 0..3 {
        numbers.push(submit(&mut jobs, no_ops(1000, SandboxLevel::None)).await?);
    }
    for _ in 0..runs * 3 {
        floors.push(bed.call_ms().await? + sync_ms(&bed.mesh.data_dir())?);
        let before = resident_mib(bed.coordinator());
        let began = Instant::now();
        numbers.push(submit(&mut jobs, no_ops(ELEMENTS, SandboxLevel::None)).await?);
        times.push(millis(began.elapsed()));
        growth.push(resident_mib(bed.coordinator()) - before);
    }
    for number in numbers {
        let request = CancelJobRequest { job: number.to_string(), reason: String::new() };
        jobs.cancel_job(request).await?;
        ended(&mut jobs, number).await?;
    }
    Ok(vec![
        Figure::new("P4", "1,000,000-element range array to its durable acknowledgement", "ms", times)
            .floor("a call, an fdatasync", floors)
            .target("≤ 5 ms"),
        Figure::new("P4", "growth of the coordinator's memory by it", "MiB", growth).target("≤ 1 MiB"),
    ])
}

//! The load generator: simulated agents are members like any other, and every task that they
//! count as finished is finished for everybody.

use mesh_bench::{
    bed::Bed,
    fleet::Fleet,
    jobs::{completed, no_ops, submit},
};
use mesh_e2e::wait;
use mesh_proto::{limits::DEFAULT_PAGE, v1::SandboxLevel};

#[test]
fn simulated_agents_finish_an_array() {
    const TASKS: u32 = DEFAULT_PAGE;
    mesh_certs::install_provider();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _within = runtime.enter();
    let bed = Bed::start().unwrap();
    runtime.block_on(async {
        let mut fleet = Fleet::connect(&bed, "sim", 3, 4).await.unwrap();
        let mut jobs = bed.jobs();
        let number = submit(&mut jobs, no_ops(TASKS, SandboxLevel::None)).await.unwrap();
        let job = completed(&mut jobs, number).await.unwrap();
        assert_eq!(job.counts.unwrap().completed, u64::from(TASKS));
        wait::until(wait::secs(10), "every end is acknowledged", || {
            (fleet.finished() == u64::from(TASKS)).then_some(())
        });
        fleet.check().unwrap();
        assert!(bed.call_ms().await.unwrap() > 0.0);
    });
    assert_eq!(bed.mesh.json(&["nodes"]).as_array().unwrap().len(), 3);
}

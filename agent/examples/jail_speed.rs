//! How long the jail takes to run `true`, one after another and many at once:
//! `cargo run --release --example jail_speed -- target/release/agent [TASKS]`.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use agent::jail::{Bounds, Client, Event, Events, Level, Network, Options, Rlimits, StartRequest};
use mesh_proto::ids::{AttemptKey, JobNumber, TaskKey};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let exe: PathBuf = args.next().unwrap_or_else(|| "target/release/agent".into()).into();
    let tasks: u64 = args.next().map_or(Ok(500), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    let options = Options { exe: Some(exe), ..Options::new(dir.path().join("jail")) };
    let (client, mut events) = Client::ensure(&options).await?;

    let mut job = 0;
    for level in [Level::None, Level::Basic, Level::Strict] {
        let mut requests = Vec::new();
        for _ in 0..2 * tasks {
            job += 1;
            requests.push(request(dir.path(), job, level)?);
        }
        let many = requests.split_off(tasks as usize);

        let began = Instant::now();
        for request in requests {
            client.start(request).await?;
            ends(&mut events, 1).await;
        }
        println!("{level:?}: {:?} each, one after another", began.elapsed() / tasks as u32);

        let began = Instant::now();
        for request in many {
            client.start(request).await?;
        }
        ends(&mut events, tasks).await;
        println!("{level:?}: {:?} each, all at once", began.elapsed() / tasks as u32);
    }
    client.shutdown(true).await?;
    Ok(())
}

async fn ends(events: &mut Events, mut count: u64) {
    while count > 0 {
        if let Some(Event::Ended(_)) = events.recv().await {
            count -= 1;
        }
    }
}

fn request(dir: &std::path::Path, job: u64, level: Level) -> anyhow::Result<StartRequest> {
    let attempt = AttemptKey { task: TaskKey { job: JobNumber(job), task: 0, index: 0 }, number: 1 };
    let attempt_dir = dir.join("attempts").join(attempt.to_string());
    let work_dir = attempt_dir.join("work");
    std::fs::create_dir_all(&work_dir)?;
    let uid = rustix::process::geteuid().is_root().then_some(70_001);
    std::os::unix::fs::chown(&work_dir, uid, uid)?;
    Ok(StartRequest {
        attempt,
        argv: vec!["/bin/true".into()],
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        work_dir,
        attempt_dir,
        uid,
        gid: uid,
        level,
        timeout: Some(Duration::from_mins(1)),
        grace: Duration::from_secs(1),
        max_output: 1 << 20,
        limits: Rlimits::default(),
        hidden: vec![dir.to_owned()],
        network: Network::None,
        mounts: Vec::new(),
        bounds: Bounds::default(),
        room: None,
        without: Vec::new(),
        lease: None,
        after: None,
        slot: None,
    })
}

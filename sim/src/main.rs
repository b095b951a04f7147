//! `mesh-sim`: plays seeds, and tells how to see a failing one again.

use std::{
    collections::BTreeSet,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use clap::Parser;
use mesh_sim::{Broken, Outcome, replay, run};

/// Plays the whole mesh under seeds and checks what must hold.
#[derive(Parser)]
struct Flags {
    /// One seed.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Print everything that happens.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// How many seeds.
    #[arg(long, default_value_t = 2000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// A rule that is broken on purpose.
    #[arg(long, value_enum)]
    broken: Option<Broken>,
    /// Tell of each change of a state the first seed that shows it.
    #[arg(long)]
    changes: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let started = Instant::now();
    let outcomes = match flags.seed {
        Some(seed) => vec![run(seed, flags.broken, flags.trace)],
        None => play(flags.from, flags.seeds, flags.broken),
    };
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.broken.is_some()).collect();
    for outcome in failed.iter().take(20) {
        if let Some(violation) = &outcome.broken {
            println!("seed {}: {violation}\n  {}", outcome.seed, replay(outcome.seed, flags.broken));
        }
    }
    if flags.changes {
        let mut known = BTreeSet::new();
        for outcome in &outcomes {
            for (of, from, to) in outcome.changes.iter().filter(|change| known.insert(**change)) {
                println!("{:>6}: a {of} goes from {from} to {to}", outcome.seed);
            }
        }
    }
    let happenings: u64 = outcomes.iter().map(|outcome| outcome.happenings).sum();
    let simulated: u64 = outcomes.iter().map(|outcome| outcome.lasted / 1_000_000).sum();
    println!(
        "{} seeds, {} failed; {happenings} happenings in {simulated} s of simulated time; took {:.1?}",
        outcomes.len(),
        failed.len(),
        started.elapsed()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plays many seeds on all processors.
fn play(from: u64, count: u64, broken: Option<Broken>) -> Vec<Outcome> {
    let next = AtomicU64::new(from);
    let outcomes = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    let outcome = run(seed, broken, false);
                    if let Ok(mut outcomes) = outcomes.lock() {
                        outcomes.push(outcome);
                    }
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_default();
    outcomes.sort_by_key(|outcome: &Outcome| outcome.seed);
    outcomes
}

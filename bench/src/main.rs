//! `make bench`: measures, and prints each figure beside the floor of its run.

#![forbid(unsafe_code)]

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use clap::Parser;
use mesh_bench::{
    bed::Bed,
    cases::{accept, idle, latency, layers, placement, processes, results},
    report::{Cost, Figure, costs, table},
};
use serde_json::{Value, json};

/// Every figure that is measured here.
const ALL: [&str; 9] = ["P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "layers"];

/// Measures a mesh of real processes on this machine, each figure beside the floor of its run
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Only these figures, such as P1,P3
    #[arg(long, value_delimiter = ',', value_parser = ALL)]
    only: Vec<String>,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Runs of each figure; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
    /// Tasks of one run of P1 and P2, and of each layer half of that
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(4..=1_000_000))]
    tasks: u32,
    /// Simulated agents that wait, of P6 and P8
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    agents: u32,
}

fn main() -> ExitCode {
    let args = Args::parse();
    mesh_certs::install_provider();
    match run(&args) {
        Ok((figures, layers)) if args.json => {
            let figures: Vec<Value> = figures.iter().map(Figure::json).collect();
            let layers: Vec<Value> = layers.iter().map(|layer| layer.json(&layers)).collect();
            println!("{:#}", json!({ "figures": figures, "layers": layers }));
            ExitCode::SUCCESS
        }
        Ok((figures, layers)) => {
            println!("{}", table(&figures));
            if !layers.is_empty() {
                println!("{}", costs(&layers));
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<(Vec<Figure>, Vec<Cost>)> {
    let runtime = tokio::runtime::Runtime::new()?;
    // Connections are made within it.
    let _within = runtime.enter();
    let wanted: BTreeSet<&str> =
        if args.only.is_empty() { ALL.into() } else { args.only.iter().map(String::as_str).collect() };
    let wants = |ids: &[&str]| ids.iter().any(|id| wanted.contains(id));
    let say = |what: &str| eprintln!("bench: {what}");
    let runs = usize::from(args.runs);
    let mut figures = Vec::new();
    if wants(&["P7"]) {
        say("P7: placement");
        figures.extend(placement::run(runs)?);
    }
    let mut costs = Vec::new();
    if wants(&["layers"]) {
        say("layers: the sandbox alone");
        let (all, floors) = runtime.block_on(layers::run(args.tasks.div_ceil(2), runs))?;
        costs = all;
        figures.extend(floors);
    }
    if wants(&["P1", "P2", "P3", "P8"]) {
        say("a mesh with one agent");
        let bed = Bed::start()?;
        let agent = bed.agent(processes::SLOTS);
        if wants(&["P8"]) {
            figures.extend(idle::agent(&agent)?);
        }
        if wants(&["P3"]) {
            say("P3: one task");
            figures.extend(runtime.block_on(latency::run(&bed, 100, runs))?);
        }
        if wants(&["P1", "P2"]) {
            say("P1 and P2: processes");
            let ids: Vec<&str> = ["P1", "P2"].into_iter().filter(|id| wants(&[id])).collect();
            figures.extend(runtime.block_on(processes::run(&bed, &agent, &ids, args.tasks, runs))?);
        }
    }
    if wants(&["P4", "P5"]) {
        say("a mesh with simulated agents");
        let bed = Bed::start()?;
        if wants(&["P4"]) {
            say("P4: a long array");
            figures.extend(runtime.block_on(accept::run(&bed, runs))?);
        }
        if wants(&["P5"]) {
            say("P5: results");
            figures.extend(runtime.block_on(results::run(&bed, results::Load::default(), runs))?);
        }
    }
    if wants(&["P6", "P8"]) {
        say("P6 and P8: a mesh that waits");
        let bed = Bed::start()?;
        let window = Duration::from_secs(10);
        figures.extend(runtime.block_on(idle::coordinator(&bed, args.agents, window, runs.min(2)))?);
    }
    figures.retain(|figure| wanted.contains(figure.id));
    figures.sort_by_key(|figure| figure.id);
    Ok((figures, costs))
}

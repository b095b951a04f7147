//! The examples that the README points at run, as they stand in the repository.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use mesh_e2e::{AgentOptions, Mesh};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name).canonicalize().expect("the example")
}

#[test]
fn the_render_example_makes_a_poster() {
    let mesh = Mesh::start();
    let _agents = ["attic", "office", "lab"].map(|name| mesh.agent(name, AgentOptions::slots(1)));
    let file = example("render/job.yaml");
    let out = mesh.meshctl(&["submit", file.to_str().unwrap(), "--set", "size=64", "--wait"]).ok();
    let job = mesh.job(out.stdout.trim().parse().unwrap());
    let to = job.fetch();
    let png = fs::read(to.join("poster/poster.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
    assert!(png.len() > 10_000, "{} bytes are no poster", png.len());
    let nodes: BTreeSet<String> = job.tasks().iter().map(|task| task["node"].to_string()).collect();
    assert!(nodes.len() >= 2, "one node did it all: {nodes:?}");
    assert_eq!(job.tasks().len(), 13);
    assert!(job.log("world.3").contains("Boreas"), "{}", job.log("world.3"));
}

#[test]
fn the_wordcount_example_counts_the_book() {
    let (mesh, _agents) = Mesh::with_agents(["attic", "lab"]);
    let file = example("wordcount/job.yaml");
    let out = mesh.meshctl(&["submit", file.to_str().unwrap(), "--wait"]).ok();
    let job = mesh.job(out.stdout.trim().parse().unwrap());
    let log = job.log("total");
    assert!(log.starts_with("26671 words, 2631 different ones"), "{log}");
    assert!(log.contains("  128  little\n"), "{log}");
    let words = fs::read_to_string(job.fetch().join("total/words.txt")).unwrap();
    let count =
        |word: &str| words.lines().find_map(|line| line.strip_suffix(word)?.trim().parse::<u32>().ok());
    assert_eq!(count(" alice"), Some(386), "as grep counts it over all chapters");
}

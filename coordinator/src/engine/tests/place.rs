//! Waiting tasks meet nodes: order, filter, resources.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::ids::JobNumber;

use super::mesh::{Mesh, array, facts, job, key, ok, requirements, task};
use crate::engine::{
    effect::Say,
    event::{Facts, NewDefinition, NewJob, NodeChange},
    types::{Requirements, Resources, SandboxLevel, TaskState},
};

fn wanting(requirements: Requirements) -> NewDefinition {
    NewDefinition { requirements, ..task("a") }
}

fn mount(name: &str, written: bool) -> BTreeMap<String, bool> {
    BTreeMap::from([(name.to_owned(), written)])
}

fn sized(cpu_millis: u64, memory: u64) -> Requirements {
    Requirements { resources: Resources { cpu_millis, memory, named: BTreeMap::new() }, ..requirements() }
}

fn one(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

fn set(name: &str) -> BTreeSet<String> {
    BTreeSet::from([name.to_owned()])
}

/// The jobs of the attempts that the last step sent out.
fn sent(mesh: &Mesh) -> Vec<JobNumber> {
    mesh.dispatched().iter().map(|(_, attempt)| attempt.task.job).collect()
}

#[test]
fn higher_priority_first_then_age() {
    let mut mesh = Mesh::new();
    let with = |priority| NewJob { priority, ..job(vec![task("a")]) };
    let old = mesh.submit(with(5));
    let low = mesh.submit(with(0));
    let young = mesh.submit(with(5));
    let high = mesh.submit(with(9));
    mesh.join(0, facts(1));
    let mut order = sent(&mesh);
    for _ in 0..3 {
        let running = *order.last().expect("one runs");
        mesh.end_task(key(running, 0, 0), ok());
        order.extend(sent(&mesh));
    }
    assert_eq!(order, [high, old, young, low]);
}

#[test]
fn priority_holds_across_classes() {
    let mut mesh = Mesh::new();
    let low = mesh.submit(NewJob { priority: 1, ..job(vec![wanting(sized(1000, 1 << 20))]) });
    let high = mesh.submit(NewJob { priority: 2, ..job(vec![wanting(sized(1000, 2 << 20))]) });
    mesh.join(0, facts(1));
    assert_eq!(sent(&mesh), [high]);
    mesh.end_task(key(high, 0, 0), ok());
    assert_eq!(sent(&mesh), [low]);
}

#[test]
fn definitions_of_one_job_and_class_are_all_served() {
    let mut mesh = Mesh::new();
    let number = mesh.submit(job(vec![array("a", 2), task("b"), array("c", 2)]));
    mesh.join(0, facts(5));
    assert_eq!(mesh.dispatched().len(), 5);
    assert_eq!(mesh.counts(number)[TaskState::Assigned], 5);
}

#[test]
fn work_spreads_over_the_emptiest_nodes() {
    let mut mesh = Mesh::new();
    for node in 0..3 {
        mesh.join(node, facts(4));
    }
    mesh.submit(job(vec![array("a", 6)]));
    let mut per_node = BTreeMap::new();
    for (node, _) in mesh.dispatched() {
        *per_node.entry(node).or_insert(0) += 1;
    }
    assert_eq!(per_node, BTreeMap::from([(0, 2), (1, 2), (2, 2)]));
}

#[test]
fn a_task_that_no_node_can_hold_waits_and_blocks_nobody() {
    let mut mesh = Mesh::with_nodes(1);
    let big = mesh.submit(NewJob { priority: 9, ..job(vec![wanting(sized(64_000, 0))]) });
    let small = mesh.submit(job(vec![task("a")]));
    assert_eq!(sent(&mesh), [small]);
    assert_eq!(mesh.state(key(big, 0, 0)), TaskState::Queued);
    mesh.join(1, facts(64));
    assert_eq!(sent(&mesh), [big]);
}

#[test]
fn a_node_is_never_given_more_than_it_has() {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(4));
    mesh.submit(job(vec![NewDefinition { requirements: sized(500, 3 << 30), ..array("a", 9) }]));
    assert_eq!(mesh.dispatched().len(), 1, "memory is the limit");
    mesh.submit(job(vec![NewDefinition { requirements: sized(1000, 1 << 20), ..array("b", 9) }]));
    assert_eq!(mesh.dispatched().len(), 3, "processors are the limit");
}

#[test]
fn no_memory_named_is_the_share_of_a_slot() {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(4));
    mesh.submit(job(vec![NewDefinition { requirements: sized(100, 0), ..array("a", 9) }]));
    assert_eq!(mesh.dispatched().len(), 4, "a quarter of the memory each");
}

#[test]
fn fractions_of_a_core_share_it() {
    let mut mesh = Mesh::with_nodes(1);
    mesh.submit(job(vec![NewDefinition { requirements: sized(250, 1 << 20), ..array("a", 9) }]));
    assert_eq!(mesh.dispatched().len(), 4);
}

#[test]
fn named_resources_are_counted() {
    let mut mesh = Mesh::new();
    let has = |units| Facts {
        total: Resources { named: BTreeMap::from([("license".to_owned(), units)]), ..facts(8).total },
        ..facts(8)
    };
    mesh.join(0, facts(8));
    mesh.join(1, has(3));
    let base = sized(1000, 1 << 20);
    let named = BTreeMap::from([("license".to_owned(), 2)]);
    let wanted = Requirements { resources: Resources { named, ..base.resources.clone() }, ..base };
    let number = mesh.submit(job(vec![NewDefinition { requirements: wanted, ..array("a", 2) }]));
    assert_eq!(mesh.dispatched(), [(1, mesh.current(key(number, 0, 0)))], "two of three are in use");
    mesh.end_task(key(number, 0, 0), ok());
    assert_eq!(mesh.dispatched(), [(1, mesh.current(key(number, 0, 1)))]);
}

#[test]
fn where_chooses_the_node() {
    let plain = facts(1);
    let linux = Requirements { os: Some("linux".to_owned()), ..requirements() };
    let cases: Vec<(&str, Requirements, Facts)> = vec![
        ("node", Requirements { node: Some("node-1".to_owned()), ..requirements() }, plain.clone()),
        ("os", linux, Facts { os: "linux".to_owned(), ..plain.clone() }),
        (
            "arch",
            Requirements { arch: Some("aarch64".to_owned()), ..requirements() },
            Facts { arch: "aarch64".to_owned(), ..plain.clone() },
        ),
        (
            "tag",
            Requirements { tags: one("zone", "a"), ..requirements() },
            Facts { tags: one("zone", "a"), ..plain.clone() },
        ),
        (
            "capability",
            Requirements { capabilities: set("avx2"), ..requirements() },
            Facts { capabilities: set("avx2"), ..plain.clone() },
        ),
        ("limits", Requirements { cgroup: true, ..requirements() }, Facts { cgroup: true, ..plain.clone() }),
        (
            "sandbox",
            Requirements { sandbox: SandboxLevel::Strict, ..requirements() },
            Facts { sandbox: (SandboxLevel::Strict, SandboxLevel::None), ..plain.clone() },
        ),
        ("network", Requirements { host_network: true, ..requirements() }, plain.clone()),
        (
            "mount",
            Requirements { mounts: mount("data", true), ..requirements() },
            Facts { mounts: mount("data", true), ..plain.clone() },
        ),
        (
            "mount to read",
            Requirements { mounts: mount("other", false), ..requirements() },
            Facts { mounts: mount("other", true), ..plain.clone() },
        ),
    ];
    for (name, wanted, fit) in cases {
        let mut mesh = Mesh::new();
        let unfit = Facts {
            os: "plan9".to_owned(),
            cgroup: false,
            host_network: false,
            // To read, where writing is asked for.
            mounts: mount("data", false),
            tags: one("zone", "b"),
            ..facts(1)
        };
        mesh.join(0, unfit);
        let number = mesh.submit(job(vec![wanting(wanted)]));
        assert!(mesh.dispatched().is_empty(), "{name}: the wrong node");
        mesh.join(1, fit);
        assert_eq!(mesh.dispatched(), [(1, mesh.current(key(number, 0, 0)))], "{name}");
    }
}

#[test]
fn a_node_may_insist_on_a_sandbox() {
    let mut mesh = Mesh::new();
    mesh.join(0, Facts { sandbox: (SandboxLevel::Basic, SandboxLevel::Basic), ..facts(1) });
    mesh.submit(job(vec![wanting(Requirements { sandbox: SandboxLevel::None, ..requirements() })]));
    assert!(mesh.dispatched().is_empty());
    mesh.submit(job(vec![task("a")]));
    assert_eq!(mesh.dispatched().len(), 1);
}

#[test]
fn the_operators_tags_override_the_agents() {
    let mut mesh = Mesh::new();
    mesh.join(0, Facts { tags: one("zone", "a"), ..facts(1) });
    mesh.submit(job(vec![wanting(Requirements { tags: one("zone", "b"), ..requirements() })]));
    assert!(mesh.dispatched().is_empty());
    mesh.change(0, NodeChange::Tag { set: one("zone", "b"), remove: Vec::new() });
    assert_eq!(mesh.dispatched().len(), 1, "the change itself places what waited for it");
}

#[test]
fn waiting_is_measured_from_when_a_task_could_run() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![array("a", 2)]));
    mesh.now = mesh.now.plus(1500);
    let waited: Vec<u64> = {
        mesh.end_task(key(number, 0, 0), ok());
        mesh.says
            .iter()
            .filter_map(|say| match say {
                Say::Placed { waited_ms, .. } => Some(*waited_ms),
                _ => None,
            })
            .collect()
    };
    assert_eq!(waited, [1500]);
}

#[test]
fn a_large_task_is_not_starved_by_small_ones() {
    let mut mesh = Mesh::new().without_queues();
    mesh.join(0, facts(2));
    let small = mesh.submit(job(vec![array("s", 1000)]));
    let large = mesh.submit(NewJob { priority: 9, ..job(vec![wanting(sized(2_000, 0))]) });
    // The two slots come free one after the other, so that there is never room for the large one.
    let mut done = 0;
    while mesh.state(key(small, 0, done)) != TaskState::Completed && done < 200 {
        mesh.end_task(key(small, 0, done), ok());
        mesh.pass(100, &[0]);
        done += 1;
        if mesh.store.tasks.contains_key(&key(large, 0, 0)) {
            break;
        }
    }
    assert_eq!(mesh.state(key(large, 0, 0)), TaskState::Assigned, "after {done} small ones");
    assert!(done < 100, "it waited for {done} small ones");
    mesh.end_task(key(large, 0, 0), ok());
    assert_eq!(mesh.counts(small)[TaskState::Assigned], 2, "the node is everybody's again");
}

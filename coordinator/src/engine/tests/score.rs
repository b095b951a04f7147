//! The score decides among nodes, and nodes that fail are left.

use proptest::prelude::*;

use super::mesh::{Mesh, array, ended, facts, job, key, node_id, ok, task};
use crate::engine::{
    effect::Say,
    event::{Event, NewDefinition},
    placement::Coefficients,
    types::{Cause, Retry, TaskState},
};

/// Where the only dispatch of the last step went.
fn went(mesh: &Mesh) -> u32 {
    let sent = mesh.dispatched();
    let [(node, _)] = sent[..] else { panic!("{sent:?}") };
    node
}

fn beat(mesh: &mut Mesh, node: u32, load_permille: u32, rtt_us: u64) {
    let Event::Heartbeat { node, session, .. } = mesh.heartbeat(node) else { unreachable!() };
    mesh.step(Event::Heartbeat { reply: None, node, session, load_permille, rtt_us: Some(rtt_us) });
}

#[test]
fn the_nearer_node_wins_when_all_else_is_equal() {
    let mut mesh = Mesh::with_nodes(2);
    beat(&mut mesh, 0, 100, 80_000);
    beat(&mut mesh, 1, 100, 400);
    mesh.submit(job(vec![task("a")]));
    assert_eq!(went(&mesh), 1);
}

#[test]
fn the_less_loaded_node_wins_when_all_else_is_equal() {
    let mut mesh = Mesh::with_nodes(2);
    beat(&mut mesh, 0, 900, 400);
    beat(&mut mesh, 1, 100, 400);
    mesh.submit(job(vec![task("a")]));
    assert_eq!(went(&mesh), 1);
}

#[test]
fn the_node_with_less_given_wins_when_all_else_is_equal() {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(2));
    mesh.join(1, facts(2));
    mesh.submit(job(vec![task("a")]));
    let first = went(&mesh);
    mesh.submit(job(vec![task("a")]));
    assert_ne!(went(&mesh), first);
}

#[test]
fn one_failure_on_a_new_record_does_not_condemn_a_node() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    mesh.start_task(key(number, 0, 0));
    mesh.end_task(key(number, 0, 0), ended(Cause::Infra));
    mesh.pass(1_000, &[0]);
    assert_eq!(mesh.state(key(number, 0, 0)), TaskState::Assigned, "it is tried there again");
}

#[test]
fn a_node_that_always_fails_is_left_for_the_others() {
    let mut mesh = Mesh::with_nodes(2);
    let number = mesh.submit(job(vec![array("a", 40)]));
    let mut on_bad = 0;
    for _ in 0..200 {
        let Some((&attempt, row)) = mesh.store.attempts.iter().find(|(_, row)| row.ended.is_none()) else {
            mesh.pass(1_000, &[0, 1]);
            continue;
        };
        let bad = row.node == node_id(0);
        on_bad += u32::from(bad);
        mesh.end(attempt, if bad { ended(Cause::Infra) } else { ok() });
        mesh.pass(1_000, &[0, 1]);
    }
    assert_eq!(mesh.counts(number)[TaskState::Completed], 40, "the good node did it all");
    assert!(on_bad < 20, "the bad node was tried {on_bad} times");
}

#[test]
fn a_node_that_was_left_alone_is_tried_again_and_recovers() {
    let mut mesh = Mesh::with_nodes(1);
    let patient = Retry { max_lost: 100, ..task("a").retry };
    let number = mesh.submit(job(vec![NewDefinition { retry: patient, ..task("a") }]));
    for _ in 0..3 {
        let attempt = mesh.current(key(number, 0, 0));
        mesh.end(attempt, ended(Cause::Infra));
        mesh.pass(1_500, &[0]);
    }
    assert!(mesh.engine.nodes[&node_id(0)].held_until.is_some());
    assert!(!mesh.engine.nodes[&node_id(0)].takes_work());
    for _ in 0..5 {
        mesh.pass(1_500, &[0]);
    }
    assert_eq!(mesh.state(key(number, 0, 0)), TaskState::Assigned);
    let low = mesh.engine.nodes[&node_id(0)].reliability(mesh.now);
    mesh.end_task(key(number, 0, 0), ok());
    for _ in 0..2_000 {
        mesh.pass(1_900, &[0]);
    }
    assert!(mesh.engine.nodes[&node_id(0)].reliability(mesh.now) > low.max(0.9), "it ages");
}

#[test]
fn coefficients_change_at_run_time() {
    let mut mesh = Mesh::with_nodes(2);
    beat(&mut mesh, 0, 900, 400);
    beat(&mut mesh, 1, 0, 900_000);
    let only_load = Coefficients { alpha: 0.0, beta: 1.0, gamma: 0.0, delta: 0.0, version: 0 };
    mesh.step(Event::CoefficientsChanged { coefficients: only_load });
    mesh.submit(job(vec![task("a")]));
    assert_eq!(went(&mesh), 1);
    mesh.end_task(key(mesh_proto::ids::JobNumber(1), 0, 0), ok());
    let only_rtt = Coefficients { alpha: 1.0, beta: 0.0, ..only_load };
    mesh.step(Event::CoefficientsChanged { coefficients: only_rtt });
    mesh.submit(job(vec![task("a")]));
    assert_eq!(went(&mesh), 0);
}

proptest! {
    /// However nodes look, tasks go only where they fit, everything that could run does, and
    /// among equal nodes the best score is taken.
    #[test]
    fn whatever_the_terms_say_resources_hold_and_nothing_idles(
        nodes in proptest::collection::vec((1_u64..5, 0_u32..1000, 100_u64..200_000), 1..12),
        tasks in 1_u32..40,
    ) {
        let mut mesh = Mesh::new();
        for (number, (cores, load, rtt)) in nodes.iter().enumerate() {
            mesh.join(number as u32, facts(*cores));
            beat(&mut mesh, number as u32, *load, *rtt);
        }
        let number = mesh.submit(job(vec![array("a", tasks)]));
        mesh.engine.check().map_err(TestCaseError::fail)?;
        mesh.engine.check_capacity().map_err(TestCaseError::fail)?;
        let slots: u64 = nodes.iter().map(|(cores, ..)| cores).sum();
        let placed = mesh.says.iter().filter(|say| matches!(say, Say::Dispatch { .. })).count() as u64;
        prop_assert_eq!(placed, slots.min(u64::from(tasks)));
        let left = mesh.counts(number)[TaskState::Queued];
        prop_assert_eq!(left, u64::from(tasks) - placed);
    }
}

//! Why a task waits, in words that name the nearest miss.

use std::collections::BTreeMap;

use super::mesh::{Mesh, array, facts, job, key, needs, ok, requirements, task};
use crate::engine::{
    Explanation,
    effect::{Reply, Say},
    event::{Event, Facts, NewDefinition, ReplyId, WhatIf},
    types::{Requirements, Resources, TaskState},
};

fn why(mesh: &mut Mesh, key: mesh_proto::ids::TaskKey, what_if: Option<WhatIf>) -> Explanation {
    let said = mesh.step(Event::TaskAsked { reply: ReplyId(7), key, what_if });
    let answer = said.iter().find_map(|say| match say {
        Say::Reply(ReplyId(7), Reply::Explained(explanation)) => Some((**explanation).clone()),
        _ => None,
    });
    answer.unwrap_or_else(|| panic!("{said:?}"))
}

fn tagged(site: &str) -> Facts {
    Facts { tags: BTreeMap::from([("site".to_owned(), site.to_owned())]), ..facts(1) }
}

fn at(site: &str) -> NewDefinition {
    let tags = BTreeMap::from([("site".to_owned(), site.to_owned())]);
    NewDefinition { requirements: Requirements { tags, ..requirements() }, ..task("a") }
}

#[test]
fn a_tag_that_no_node_has_is_named_with_the_nearest_miss() {
    let mut mesh = Mesh::new();
    for (node, site) in [(0, "cellar"), (1, "attick"), (2, "lab")] {
        mesh.join(node, tagged(site));
    }
    let number = mesh.submit(job(vec![at("attic")]));
    let survey = why(&mut mesh, key(number, 0, 0), None).survey;
    assert_eq!((survey.nodes, survey.suitable, survey.with_room), (3, 0, 0));
    let sentences: Vec<_> = survey.rejections.iter().map(|rejection| rejection.sentence.as_str()).collect();
    assert_eq!(sentences, ["3 nodes lack tag site=attic; node-1 has site=attick"]);
}

#[test]
fn a_task_that_is_too_large_is_told_of_the_largest_node() {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(2));
    let mut odd = facts(4);
    odd.total.memory += 4_096;
    mesh.join(1, odd);
    let large = Requirements {
        resources: Resources { cpu_millis: 8_500, memory: 0, named: BTreeMap::new() },
        ..requirements()
    };
    let number = mesh.submit(job(vec![NewDefinition { requirements: large, ..task("a") }]));
    let survey = why(&mut mesh, key(number, 0, 0), None).survey;
    assert_eq!(
        survey.rejections[0].sentence,
        "2 nodes are too small for 8.5 cpu; the largest of them, node-1, has 4 cpu and 4GiB"
    );
    let smaller = WhatIf { cpu_millis: Some(3_000), ..WhatIf::default() };
    let survey = why(&mut mesh, key(number, 0, 0), Some(smaller)).survey;
    assert_eq!((survey.suitable, survey.with_room), (1, 1));
    assert_eq!(survey.best[0].name, "node-1");
}

#[test]
fn busy_nodes_are_told_from_unsuitable_ones_and_the_queue_is_counted() {
    let mut mesh = Mesh::with_nodes(1);
    mesh.submit(job(vec![task("a")]));
    mesh.submit(job(vec![task("b")]));
    let number = mesh.submit(job(vec![task("c")]));
    let said = why(&mut mesh, key(number, 0, 0), None);
    assert_eq!(said.state, TaskState::Queued);
    assert_eq!((said.survey.suitable, said.survey.with_room, said.ahead), (1, 0, 1));
    assert_eq!(said.survey.best[0].busy.as_deref(), Some("0 of 1 cpu free"));
}

#[test]
fn a_blocked_task_says_what_it_waits_for() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![array("map", 3), NewDefinition { needs: needs(0), ..task("reduce") }]));
    mesh.end_task(key(number, 0, 0), ok());
    let said = why(&mut mesh, key(number, 1, 0), None);
    assert_eq!(said.state, TaskState::Blocked);
    assert_eq!(said.waits_for, [("map".to_owned(), 1, 3)]);
}

#[test]
fn a_decision_is_recorded_once_for_many_tasks_and_names_the_best() {
    let mut mesh = Mesh::new();
    mesh.join(0, facts(8));
    let number = mesh.submit(job(vec![array("a", 8)]));
    assert_eq!(mesh.store.decisions, 1);
    let used: Vec<_> = mesh.store.attempts.values().map(|attempt| attempt.decision).collect();
    assert_eq!(used, vec![Some(1); 8]);
    mesh.pass(1_000, &[0]);
    for index in 0..8 {
        mesh.end_task(key(number, 0, index), ok());
    }
    let second = mesh.submit(job(vec![task("b")]));
    assert_eq!(mesh.store.attempts[&mesh.current(key(second, 0, 0))].decision, Some(2));
}

//! Nodes change as they are drawn in `docs/state-machines.md`, and in no other way: whatever can be
//! said of a node, and every silence, meets it in every state.

use std::collections::BTreeSet;

use mesh_proto::state::Named as _;

use super::mesh::{Mesh, facts, job, node_id, record, task};
use crate::engine::{
    event::{Event, NodeChange, ReplyId},
    types::NodeState,
};

type Step = fn(&mut Mesh);

/// Of the node that is looked at. Another one is always well, so that the engine never stands still.
const NODE: u32 = 0;
const OTHER: u32 = 1;

/// How a node comes to be where something meets it; each has an attempt, or none if there is none.
const BEFORE: [Step; 8] = [
    // It joined the mesh, and the engine has never heard of it.
    |_| {},
    // It was read from the database.
    |mesh| {
        joined(mesh);
        mesh.restore();
        mesh.rejoin(OTHER, 0, &[]);
    },
    joined,
    |mesh| {
        joined(mesh);
        mesh.close(NODE);
    },
    suspected,
    |mesh| {
        suspected(mesh);
        mesh.close(NODE);
    },
    given_up,
    // A late word came from it.
    |mesh| {
        given_up(mesh);
        speak(mesh);
    },
];

/// What may meet it.
const THEN: [Step; 11] = [
    |mesh| {
        mesh.join(NODE, facts(1));
    },
    |mesh| {
        mesh.rejoin(NODE, 1, &[]);
    },
    |mesh| {
        if mesh.sessions.contains_key(&NODE) {
            let beat = mesh.heartbeat(NODE);
            mesh.step(beat);
        }
    },
    |mesh| {
        if mesh.sessions.contains_key(&NODE) {
            mesh.close(NODE);
        }
    },
    speak,
    |mesh| mesh.pass(16_000, &[OTHER]),
    |mesh| mesh.pass(31_000, &[OTHER]),
    // Nobody looked meanwhile.
    |mesh| {
        for _ in 0..31 {
            mesh.now = mesh.now.plus(1000);
            let beat = mesh.heartbeat(OTHER);
            mesh.step(beat);
        }
        mesh.step(Event::Tick);
    },
    |mesh| {
        mesh.now = mesh.now.plus(600_000);
        mesh.step(Event::Tick);
    },
    |mesh| {
        let record = Some(Box::new(mesh.store.nodes.get(&node_id(NODE)).cloned().unwrap_or(record(NODE))));
        mesh.store.nodes.entry(node_id(NODE)).or_insert_with(|| super::mesh::record(NODE));
        mesh.step(Event::NodeChanged {
            reply: ReplyId(0),
            node: node_id(NODE),
            change: NodeChange::Cordon,
            record,
        });
    },
    Mesh::restore,
];

fn joined(mesh: &mut Mesh) {
    mesh.join(NODE, facts(1));
    mesh.submit(job(vec![task("a")]));
}

fn suspected(mesh: &mut Mesh) {
    joined(mesh);
    mesh.pass(16_000, &[OTHER]);
}

fn given_up(mesh: &mut Mesh) {
    joined(mesh);
    mesh.pass(31_000, &[OTHER]);
}

/// A word on its attempt, on whatever stream is left.
fn speak(mesh: &mut Mesh) {
    let attempt = mesh.store.attempts.values().find(|row| row.node == node_id(NODE)).map(|row| row.key);
    if let Some(attempt) = attempt {
        mesh.start(attempt);
    }
}

fn state(mesh: &Mesh) -> Option<NodeState> {
    mesh.engine.nodes.get(&node_id(NODE)).map(|node| node.state)
}

fn drawn() -> BTreeSet<(String, String)> {
    let text = include_str!("../../../../docs/state-machines.md");
    let section = text.split("\n## ").find(|section| section.starts_with("A node")).expect("nodes are drawn");
    let arrows = section.lines().filter_map(|line| line.trim().split_once(" --> "));
    arrows.map(|(from, to)| (from.to_owned(), to.split(':').next().unwrap_or(to).to_owned())).collect()
}

#[test]
fn nodes_change_as_they_are_drawn() {
    let mut seen = BTreeSet::new();
    let name = |state: Option<NodeState>| state.map_or("[*]".to_owned(), NodeState::upper);
    for before in BEFORE {
        for (number, then) in THEN.iter().enumerate() {
            let mut mesh = Mesh::new();
            mesh.join(OTHER, facts(0));
            before(&mut mesh);
            let from = state(&mesh);
            then(&mut mesh);
            let to = state(&mesh);
            let read_anew = number == THEN.len() - 1;
            let from = if read_anew { None } else { from };
            if from != to {
                seen.insert((name(from), name(to)));
            }
        }
    }
    assert_eq!(seen, drawn());
}

//! A random history, read back again and again: what Postgres holds is what the engine holds,
//! and a rebuilt engine goes on where the old one was.

use std::sync::Arc;

use mesh_proto::{
    ids::{AttemptKey, BootId, JobNumber, NodeId},
    v1::Cause,
};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};

use super::Kit;
use crate::{
    engine::{
        effect::Say,
        event::{AttemptEnd, Event, NodeRecord},
        tests::restore::difference,
        types::SandboxLevel,
    },
    testing::{array, exited, job, keep_going, needing, new_job, task, trying},
};

struct Walk {
    kit: Kit,
    random: StdRng,
    nodes: Vec<NodeRecord>,
    /// Attempts that agents hold.
    held: Vec<(NodeId, AttemptKey)>,
    jobs: Vec<JobNumber>,
}

impl Walk {
    fn one_of(&mut self, count: u32) -> bool {
        self.random.random_range(0..count) == 0
    }

    fn hear(&mut self) {
        for say in &self.kit.says {
            match say {
                Say::Dispatch { node, attempt, .. } => self.held.push((*node, *attempt)),
                Say::Ack { attempt, ended: true, .. } => self.held.retain(|(_, held)| held != attempt),
                _ => {}
            }
        }
    }

    async fn submit(&mut self) {
        let total = self.random.random_range(1..6);
        let tasks = vec![
            array("resize", total),
            needing(array("check", total), &[("resize", true)]),
            needing(task("sheet"), &[("check", false)]),
            trying(task("flaky"), 3),
        ];
        let spec = if self.one_of(2) { job(tasks) } else { keep_going(tasks) };
        let number = self.kit.submit(new_job(spec)).await;
        self.jobs.push(number);
        self.hear();
    }

    async fn word(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let at = self.random.random_range(0..self.held.len());
        let (node, attempt) = self.held[at];
        let end = match self.random.random_range(0..6) {
            0 => {
                let started = Event::AttemptStarted { node, attempt, sandbox: SandboxLevel::Basic.into() };
                self.kit.step(started).await;
                return self.hear();
            }
            1 => exited(1),
            2 => AttemptEnd::declared(Cause::Infra, "no disk"),
            _ => exited(0),
        };
        self.kit.end((node, attempt), end).await;
        self.hear();
    }

    /// A node comes back with nothing, after a reboot.
    async fn reboot(&mut self) {
        let at = self.random.random_range(0..self.nodes.len());
        let node = self.nodes[at].clone();
        self.held.retain(|(of, _)| *of != node.id);
        let registration = Arc::new(crate::testing::registration(&node, BootId::generate(), 2));
        let session = registration.session;
        let reply = crate::engine::event::ReplyId(1);
        self.kit.step(Event::NodeRegistered { reply, registration }).await;
        self.hear();
        self.kit.step(Event::SessionOpened { node: node.id, session }).await;
        self.hear();
    }

    async fn step(&mut self) {
        match self.random.random_range(0..20) {
            0..2 => self.submit().await,
            2 => {
                let at = self.random.random_range(0..self.jobs.len().max(1));
                if let Some(number) = self.jobs.get(at).copied() {
                    self.kit.cancel(number).await;
                    self.hear();
                }
            }
            3 => self.reboot().await,
            4..6 => {
                self.kit.now = self.kit.now.plus(self.random.random_range(1..20_000));
                self.kit.step(Event::Tick).await;
                self.hear();
            }
            _ => self.word().await,
        }
    }
}

#[tokio::test]
async fn a_random_history_is_read_back_as_it_was() {
    let seed = std::env::var("MESH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().next_u64());
    println!("MESH_SEED={seed} plays this again");
    let mut kit = Kit::new().await;
    let mut nodes = Vec::new();
    for name in ["amber", "birch", "cedar"] {
        nodes.push(kit.node(name, 2).await);
    }
    let random = StdRng::seed_from_u64(seed);
    let mut walk = Walk { kit, random, nodes, held: Vec::new(), jobs: Vec::new() };
    for step in 0..200 {
        walk.step().await;
        if step % 10 == 0 {
            let again = walk.kit.read_back().await;
            assert_eq!(difference(&walk.kit.engine, &again), None, "after step {step}");
        }
    }
    // The rebuilt engine's own writes fit what the old one left.
    walk.kit.engine = walk.kit.read_back().await;
    walk.kit.step(Event::Tick).await;
    for at in 0..walk.nodes.len() {
        let node = walk.nodes[at].clone();
        walk.held.retain(|(of, _)| *of != node.id);
        walk.kit.open(&node, BootId::generate(), 2).await;
        walk.hear();
    }
    for _ in 0..50 {
        walk.word().await;
    }
    let again = walk.kit.read_back().await;
    assert_eq!(difference(&walk.kit.engine, &again), None);
}

//! P7: one placement of the engine among many nodes, without anything around it.
//!
//! A full mesh; then again and again some tasks end, and the engine places as many anew. What
//! is timed is the round of placement alone, with the rows and words that it makes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use bytes::Bytes;
use coordinator::engine::{
    Engine,
    effect::{Effects, Say},
    event::{AttemptEnd, Event, Facts, NewDefinition, NewJob, NodeRecord, Registration, ReplyId},
    types::{Requirements, Resources, Retry, SandboxLevel, Settings, Time},
};
use mesh_proto::{
    ids::{AttemptKey, BootId, JobId, NodeId, SessionId},
    v1::Cause,
};

use crate::report::Figure;

const SLOTS: u32 = 2;
/// Ends that one round of placement replaces.
const BATCH: usize = 256;

pub fn run(runs: usize) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (nodes, target) in [(1000, "≤ 10 µs"), (10_000, "≤ 50 µs")] {
        for queued in [1000, 900_000] {
            let micros =
                (0..runs).map(|_| placement_us(nodes, queued)).collect::<anyhow::Result<Vec<f64>>>()?;
            let what = format!("one placement among {nodes} nodes, {queued} queued");
            figures.push(Figure::new("P7", what, "µs", micros).target(target));
        }
    }
    Ok(figures)
}

/// Microseconds of one placement among `nodes`, with always about `queued` tasks waiting.
pub fn placement_us(nodes: u32, queued: u32) -> anyhow::Result<f64> {
    let mut mesh = Mesh::new(nodes);
    let rounds = 40;
    // What runs, what waits in the nodes' short queues, and what is placed while it is measured.
    let total = nodes * SLOTS * 2 + queued + (rounds * BATCH) as u32;
    mesh.submit(total);
    let mut spent = Duration::ZERO;
    let mut placed = 0;
    for round in 0..rounds {
        mesh.now = mesh.now.plus(20);
        for (node, attempt) in mesh.some_running(BATCH) {
            let event = Event::AttemptEnded { node, attempt, end: Arc::clone(&mesh.end) };
            mesh.engine.handle(mesh.now, &event, &mut mesh.fx);
        }
        let began = Instant::now();
        mesh.engine.settle(mesh.now, &mut mesh.fx);
        let took = began.elapsed();
        let count = mesh.take_dispatches();
        // The first rounds also fill the short queues, once it is known how short the tasks are.
        if round >= rounds / 4 {
            spent += took;
            placed += count;
        }
    }
    ensure!(placed > 0, "nothing was placed");
    Ok(spent.as_secs_f64() * 1e6 / placed as f64)
}

struct Mesh {
    engine: Engine,
    now: Time,
    fx: Effects,
    /// Every attempt that was dispatched and did not end, oldest first.
    given: std::collections::VecDeque<(NodeId, AttemptKey)>,
    end: Arc<AttemptEnd>,
}

impl Mesh {
    fn new(nodes: u32) -> Self {
        let end = AttemptEnd {
            cause: Cause::Exit,
            exit_code: Some(0),
            signal: None,
            message: String::new(),
            started: true,
            // Too long for queues deeper than the slots, which would take all that waits.
            run_ms: 100,
            cpu_ms: 1,
            max_rss_bytes: 1 << 20,
            outputs: Bytes::new(),
            output_length: 0,
            output: Bytes::new(),
        };
        let mut mesh = Self {
            engine: Engine::new(Settings::default(), 1),
            now: Time(1_000_000),
            fx: Effects::default(),
            given: std::collections::VecDeque::new(),
            end: Arc::new(end),
        };
        for number in 0..nodes {
            let (node, session) = (NodeId::generate(), SessionId::generate());
            let registration = Arc::new(registration(node, session, number));
            mesh.handle(&Event::NodeRegistered { reply: ReplyId(u64::from(number)), registration });
            mesh.handle(&Event::SessionOpened { node, session });
            // No two alike, or ties would decide.
            let (load_permille, rtt_us) = (number * 7 % 900, Some(u64::from(200 + number * 13 % 5000)));
            mesh.handle(&Event::Heartbeat { reply: None, node, session, load_permille, rtt_us });
        }
        mesh.engine.settle(mesh.now, &mut mesh.fx);
        mesh.take_dispatches();
        mesh
    }

    fn handle(&mut self, event: &Event) {
        self.engine.handle(self.now, event, &mut self.fx);
    }

    fn submit(&mut self, total: u32) {
        let definition = NewDefinition {
            name: "noop".to_owned(),
            array: true,
            total,
            requirements: Requirements {
                resources: Resources { cpu_millis: 1000, ..Resources::default() },
                tags: BTreeMap::new(),
                capabilities: BTreeSet::new(),
                os: None,
                arch: None,
                node: None,
                cgroup: false,
                host_network: false,
                mounts: BTreeMap::new(),
                sandbox: SandboxLevel::Basic,
            },
            retry: Retry { attempts: 1, on: Vec::new(), backoff_ms: 1000, max_backoff_ms: 1000, max_lost: 5 },
            needs: Vec::new(),
            spec: Bytes::new(),
        };
        let job = NewJob {
            uuid: JobId::generate(),
            name: "bench".to_owned(),
            owner: "bench".to_owned(),
            priority: 5,
            keep_going: true,
            idempotency_key: None,
            payload_digest: [0; 32],
            spec: Bytes::new(),
            tasks: vec![definition],
        };
        self.handle(&Event::JobSubmitted { reply: ReplyId(0), job: Arc::new(job) });
        self.engine.settle(self.now, &mut self.fx);
        self.take_dispatches();
    }

    /// Notes what was dispatched, and lets go of the effects as a commit would.
    fn take_dispatches(&mut self) -> usize {
        let before = self.given.len();
        for say in std::mem::take(&mut self.fx).says {
            if let Say::Dispatch { node, attempt, .. } = say {
                self.given.push_back((node, attempt));
            }
        }
        self.given.len() - before
    }

    fn some_running(&mut self, count: usize) -> Vec<(NodeId, AttemptKey)> {
        let count = count.min(self.given.len());
        self.given.drain(..count).collect()
    }
}

fn registration(node: NodeId, session: SessionId, number: u32) -> Registration {
    let memory = u64::from(SLOTS) << 30;
    let facts = Facts {
        total: Resources { cpu_millis: u64::from(SLOTS) * 1000, memory, named: BTreeMap::new() },
        slots: SLOTS,
        os: "linux".to_owned(),
        arch: "x86_64".to_owned(),
        sandbox: (SandboxLevel::Basic, SandboxLevel::Basic),
        ..Facts::default()
    };
    let record = NodeRecord {
        id: node,
        name: format!("node-{number}"),
        boot: None,
        cordoned: false,
        draining: false,
        tags: BTreeMap::new(),
    };
    Registration {
        node,
        session,
        boot: BootId::generate(),
        facts,
        encoded_facts: Bytes::new(),
        inventory: Vec::new(),
        record,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measured_engine_places_as_much_as_ends() {
        assert!(placement_us(20, 100).unwrap() > 0.0);
    }
}

//! What a seed lets go wrong: single faults at their times, and what goes wrong all the time.

use crate::{
    plan::{MS, Micros, SECOND},
    rng::Rng,
};

/// What goes wrong all the time until everything is healed, in thousandths of the cases.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// A message, or a handler that takes it, is late by seconds.
    pub late: u64,
    /// Requests or answers of clients are lost.
    pub client_loss: u64,
    /// A commit fails, or its answer is lost.
    pub commit: u64,
    /// Reads of the database fail.
    pub read: u64,
    /// Attempts that fail on the node: staging, spawn.
    pub spawn: u64,
    /// A handler is interrupted between two steps.
    pub preempt: u64,
    /// A call is made twice, or a word said twice.
    pub twice: u64,
}

/// Where the coordinator dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitPoint {
    /// Decided, not sent.
    BeforeSend,
    /// Sent; whether it lands is left to the database.
    InFlight,
    /// Landed, nothing said.
    BeforeRelease,
    /// Some of it said.
    AmidRelease,
    /// All of it said.
    AfterRelease,
}

/// Every point of the commit path.
pub const COMMIT_POINTS: [CommitPoint; 5] = [
    CommitPoint::BeforeSend,
    CommitPoint::InFlight,
    CommitPoint::BeforeRelease,
    CommitPoint::AmidRelease,
    CommitPoint::AfterRelease,
];

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// kill -9 of a daemon; its processes go on.
    KillDaemon {
        node: usize,
        down: Micros,
    },
    /// A record of the node's disk is damaged while its daemon is down.
    DamageRecord {
        node: usize,
        down: Micros,
    },
    Reboot {
        node: usize,
        down: Micros,
    },
    /// The connection breaks.
    Cut {
        node: usize,
    },
    /// Nothing passes in the blocked directions, between one node or all and one host or all.
    Partition {
        node: Option<usize>,
        host: Option<usize>,
        up: bool,
        down: bool,
        lasts: Micros,
    },
    /// The link breaks for a second, and again a second later, for so long.
    Flap {
        node: usize,
        lasts: Micros,
    },
    CrashCoordinator {
        host: usize,
        down: Micros,
    },
    CrashAt {
        host: usize,
        point: CommitPoint,
        down: Micros,
    },
    /// The coordinator stands still.
    Freeze {
        host: usize,
        lasts: Micros,
    },
    /// Nothing passes between one coordinator and the database.
    CutOffDatabase {
        host: usize,
        lasts: Micros,
    },
    /// The database's clock jumps by so many milliseconds.
    WallClock {
        ms: i64,
    },
    DatabaseDown {
        lasts: Micros,
    },
    DatabaseSlow {
        lasts: Micros,
    },
    /// It answers, and takes no writes.
    DatabaseReadOnly {
        lasts: Micros,
    },
    Cordon {
        node: usize,
        drain: bool,
    },
    Uncordon {
        node: usize,
    },
}

pub fn faults(rng: &mut Rng, nodes: usize, hosts: usize, healed_at: Micros) -> Vec<(Micros, Fault)> {
    let enabled: Vec<u64> = (0..14).filter(|_| rng.chance(450)).collect();
    let mut faults = Vec::new();
    for _ in 0..rng.range(0, 22) {
        let at = rng.range(SECOND, healed_at.max(2 * SECOND));
        let (node, host) = (rng.index(nodes), rng.index(hosts));
        let down = rng.skewed(10 * MS, 50 * SECOND);
        let lasts = rng.skewed(100 * MS, 90 * SECOND);
        let fault = match rng.pick(&enabled) {
            None => break,
            Some(0) => Fault::KillDaemon { node, down },
            Some(1) => Fault::Reboot { node, down: down.max(2 * SECOND) },
            Some(2) => Fault::Cut { node },
            Some(3) => {
                let (node, host) = ends(rng, node, host);
                Fault::Partition { node, host, up: true, down: true, lasts }
            }
            Some(4) => {
                let (up, (node, host)) = (rng.chance(500), ends(rng, node, host));
                Fault::Partition { node, host, up, down: !up, lasts }
            }
            Some(5) => Fault::CrashCoordinator { host, down: down / 4 },
            Some(6) => {
                let point = COMMIT_POINTS[rng.index(COMMIT_POINTS.len())];
                Fault::CrashAt { host, point, down: down / 4 }
            }
            Some(7) => Fault::Freeze { host, lasts: lasts / 2 },
            Some(11) => Fault::CutOffDatabase { host, lasts: lasts / 2 },
            Some(12) => Fault::WallClock { ms: rng.pick(&[-3_600_000, 3_600_000, -1_000]).unwrap_or(0) },
            // The host that leads loses its database and nothing else: two leaders for a while.
            Some(13) => Fault::CutOffDatabase { host: 0, lasts: lasts.max(20 * SECOND) },
            Some(8) if rng.chance(500) => Fault::DatabaseDown { lasts: lasts / 3 },
            Some(8) => Fault::DatabaseSlow { lasts: lasts / 2 },
            Some(9) => Fault::DamageRecord { node, down: down / 4 },
            Some(_) => {
                let back = at + rng.skewed(SECOND, 60 * SECOND);
                faults.push((back.min(healed_at - 1), Fault::Uncordon { node }));
                Fault::Cordon { node, drain: rng.chance(600) }
            }
        };
        faults.push((at, fault));
    }
    faults
}

/// Now and then, up to a while after all is healed; in a third of the seeds never.
pub fn redrives(rng: &mut Rng, healed_at: Micros) -> Vec<Micros> {
    let most = rng.pick(&[0, 4, 12]).unwrap_or(0);
    (0..rng.range(0, most + 1)).map(|_| rng.range(SECOND, healed_at + 60 * SECOND)).collect()
}

/// In a fifth of the seeds, and mostly not far back.
pub fn restore(rng: &mut Rng, healed_at: Micros) -> Option<(Micros, Micros)> {
    let restored = rng.range(5 * SECOND, healed_at);
    let back = rng.skewed(10 * MS, 40 * SECOND);
    rng.chance(200).then(|| (restored.saturating_sub(back), restored))
}

/// Once or twice, in a fifth of the seeds: the database takes no writes.
pub fn read_only(rng: &mut Rng, healed_at: Micros) -> Vec<(Micros, Fault)> {
    let most = if rng.chance(200) { 3 } else { 1 };
    let fault = |rng: &mut Rng| Fault::DatabaseReadOnly { lasts: rng.skewed(100 * MS, 45 * SECOND) };
    (1..rng.range(1, most + 1)).map(|_| (rng.range(SECOND, healed_at), fault(rng))).collect()
}

/// In an eighth of the seeds a node's link flaps for a while, mostly until all is healed.
pub fn flaps(rng: &mut Rng, nodes: usize, healed_at: Micros) -> Option<(Micros, Fault)> {
    let fault = Fault::Flap { node: rng.index(nodes), lasts: rng.range(10 * SECOND, 180 * SECOND) };
    let at = rng.range(SECOND, healed_at / 2);
    rng.chance(125).then_some((at, fault))
}

/// One node and all hosts, one host and all nodes, or one of each.
fn ends(rng: &mut Rng, node: usize, host: usize) -> (Option<usize>, Option<usize>) {
    match rng.range(0, 4) {
        0 => (None, Some(host)),
        1 => (Some(node), Some(host)),
        _ => (Some(node), None),
    }
}

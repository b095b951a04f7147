//! What a seed decides before anything happens: the nodes, the jobs that will be submitted, and
//! what will go wrong. Each seed enables some kinds of faults and leaves out others, so that
//! rare ones are not always drowned by frequent ones.

use std::collections::BTreeMap;

use coordinator::engine::{
    event::{Facts, Need, NewDefinition},
    types::{Cause, Requirements, Resources, Retry, SandboxLevel, Settings},
};

use crate::{
    rng::Rng,
    trouble::{self, Fault, Weather},
};

/// Microseconds.
pub type Micros = u64;
pub const MS: Micros = 1_000;
pub const SECOND: Micros = 1_000_000;
const GIB: u64 = 1 << 30;

/// Everything that is decided at the beginning.
#[derive(Debug)]
pub struct Plan {
    pub nodes: Vec<Facts>,
    pub jobs: Vec<PlannedJob>,
    pub faults: Vec<(Micros, Fault)>,
    /// When somebody looks for dead letters and tries some of them again.
    pub redrives: Vec<Micros>,
    /// When a copy of the database is taken, and when it takes the place of the database.
    pub restore: Option<(Micros, Micros)>,
    /// When everything is healed.
    pub healed_at: Micros,
    pub weather: Weather,
    pub settings: Settings,
    /// What the settings say, or should say.
    pub offline_after_ms: u64,
    /// How much the boot-time clock of each coordinator's host gains, in microseconds a second.
    pub hosts: Vec<i64>,
    /// The same of each node's machine.
    pub clocks: Vec<i64>,
    /// How many may stand in line for a slot of each node; 0: its jail knows no lines.
    pub in_line: Vec<usize>,
}

/// A job that a client submits.
#[derive(Clone, Debug)]
pub struct PlannedJob {
    pub at: Micros,
    pub priority: u8,
    pub keep_going: bool,
    pub definitions: Vec<NewDefinition>,
    /// How the processes of each definition behave.
    pub behaviours: Vec<Behaviour>,
    pub cancel_after: Option<Micros>,
    /// The database refuses its rows.
    pub poison: bool,
    /// It is submitted twice at the same moment, under one key.
    pub twice: bool,
}

/// How processes behave, in milliseconds and thousandths.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    pub run_ms: (u64, u64),
    pub fails: u64,
    /// Ignores SIGTERM.
    pub stubborn: u64,
    pub grace_ms: u64,
    /// Bytes of output at the most.
    pub output: u64,
    /// `on_disconnect: kill`.
    pub leased: bool,
}

impl Plan {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x706c_616e);
        let nodes = (0..rng.range(2, 6)).map(|node| node_facts(&mut rng, node)).collect::<Vec<_>>();
        let healed_at = rng.range(20, 150) * SECOND;
        let mut jobs = (0..rng.range(2, 9)).map(|_| job(&mut rng, healed_at)).collect::<Vec<_>>();
        // Several coordinators at once in most seeds, and clocks that run a little unevenly.
        let mut gains = || rng.range(0, 401).cast_signed() - 200;
        let clocks = nodes.iter().map(|_| gains()).collect();
        let hosts: Vec<i64> = (0..3).map(|_| gains()).collect();
        let hosts = hosts[..rng.pick(&[1, 2, 2, 3]).unwrap_or(1)].to_vec();
        let mut faults = trouble::faults(&mut rng, nodes.len(), hosts.len(), healed_at);
        faults.extend(trouble::read_only(&mut Rng::new(seed ^ 0x0072_6561_6473), healed_at));
        faults.extend(trouble::flaps(&mut Rng::new(seed ^ 0x666c_6170_7321), nodes.len(), healed_at));
        let mut rate = |most: u64| if rng.chance(400) { rng.skewed(1, most) } else { 0 };
        let weather = Weather {
            late: rate(100),
            client_loss: rate(300),
            commit: rate(60),
            read: rate(100),
            spawn: rate(100),
            preempt: rate(300),
            twice: rate(100),
        };
        let redrives = trouble::redrives(&mut Rng::new(seed ^ 0x0064_6561_6421), healed_at);
        let restore = trouble::restore(&mut Rng::new(seed ^ 0x7265_7374_6f72_6521), healed_at);
        let in_line = lines(seed, nodes.len(), &mut jobs);
        let feed_below_ms = rng.pick(&[0, 2_000, 2_000, 60_000]).unwrap_or(2_000);
        let (suspect_after_ms, offline_after_ms) =
            rng.pick(&[(15_000, 30_000), (15_000, 30_000), (10_000, 15_000)]).unwrap_or((15_000, 30_000));
        let settings = Settings { feed_below_ms, suspect_after_ms, offline_after_ms, ..Settings::default() };
        Self {
            nodes,
            jobs,
            faults,
            redrives,
            restore,
            healed_at,
            weather,
            settings,
            offline_after_ms,
            hosts,
            clocks,
            in_line,
        }
    }
}

/// In every third world attempts stand in line, and many are over in an instant. It has a chance of its
/// own, so that the other seeds mean what they meant.
fn lines(seed: u64, nodes: usize, jobs: &mut [PlannedJob]) -> Vec<usize> {
    if seed % 3 != 2 {
        return vec![0; nodes];
    }
    let mut rng = Rng::new(seed ^ 0x006c_696e_6573_2121);
    for job in jobs {
        if rng.chance(300) {
            continue;
        }
        let more = rng.range(1, 5) as u32;
        for (definition, behaviour) in job.definitions.iter_mut().zip(&mut job.behaviours) {
            if definition.array {
                definition.total *= more;
            }
            behaviour.run_ms = (0, rng.pick(&[2, 5, 8, 50]).unwrap_or(5));
        }
    }
    (0..nodes).map(|_| rng.index(7)).collect()
}

/// The first node can hold every task that is ever made.
fn node_facts(rng: &mut Rng, node: u64) -> Facts {
    let slots = if node == 0 { rng.range(3, 5) } else { rng.range(1, 5) };
    let special = node == 0 || rng.chance(300);
    let one = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    Facts {
        total: Resources {
            cpu_millis: slots * 1000,
            memory: slots * 4 * GIB,
            named: if special { BTreeMap::from([("license".to_owned(), 2)]) } else { BTreeMap::new() },
        },
        slots: slots as u32,
        tags: if special { one("zone", "a") } else { BTreeMap::new() },
        capabilities: std::collections::BTreeSet::new(),
        os: "linux".to_owned(),
        arch: "x86_64".to_owned(),
        sandbox: (SandboxLevel::Basic, SandboxLevel::None),
        cgroup: true,
        host_network: true,
        mounts: BTreeMap::new(),
    }
}

fn requirements(rng: &mut Rng) -> Requirements {
    let mut wanted = Requirements {
        resources: Resources { cpu_millis: 1000, ..Resources::default() },
        tags: BTreeMap::new(),
        capabilities: std::collections::BTreeSet::new(),
        os: None,
        arch: None,
        node: None,
        cgroup: false,
        host_network: false,
        mounts: BTreeMap::new(),
        sandbox: SandboxLevel::Basic,
    };
    match rng.range(0, 10) {
        0 => wanted.resources.cpu_millis = 500,
        1 => wanted.resources = Resources { cpu_millis: 2500, memory: 9 * GIB, ..Resources::default() },
        2 => wanted.resources.named = BTreeMap::from([("license".to_owned(), 1)]),
        3 => wanted.tags = BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
        4 => wanted.resources = Resources { cpu_millis: 250, memory: GIB, ..Resources::default() },
        _ => {}
    }
    wanted
}

fn job(rng: &mut Rng, healed_at: Micros) -> PlannedJob {
    let count = rng.range(1, 5) as u32;
    let mut definitions: Vec<NewDefinition> = Vec::new();
    let mut behaviours = Vec::new();
    let short = rng.chance(600);
    for position in 0..count {
        let total = if rng.chance(500) { rng.range(2, 14) as u32 } else { 1 };
        let needs = (0..position).filter(|_| rng.chance(350)).collect::<Vec<_>>();
        let needs = needs
            .into_iter()
            .map(|task| Need {
                task,
                same_index: definitions[task as usize].total == total && rng.chance(500),
            })
            .collect();
        let all = vec![
            Cause::Exit,
            Cause::Signal,
            Cause::Timeout,
            Cause::Oom,
            Cause::Disk,
            Cause::Output,
            Cause::Staging,
            Cause::Sandbox,
        ];
        let retry = Retry {
            attempts: rng.range(1, 4) as u32,
            on: if rng.chance(800) { all } else { vec![Cause::Timeout] },
            backoff_ms: rng.pick(&[0, 200, 2_000]).unwrap_or(200),
            max_backoff_ms: 5_000,
            max_lost: rng.pick(&[0, 2, 5, 5]).unwrap_or(5),
        };
        definitions.push(NewDefinition {
            name: format!("t{position}"),
            array: total > 1,
            total,
            requirements: requirements(rng),
            retry,
            needs,
            spec: bytes::Bytes::new(),
        });
        let low = if short { rng.range(1, 500) } else { rng.range(100, 20_000) };
        behaviours.push(Behaviour {
            run_ms: (low, low * 2),
            fails: rng.pick(&[0, 0, 50, 300]).unwrap_or(0),
            stubborn: rng.pick(&[0, 200, 1000]).unwrap_or(0),
            grace_ms: rng.pick(&[200, 5_000]).unwrap_or(200),
            output: rng.pick(&[0, 100, 100_000]).unwrap_or(0),
            leased: rng.chance(300),
        });
    }
    PlannedJob {
        at: rng.skewed(0, healed_at * 9 / 10),
        priority: rng.range(0, 10) as u8,
        keep_going: rng.chance(400),
        definitions,
        behaviours,
        cancel_after: rng.chance(250).then(|| rng.skewed(0, 40 * SECOND)),
        poison: rng.chance(40),
        twice: rng.chance(100),
    }
}

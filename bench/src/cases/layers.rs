//! What the layers of the sandbox cost, one task at a time, nothing else of the mesh around: the jail
//! driven as the daemon drives it, level by level and with one layer left away at a time; and before that
//! the system calls alone, layer upon layer, as the agent itself measures them.

use std::{
    collections::{HashMap, VecDeque},
    process::Command,
    time::{Duration, Instant},
};

use agent::jail::{
    Bounds, Client, Event, Events, ExitCause, ExitRecord, Level, Network, Options, Rlimits, Room,
    StartRequest, Wall,
};
use anyhow::{Context as _, bail, ensure};
use mesh_e2e::program;
use mesh_proto::ids::{AttemptKey, JobNumber, TaskKey};
use tempfile::TempDir;

use crate::{
    floor::{millis, process_ms, spawn_ms, spawns_per_second},
    processes::{Usage, children, starters},
    report::{Cost, Figure},
};

/// What the tasks run as where the bench runs as root: nobody's number.
const UID: u32 = 29_999;
/// Attempts whose directories are given back together, as an agent does.
const BATCH: usize = 16;

/// Level strict where nobody stands in the slot: what the layers are left out of.
const OWN: &str = "strict, each task with a keeper of its own";

/// Of each level, and of strict without each of its layers.
const KINDS: [(&str, Level, &[Wall]); 12] = [
    ("none", Level::None, &[]),
    ("basic", Level::Basic, &[]),
    ("strict", Level::Strict, &[]),
    (OWN, Level::Strict, &[Wall::Standing]),
    ("… without the file tree and its /tmp", Level::Strict, &[Wall::Tree]),
    ("… without its own network", Level::Strict, &[Wall::Network]),
    ("… without the ipc namespace", Level::Strict, &[Wall::Ipc]),
    ("… without user namespace and loss of capabilities", Level::Strict, &[Wall::Capabilities]),
    ("… without seccomp", Level::Strict, &[Wall::Seccomp]),
    ("… without Landlock", Level::Strict, &[Wall::Landlock]),
    ("… without control groups and limits", Level::Strict, &[Wall::Limits]),
    ("… without the watch of the work directory", Level::Strict, &[Wall::Disk]),
];

/// The costs, each layer's against what it is added to or taken from, and what of P2 is the kernel's.
pub async fn run(tasks: u32, runs: usize) -> anyhow::Result<(Vec<Cost>, Vec<Figure>)> {
    let mut jail = Jail::start().await?;
    let mut floors = Cost::new("/bin/true by posix_spawn", None);
    let mut spawns = Vec::new();
    let mut kernel: Vec<Cost> = Vec::new();
    let mut rates: Vec<Vec<f64>> = Vec::new();
    let mut driven: Vec<Cost> = KINDS
        .iter()
        .map(|(what, level, without)| {
            let whole = KINDS.iter().position(|(name, ..)| *name == OWN);
            let less = *level == Level::Strict && !without.is_empty() && *what != OWN;
            let against = whole.filter(|_| less);
            Cost::new(format!("jail, {what}"), against)
        })
        .collect();
    for run in 0..=runs {
        let (one, processor) = (spawn_ms(), process_ms());
        let spawned = spawns_per_second(2, Duration::from_secs(1));
        let layers = system_calls(tasks)?;
        if run > 0 {
            floors.push(one * 1000.0, processor * 1000.0);
            spawns.push(spawned);
        }
        for (number, (what, numbers)) in layers.into_iter().enumerate() {
            if kernel.len() == number {
                let what = if number == 0 { what } else { format!("+ {what}") };
                kernel.push(Cost::new(format!("system calls: {what}"), number.checked_sub(1)));
                rates.push(Vec::new());
            }
            // For one worker its rate, time and processor time; then the same for two.
            let [_, wall, processor, rate, ..] = numbers[..] else { bail!("the agent printed {numbers:?}") };
            if run > 0 {
                kernel[number].push(wall, processor);
                rates[number].push(rate);
            }
        }
        // Whole rounds, so that a slow moment of the machine meets all alike.
        for ((_, level, without), cost) in KINDS.iter().zip(&mut driven) {
            let (wall, processor) = jail.measure(*level, without, tasks).await?;
            if run > 0 {
                cost.push(wall, processor);
            }
        }
    }
    let of_kernel = |name: &str| kernel.iter().position(|cost| cost.what.contains(name));
    let anew = of_kernel("everything anew");
    // All layers, whichever is the last that could be measured.
    let whole = anew.unwrap_or(kernel.len()).checked_sub(1);
    let mut figures = Vec::new();
    for (row, what) in [
        (Some(0), "a process by system calls alone"),
        (whole, "the strict sandbox by system calls alone, ground prepared"),
        (anew, "the strict sandbox by system calls alone, everything anew"),
    ] {
        let Some(row) = row else { continue };
        figures.push(
            Figure::new("layers", format!("{what}, 2 at a time"), "/s", rates[row].clone())
                .floor("/bin/true, 2 at a time", spawns.clone()),
        );
    }
    let mut costs = vec![floors];
    for group in [kernel, driven] {
        let first = costs.len();
        costs.extend(group.into_iter().map(|cost| cost.moved(first)));
    }
    Ok((costs, figures))
}

/// What `agent jail --cost` says: the layers' names and numbers.
fn system_calls(tasks: u32) -> anyhow::Result<Vec<(String, Vec<f64>)>> {
    let dir = TempDir::new()?;
    let output = Command::new(program("agent"))
        .args(["jail", "--cost", &tasks.to_string(), "--dir"])
        .arg(dir.path())
        .output()
        .context("start the agent")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the agent cannot measure: {said}");
    eprint!("{said}");
    let lines = String::from_utf8(output.stdout)?;
    let parse = |line: &str| -> anyhow::Result<(String, Vec<f64>)> {
        let (name, numbers) = line.split_once('\t').context("a line without numbers")?;
        Ok((name.to_owned(), numbers.split('\t').map(str::parse).collect::<Result<_, _>>()?))
    };
    lines.lines().map(parse).collect()
}

/// A jail of this program's own.
struct Jail {
    dir: TempDir,
    client: Client,
    events: Events,
    next: u64,
    uid: Option<u32>,
    ended: HashMap<AttemptKey, ExitRecord>,
    done: VecDeque<AttemptKey>,
}

impl Jail {
    async fn start() -> anyhow::Result<Self> {
        let dir = TempDir::new()?;
        // A task goes through it to its work directory.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        std::fs::create_dir(dir.path().join("attempts"))?;
        let mut options = Options::new(dir.path().join("jail"));
        options.exe = Some(program("agent"));
        options.testing = true;
        let (client, events) = Client::ensure(&options).await?;
        let uid = nix::unistd::geteuid().is_root().then_some(UID);
        Ok(Self { dir, client, events, next: 0, uid, ended: HashMap::new(), done: VecDeque::new() })
    }

    fn request(&mut self, level: Level, without: &[Wall]) -> StartRequest {
        self.next += 1;
        let attempt =
            AttemptKey { task: TaskKey { job: JobNumber(self.next), task: 0, index: 0 }, number: 1 };
        let attempt_dir = self.dir.path().join("attempts").join(attempt.to_string());
        // As the daemon words it at level strict; the levels below it have no bounds.
        let bounds = Bounds {
            memory: Some(1 << 30),
            processes: Some(4096),
            cpu_millis: Some(1000),
            disk: Some(10 << 30),
            files: Some(1_000_000),
        };
        StartRequest {
            attempt,
            argv: vec!["/bin/true".to_owned()],
            env: vec![("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())],
            work_dir: attempt_dir.join("work"),
            attempt_dir,
            uid: self.uid,
            gid: self.uid,
            level,
            timeout: None,
            grace: Duration::from_secs(1),
            max_output: 64 << 20,
            limits: Rlimits::default(),
            hidden: vec![self.dir.path().to_owned()],
            network: Network::None,
            mounts: Vec::new(),
            bounds: if level == Level::Strict { bounds } else { Bounds::default() },
            room: Some(Room { record: vec![0; 512], script: String::new() }),
            without: without.to_vec(),
            lease: None,
            after: None,
            slot: None,
        }
    }

    /// Microseconds from asking for a task to hearing of its end, and of processor for each, of the jail,
    /// its helpers, the keepers and the tasks.
    async fn measure(&mut self, level: Level, without: &[Wall], tasks: u32) -> anyhow::Result<(f64, f64)> {
        // A slot of this kind, and everything in the caches.
        self.one(level, without).await?;
        let before = self.used();
        let mut wall = Duration::ZERO;
        for _ in 0..tasks {
            let began = Instant::now();
            self.one(level, without).await?;
            wall += began.elapsed();
            if self.done.len() >= BATCH {
                self.client.clear(self.done.drain(..).collect()).await?;
            }
        }
        let used = self.used().saturating_sub(before);
        Ok((millis(wall) * 1000.0 / f64::from(tasks), millis(used) * 1000.0 / f64::from(tasks)))
    }

    async fn one(&mut self, level: Level, without: &[Wall]) -> anyhow::Result<()> {
        let request = self.request(level, without);
        let attempt = request.attempt;
        self.client.start(request).await?;
        while !self.ended.contains_key(&attempt) {
            match self.events.recv().await.context("the jail is gone")? {
                Event::Started(_) | Event::Returned(_) => {}
                Event::Ended(record) => drop(self.ended.insert(record.attempt, record)),
            }
        }
        let cause = self.ended.remove(&attempt).map(|record| record.cause);
        ensure!(cause == Some(ExitCause::Exited(0)), "/bin/true ended with {cause:?}");
        self.done.push_back(attempt);
        Ok(())
    }

    /// By all of its processes, living and buried.
    fn used(&self) -> Duration {
        let mut pids = children(self.client.jail_pid());
        pids.push(self.client.jail_pid());
        pids.extend(starters(&pids));
        let none = Usage::default();
        Usage::of(&pids).since(&none) + Usage::of_buried(&pids).since(&none)
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.client.jail_pid().cast_signed());
        // Without a daemon it ends by itself, but later than its directory.
        let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    }
}

//! What level strict costs at the least: the very system calls of a task's plan, made by a worker that
//! starts and waits and does nothing else. No pipes, no messages, no records; what is left is the kernel's
//! share. Layer is added to layer, so that each one's own cost is the difference to the line before.
//!
//! Under root a worker is what a standing keeper is, with a starter; elsewhere it is a helper and forks a keeper for each
//! task.
//!
//! Run by benchmarks as `agent jail --cost TASKS`; no task of anybody's is started here.

#![expect(unsafe_code, reason = "forks")]

use std::{
    ffi::{c_int, c_void},
    fs::{self, File},
    io::{self, Read as _, Write as _},
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};

use super::{
    cgroup::{Group, Groups},
    keeper::STACK,
    log,
    plan::{self, Facts, Ground, Places, Plan, Step, System},
    probe,
    protocol::{Level, Limits},
    starter::Starter,
    steps::{Hands, carry_out},
    sys::{self, Fork, Pointers, Signals},
};

/// What a task does.
const COMMAND: &str = "/bin/true";
/// Workers at a time, for the time that one task takes and for the rate of a machine with two slots.
const WIDTHS: [usize; 2] = [1, 2];

/// A layer, in the order in which they are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Processes,
    Pid,
    Names,
    Tree,
    Proc,
    Identity,
    Limits,
    Landlock,
    Filter,
    Groups,
    /// Not a layer: all of it, with nothing prepared before the task.
    Anew,
}

const LAYERS: [(Layer, &str); 11] = [
    (Layer::Processes, "process, and its keeper where that is its own"),
    (Layer::Pid, "pid namespace"),
    (Layer::Names, "ipc, uts and cgroup namespaces"),
    (Layer::Tree, "file tree, work directory, /tmp"),
    (Layer::Proc, "/proc"),
    (Layer::Identity, "user namespace, ids, capabilities"),
    (Layer::Limits, "limits of processes"),
    (Layer::Landlock, "Landlock"),
    (Layer::Filter, "seccomp"),
    (Layer::Groups, "in control groups"),
    (Layer::Anew, "everything anew: keeper, network, tree, user namespace"),
];

/// The layer that a step belongs to.
fn layer(step: &Step) -> Layer {
    match step {
        Step::Fork
        | Step::NewSession
        | Step::Umask(_)
        | Step::Undumpable
        | Step::ResetSignals
        | Step::ResetActions
        | Step::UnblockSignals
        | Step::OwnKeyring
        | Step::DieWithKeeper => Layer::Processes,
        Step::BeginTree
        | Step::TreeRoot(_)
        | Step::Link { .. }
        | Step::MakeFile(_)
        | Step::Pivot(_)
        | Step::EndTree
        | Step::EnterTree
        | Step::Harden { .. }
        | Step::MapOwner { .. }
        | Step::Scratch { .. }
        | Step::StandingScratch(_)
        | Step::Terminals(_)
        | Step::MakeOpenDir(_)
        | Step::Unseal(_)
        | Step::PrivateMounts
        | Step::Hold(_)
        | Step::Cover(_)
        | Step::MakeDir(_)
        | Step::Restore(_)
        | Step::Seal(_)
        | Step::Chdir(_) => Layer::Tree,
        Step::OwnProc | Step::StandingProc => Layer::Proc,
        Step::NumbersAnew => Layer::Pid,
        Step::OwnGroups | Step::StandingQueues => Layer::Names,
        Step::OwnUser { .. }
        | Step::FewWatches
        | Step::EnterUser
        | Step::MapIds { .. }
        | Step::DropBoundingSet
        | Step::ClearGroups
        | Step::Gid(_)
        | Step::Uid(_)
        | Step::DropCapabilities
        | Step::NoNewPrivileges => Layer::Identity,
        Step::Limit(..) | Step::OomScore(_) => Layer::Limits,
        Step::Rules(_) | Step::Restrict => Layer::Landlock,
        Step::Filter => Layer::Filter,
        Step::JoinGroup(_) => Layer::Groups,
        Step::OwnNetwork => Layer::Anew,
    }
}

/// What a worker does once, and what for each task.
struct Work {
    ground_namespaces: u64,
    ground: Vec<Step>,
    plan: Plan,
    /// Whether the worker is the keeper; else it forks one for each task.
    stands: bool,
    /// Whether its tree is there, to be tidied up.
    tree: bool,
    /// Whether each task has ground of its own.
    anew: bool,
}

impl Work {
    /// The plan with its layers up to `most`, on ground that was made for them.
    fn up_to(most: Layer, whole: &Plan, on: &Ground, ground: &[Step], facts: &Facts) -> Self {
        let anew = most == Layer::Anew;
        // Control groups are made for a slot, never for a task. The network is in every line: it is the
        // ground's, and making one costs once.
        let wanted = |step: &&Step| match layer(step) {
            Layer::Groups if anew => false,
            Layer::Anew => true,
            layer => layer <= most,
        };
        let keep = |steps: &[Step]| -> Vec<Step> { steps.iter().filter(wanted).cloned().collect() };
        let flags = [
            (Layer::Pid, sys::NEW_PID),
            (Layer::Names, sys::NEW_IPC | sys::NEW_UTS | sys::NEW_CGROUP),
            (Layer::Tree, sys::NEW_MOUNT),
        ];
        let lacks: u64 = flags.iter().filter(|(layer, _)| *layer > most).map(|(_, flags)| flags).sum();
        let mut ground_namespaces = on.namespaces(facts);
        if on.stands {
            ground_namespaces &= !lacks;
        }
        // An ordinary user's ground cannot be without its map.
        let mapped = |step: &&Step| wanted(step) || matches!(step, Step::MapIds { .. });
        let plan = Plan {
            namespaces: whole.namespaces & !lacks,
            // What the jail brings; here from where a keeper sees it.
            brought: keep(&[Step::Hold(c"/run".into()), Step::Harden { read_only: false }]),
            steps: keep(&whole.steps),
            programs: whole.programs.clone(),
            argv: whole.argv.clone(),
            env: Vec::new(),
            room: whole.room,
        };
        let ground = ground.iter().filter(mapped).cloned().collect();
        Self { ground_namespaces, ground, plan, stands: on.stands, tree: most >= Layer::Tree, anew }
    }
}

/// Measures and prints a line for each layer, tabs between: its name, then for one and for two workers the
/// tasks in a second, microseconds for each task, and microseconds of processor for each.
pub fn print(dir: &Path, facts: &Facts, system: &System, tasks: u32) -> io::Result<()> {
    let tree = dir.join(probe::TREE);
    let room = dir.join("cost");
    let work_dir = room.join("work");
    fs::create_dir_all(&tree)?;
    fs::create_dir_all(&work_dir)?;
    let facts = Facts { strongest: Level::Strict, limits: Limits::Cgroup, ..*facts };
    let request = probe::request(&[COMMAND], &work_dir, &room, &facts);
    std::os::unix::fs::chown(&work_dir, request.uid, request.gid)?;
    let places = Places { work_dir: work_dir.clone(), attempt_dir: room.clone(), hidden: Vec::new() };
    let whole = plan::plan(&request, &places, &facts).map_err(io::Error::other)?;
    let on = Ground::of(&request, &facts).ok_or(io::ErrorKind::Unsupported)?;
    let mut groups = Groups::make(&format!("mesh-{:016x}", std::process::id()));
    for (most, name) in LAYERS {
        // Empty ones may be taken for a dead jail's by another, so there are none before they are needed.
        let group = match (&mut groups, most) {
            (Ok(groups), Layer::Groups) => Some(groups.slot()?),
            (Err(_), Layer::Groups) => continue,
            (Ok(_) | Err(_), _) => None,
        };
        let lists: Vec<PathBuf> = group.as_ref().map(Group::lists).unwrap_or_default();
        let ground = plan::ground(&on, system, &tree, &lists, &facts).map_err(io::Error::other)?;
        let work = Work::up_to(most, &whole, &on, &ground, &facts);
        let mut line = name.to_owned();
        let taken: io::Result<Vec<[f64; 3]>> =
            WIDTHS.iter().map(|&width| measure(&work, width, tasks / width as u32)).collect();
        let taken = match taken {
            Ok(taken) => taken,
            Err(why) => {
                log(&format!("{name}: not measured: {why}"));
                continue;
            }
        };
        for [rate, wall, processor] in taken {
            line = format!("{line}\t{rate:.1}\t{wall:.1}\t{processor:.1}");
        }
        writeln!(io::stdout(), "{line}")?;
    }
    fs::remove_dir_all(room)
}

/// Tasks in a second of all workers; microseconds and microseconds of processor for a task of one.
fn measure(work: &Work, width: usize, tasks: u32) -> io::Result<[f64; 3]> {
    let mut workers = Vec::new();
    for _ in 0..width {
        let (read, write) = io::pipe()?;
        // SAFETY: the jail has one thread (checked when it starts).
        match unsafe { sys::fork_into(if work.anew { 0 } else { work.ground_namespaces }) }? {
            Fork::Parent { pidfd, .. } => workers.push((pidfd, read)),
            Fork::Child => {
                let mut write = File::from(OwnedFd::from(write));
                let said = match labour(work, tasks) {
                    Ok((wall, processor)) => format!("{} {}", wall.as_nanos(), processor.as_nanos()),
                    Err(why) => why,
                };
                let _unheard = write.write_all(said.as_bytes());
                sys::exit_now(0)
            }
        }
    }
    let mut sums = [0.0; 3];
    for (pidfd, mut read) in workers {
        let mut said = String::new();
        read.read_to_string(&mut said)?;
        wait(&pidfd)?;
        let numbers: Vec<f64> = said.split(' ').filter_map(|number| number.parse().ok()).collect();
        let [wall, processor] = numbers[..] else { return Err(io::Error::other(said)) };
        let each = 1.0 / f64::from(tasks.max(1));
        sums[0] += f64::from(tasks) * 1e9 / wall;
        sums[1] += wall * each / 1e3 / width as f64;
        sums[2] += processor * each / 1e3 / width as f64;
    }
    Ok(sums)
}

fn wait(pidfd: &OwnedFd) -> io::Result<Option<i32>> {
    let options = rustix::process::WaitIdOptions::EXITED;
    let dead = rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd.as_fd()), options)?;
    Ok(dead.and_then(|dead| dead.exit_status()))
}

/// One worker: its ground, one task to warm up, then those that count. The error is for people.
fn labour(work: &Work, tasks: u32) -> Result<(Duration, Duration), String> {
    let mut hands = Hands::default();
    if !work.anew {
        ready(work, &mut hands)?;
    }
    let (argv, env) = (Pointers::new(&work.plan.argv), Pointers::new(&work.plan.env));
    let mut stack = Vec::with_capacity(STACK);
    let mut task = Task { work, argv: &argv, env: &env, hands: &mut hands, first: 0, starter: None };
    one(&mut task, stack.spare_capacity_mut())?;
    let used = |task: &Task<'_>| processor() + task.starter.as_ref().map_or(Duration::ZERO, Starter::used);
    let (began, before) = (Instant::now(), used(&task));
    for _ in 0..tasks {
        one(&mut task, stack.spare_capacity_mut())?;
    }
    Ok((began.elapsed(), used(&task).saturating_sub(before)))
}

fn ready(work: &Work, hands: &mut Hands) -> Result<(), String> {
    Signals::all().block_only();
    for step in &work.ground {
        carry_out(step, hands).map_err(|errno| format!("{}: {errno}", step.describe()))?;
    }
    Ok(())
}

/// Of this process and of what it has buried.
fn processor() -> Duration {
    let of =
        |who| getrusage(who).map_or(0, |usage| (usage.user_time() + usage.system_time()).num_microseconds());
    Duration::from_micros((of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN)).unsigned_abs())
}

struct Task<'a> {
    work: &'a Work,
    argv: &'a Pointers<'a>,
    env: &'a Pointers<'a>,
    hands: &'a mut Hands,
    first: usize,
    /// Where the worker stands: what its tasks are born of.
    starter: Option<Starter>,
}

/// A task, with a keeper of its own where this is none, to the end of all.
fn one(task: &mut Task<'_>, stack: &mut [MaybeUninit<u128>]) -> Result<(), String> {
    let work = task.work;
    if work.stands && !work.anew {
        serve(task, stack)?;
        return if work.tree { task.hands.tidy().map_err(|errno| errno.to_string()) } else { Ok(()) };
    }
    let namespaces = if work.stands { work.ground_namespaces } else { work.plan.namespaces };
    // An ordinary user's ground is a user namespace, and made in one.
    let namespaces = if work.anew { namespaces | work.ground_namespaces } else { namespaces };
    // SAFETY: a worker is a fork of the jail and starts no thread.
    match unsafe { sys::fork_into(namespaces) }.map_err(|errno| errno.to_string())? {
        Fork::Parent { pidfd, .. } => match wait(&pidfd) {
            Ok(Some(0)) => Ok(()),
            Ok(code) => Err(format!("a task of the measurement ended with {code:?}")),
            Err(error) => Err(error.to_string()),
        },
        Fork::Child => {
            let ready = if work.anew { ready(work, task.hands) } else { Ok(()) };
            if let Err(why) = ready.and_then(|()| serve(task, stack)) {
                log(&why);
                sys::exit_now(1)
            }
            sys::exit_now(0)
        }
    }
}

/// What a keeper does for one task. The error is for people.
fn serve(task: &mut Task<'_>, stack: &mut [MaybeUninit<u128>]) -> Result<(), String> {
    Signals::all().block_only();
    let plan = &task.work.plan;
    let own = plan.steps.iter().position(|step| *step == Step::Fork).unwrap_or_default();
    let brought = if task.work.stands { &plan.brought[..] } else { &[] };
    for step in brought.iter().chain(&plan.steps[..own]) {
        carry_out(step, task.hands).map_err(|errno| format!("{}: {errno}", step.describe()))?;
    }
    task.first = own + 1;
    let stands = task.work.stands && !task.work.anew;
    if stands {
        Starter::ready(&mut task.starter, &plan.steps[own..], task.hands)
            .map_err(|(step, errno)| format!("{}: {errno}", plan.steps[own + step].describe()))?;
    }
    let mut starter = task.starter.take();
    let argument = std::ptr::from_mut(task).cast();
    let born = match &mut starter {
        // SAFETY: `become_task` ends in exec or exit and touches only what `task` holds, which is
        // alive until then because this side waits.
        Some(starter) => unsafe { starter.start(become_task, stack, argument) },
        // SAFETY: the same.
        None => unsafe { sys::vfork_with(become_task, stack, argument) },
    };
    task.starter = starter;
    born.map_err(|errno| errno.to_string())?;
    loop {
        match sys::reap() {
            Ok(Some(dead)) if dead.status == 0 => return Ok(()),
            Ok(Some(dead)) => {
                let step = task.work.plan.steps.get((sys::code_of(dead.status) as usize).wrapping_sub(2));
                return Err(step.map_or("a task of the measurement failed", Step::describe).to_owned());
            }
            Ok(None) => drop(Signals::of(&[libc::SIGCHLD]).wait(None)),
            Err(errno) => return Err(errno.to_string()),
        }
    }
}

extern "C" fn become_task(task: *mut c_void) -> c_int {
    // SAFETY: `serve` passes its task and waits until this process has exec'd or exited.
    let task = unsafe { &mut *task.cast::<Task<'_>>() };
    let plan = &task.work.plan;
    let heir = task.work.stands && !task.work.anew;
    for (number, step) in plan.steps.iter().enumerate().skip(task.first) {
        if heir && step.is_inherited() {
            continue;
        }
        if carry_out(step, task.hands).is_err() {
            sys::exit_now(2 + number as i32);
        }
    }
    for program in &plan.programs {
        sys::exec(program, task.argv, task.env);
    }
    sys::exit_now(1)
}

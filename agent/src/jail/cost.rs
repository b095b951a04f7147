//! What level strict costs at the least: the very system calls of a task's plan, made by a worker that
//! forks and waits and does nothing else. No pipes, no messages, no records; what is left is the kernel's
//! share. Layer is added to layer, so that each one's own cost is the difference to the line before.
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
    (Layer::Processes, "keeper and process"),
    (Layer::Pid, "pid namespace"),
    (Layer::Names, "ipc, uts and cgroup namespaces"),
    (Layer::Tree, "copy of the file tree, work directory, /tmp"),
    (Layer::Proc, "/proc"),
    (Layer::Identity, "user namespace, ids, capabilities"),
    (Layer::Limits, "limits of processes"),
    (Layer::Landlock, "Landlock"),
    (Layer::Filter, "seccomp"),
    (Layer::Groups, "in control groups"),
    (Layer::Anew, "everything anew: network, tree, user namespace"),
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
        Step::OwnProc => Layer::Proc,
        Step::OwnUser { .. }
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
}

impl Work {
    /// The plan with its layers up to `most`, on ground that was made for all of them.
    fn up_to(most: Layer, whole: &Plan, ground: &[Step], facts: &Facts) -> Self {
        let apart = Ground::namespaces(facts);
        let keep = |steps: &[Step]| -> Vec<Step> {
            steps.iter().filter(|step| layer(step) <= most).cloned().collect()
        };
        let flags =
            [(Layer::Pid, sys::NEW_PID), (Layer::Names, sys::NEW_IPC | sys::NEW_UTS | sys::NEW_CGROUP)];
        let namespaces = flags.iter().filter(|(layer, _)| *layer <= most).map(|(_, flags)| flags).sum();
        let plan = |namespaces, steps| Plan {
            namespaces,
            steps,
            programs: whole.programs.clone(),
            argv: whole.argv.clone(),
            env: Vec::new(),
            room: whole.room,
        };
        if most == Layer::Anew {
            let first = ground.iter().filter(|step| layer(step) != Layer::Groups).cloned();
            let steps = first.chain(whole.steps.iter().cloned()).collect();
            return Self { ground_namespaces: 0, ground: Vec::new(), plan: plan(namespaces | apart, steps) };
        }
        // The network is the ground's in every line but the last: making one costs once.
        let with_network = |step: &&Step| layer(step) <= most || layer(step) == Layer::Anew;
        let needs_tree = |step: &&Step| with_network(step) || matches!(step, Step::MapIds { .. });
        let ground = ground.iter().filter(needs_tree).cloned().collect();
        Self { ground_namespaces: apart, ground, plan: plan(namespaces, keep(&whole.steps)) }
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
        let work = Work::up_to(most, &whole, &ground, &facts);
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
        match unsafe { sys::fork_into(work.ground_namespaces) }? {
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
    for step in &work.ground {
        carry_out(step, &mut hands).map_err(|errno| format!("{}: {errno}", step.describe()))?;
    }
    let (argv, env) = (Pointers::new(&work.plan.argv), Pointers::new(&work.plan.env));
    let mut stack = Vec::with_capacity(STACK);
    let mut task = Task { plan: &work.plan, argv: &argv, env: &env, hands: &mut hands, first: 0 };
    one(&mut task, stack.spare_capacity_mut())?;
    let (began, before) = (Instant::now(), processor());
    for _ in 0..tasks {
        one(&mut task, stack.spare_capacity_mut())?;
    }
    Ok((began.elapsed(), processor().saturating_sub(before)))
}

/// Of this process and of what it has buried.
fn processor() -> Duration {
    let of =
        |who| getrusage(who).map_or(0, |usage| (usage.user_time() + usage.system_time()).num_microseconds());
    Duration::from_micros((of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN)).unsigned_abs())
}

struct Task<'a> {
    plan: &'a Plan,
    argv: &'a Pointers<'a>,
    env: &'a Pointers<'a>,
    hands: &'a mut Hands,
    first: usize,
}

/// A keeper and its process, to the end of both.
fn one(task: &mut Task<'_>, stack: &mut [MaybeUninit<u128>]) -> Result<(), String> {
    // SAFETY: a worker is a fork of the jail and starts no thread.
    match unsafe { sys::fork_into(task.plan.namespaces) }.map_err(|errno| errno.to_string())? {
        Fork::Parent { pidfd, .. } => match wait(&pidfd) {
            Ok(Some(0)) => Ok(()),
            Ok(Some(code)) => Err(match task.plan.steps.get((code as usize).wrapping_sub(2)) {
                Some(step) => format!("{} failed", step.describe()),
                None => format!("a task of the measurement ended with {code}"),
            }),
            Ok(None) => Err("a task of the measurement was killed".to_owned()),
            Err(error) => Err(error.to_string()),
        },
        Fork::Child => keep(task, stack),
    }
}

fn keep(task: &mut Task<'_>, stack: &mut [MaybeUninit<u128>]) -> ! {
    Signals::all().block_only();
    let plan = task.plan;
    for (number, step) in plan.steps.iter().enumerate() {
        if *step == Step::Fork {
            task.first = number + 1;
            // SAFETY: `become_task` ends in exec or exit and touches only what `task` holds, which is
            // alive until then because this side waits.
            let started = unsafe { sys::vfork_with(become_task, stack, std::ptr::from_mut(task).cast()) };
            let status = started.ok().and_then(|_| {
                loop {
                    match sys::reap() {
                        Ok(Some(dead)) => break Some(dead.status),
                        Ok(None) => drop(Signals::of(&[libc::SIGCHLD]).wait(None)),
                        Err(_) => break None,
                    }
                }
            });
            sys::exit_now(status.map_or(1, sys::code_of))
        }
        if carry_out(step, task.hands).is_err() {
            sys::exit_now(2 + number as i32);
        }
    }
    sys::exit_now(1)
}

extern "C" fn become_task(task: *mut c_void) -> c_int {
    // SAFETY: `keep` passes its task and waits until this process has exec'd or exited.
    let task = unsafe { &mut *task.cast::<Task<'_>>() };
    for (number, step) in task.plan.steps.iter().enumerate().skip(task.first) {
        if carry_out(step, task.hands).is_err() {
            sys::exit_now(2 + number as i32);
        }
    }
    for program in &task.plan.programs {
        sys::exec(program, task.argv, task.env);
    }
    sys::exit_now(1)
}

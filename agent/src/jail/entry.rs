//! `agent jail`: from the command line to the event loop. Takes the directory for itself (one
//! jail a directory), leaves the daemon's session, and tells who started it when it listens.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{OpenOptionsExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use rustix::{
    fs::{FlockOperation, Mode},
    process::{DumpableBehavior, Resource, Rlimit},
};

use super::{
    cgroup::{self, Groups},
    cost, log,
    plan::Facts,
    probe::{TREE, probe},
    protocol::{Level, Limits, SOCKET},
    server::{Options, Server},
    slot::Slots,
    sys::{self, Signals},
    system,
};

/// Held by the living jail of a directory.
const LOCK: &str = "jail.lock";
/// Where a detached jail writes what goes wrong.
const LOG: &str = "jail.log";
/// A log that is larger at the start is begun anew, in bytes.
const MAX_LOG: u64 = 1024 * 1024;

/// Runs a node's tasks; started by the agent, not by hand.
#[derive(Parser)]
#[command(name = "agent jail")]
struct Args {
    /// The jail's own directory.
    #[arg(long)]
    dir: PathBuf,
    /// Return once it listens, and go on in the background.
    #[arg(long)]
    detach: bool,
    /// How long tasks run on without a daemon.
    #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
    orphan_timeout: Duration,
    /// Let requests leave parts of a level away: for tests that show what each part is for.
    #[arg(long, hide = true)]
    testing: bool,
    /// Print what each layer of level strict costs here, measured over this many tasks, and end.
    #[arg(long, hide = true, value_name = "TASKS")]
    cost: Option<u32>,
}

/// What keeps a jail from starting.
#[derive(Debug, thiserror::Error)]
enum EntryError {
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("the jail must have one thread, it has {0}")]
    Threads(usize),
}

/// Runs the jail with the arguments after `jail`. Must be called before any thread is started.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from([OsString::from("agent jail")].into_iter().chain(args)) {
        Ok(args) => args,
        Err(error) => {
            let _shown = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    sys::close_inherited();
    let result = if args.detach { detach(&args) } else { serve(&args, None) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> EntryError {
    let what = what.into();
    move |source| EntryError::Io { what, source }
}

/// Forks; the child serves, this process returns when the child listens or fails.
fn detach(args: &Args) -> Result<(), EntryError> {
    one_thread()?;
    let (read, write) = io::pipe().map_err(io_error("cannot make a pipe"))?;
    #[expect(unsafe_code, reason = "a fork")]
    // SAFETY: one thread, as just counted.
    let child = unsafe { sys::fork() }.map_err(|error| io_error("cannot fork")(error.into()))?;
    if child {
        drop(read);
        return serve(args, Some(write.into()));
    }
    drop(write);
    let mut said = [0; 1];
    match { read }.read(&mut said) {
        Ok(1) => Ok(()),
        // It has said why on this same stderr.
        Ok(_) | Err(_) => sys::exit_now(1),
    }
}

fn one_thread() -> Result<(), EntryError> {
    let threads = fs::read_dir("/proc/self/task").map_err(io_error("cannot read /proc/self/task"))?.count();
    if threads == 1 { Ok(()) } else { Err(EntryError::Threads(threads)) }
}

/// Serves until there is nothing left to do. `ready`, when given, is told that it listens.
fn serve(args: &Args, ready: Option<OwnedFd>) -> Result<(), EntryError> {
    one_thread()?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let dir = own_directory(&args.dir)?;
    let Some(_lock) = lock(&dir)? else {
        // Another jail lives here: whoever asked for one has it.
        return tell_ready(ready);
    };

    // Out of the daemon's session: neither its terminal nor its end reach this process.
    let _leader_already = rustix::process::setsid();
    sys::default_actions();
    sys::ignore(libc::SIGPIPE);
    Signals::of(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT]).block_only();
    rustix::process::chdir("/")
        .map_err(|error| io_error("cannot leave the working directory")(error.into()))?;
    rustix::thread::set_name(c"mesh-jail")
        .map_err(|error| io_error("cannot set the process's name")(error.into()))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| io_error("cannot become a subreaper")(error.into()))?;
    raise_open_files();
    // Where it may not, it is found like anybody.
    let _not_ours = fs::write("/proc/self/oom_score_adj", "-900");

    let listener = listen(&dir)?;
    sys::prepare_filter();
    let mut facts = Facts {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        strongest: Level::None,
        nofile: rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
        oom_score_adj: fs::read_to_string("/proc/self/oom_score_adj")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0),
        limits: Limits::Rlimit,
        testing: args.testing,
    };
    let system = system::look();
    if let Some(tasks) = args.cost {
        return cost::print(&dir, &facts, &system, tasks).map_err(io_error("cannot measure"));
    }
    let mut groups = cgroup::name(&dir).and_then(|name| Groups::make(&name));
    let probe =
        probe(&dir, &facts, &system, &mut groups).map_err(io_error("cannot try what this machine can do"))?;
    facts.strongest = probe.strongest;
    facts.limits = probe.limits;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| io_error("cannot close the jail to others")(error.into()))?;

    let groups = groups.ok().filter(|_| facts.limits == Limits::Cgroup);
    let slots = Slots::new(facts, system, dir.join(TREE), groups);
    let options = Options { dir: dir.clone(), facts, probe, orphan_timeout: args.orphan_timeout, slots };
    let server = Server::new(options, listener).map_err(io_error("cannot make the event loop"))?;
    if ready.is_some() {
        redirect(&dir)?;
    }
    tell_ready(ready)?;
    let result = server.run().map_err(io_error("the event loop failed"));
    let _gone = fs::remove_file(dir.join(SOCKET));
    result
}

/// The directory: made when missing, for nobody else.
fn own_directory(dir: &Path) -> Result<PathBuf, EntryError> {
    let wrong = || io_error(format!("cannot use {}", dir.display()));
    fs::create_dir_all(dir).map_err(wrong())?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(wrong())?;
    dir.canonicalize().map_err(wrong())
}

fn lock(dir: &Path) -> Result<Option<File>, EntryError> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io_error(format!("cannot open {}", path.display())))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(io_error(format!("cannot lock {}", path.display()))(error.into())),
    }
}

/// The socket, through a descriptor of its directory: its path must be under 108 bytes.
fn listen(dir: &Path) -> Result<UnixListener, EntryError> {
    let wrong = || io_error(format!("cannot listen in {}", dir.display()));
    let _stale = fs::remove_file(dir.join(SOCKET));
    let handle = File::open(dir).map_err(wrong())?;
    let listener =
        UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd())).map_err(wrong())?;
    fs::set_permissions(dir.join(SOCKET), fs::Permissions::from_mode(0o600)).map_err(wrong())?;
    Ok(listener)
}

/// Each attempt takes six descriptors.
fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _stays = rustix::process::setrlimit(Resource::Nofile, raised);
}

/// From the starter's descriptors to the log: it may wait for their end.
fn redirect(dir: &Path) -> Result<(), EntryError> {
    let path = dir.join(LOG);
    let wrong = || io_error(format!("cannot open {}", path.display()));
    if fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX_LOG) {
        fs::remove_file(&path).map_err(wrong())?;
    }
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(wrong())?;
    let null = File::open("/dev/null").map_err(io_error("cannot open /dev/null"))?;
    let placed = nix::unistd::dup2_stdin(&null)
        .and_then(|()| nix::unistd::dup2_stdout(&log))
        .and_then(|()| nix::unistd::dup2_stderr(&log));
    placed.map_err(|error| io_error("cannot redirect output")(error.into()))
}

fn tell_ready(ready: Option<OwnedFd>) -> Result<(), EntryError> {
    let Some(ready) = ready else { return Ok(()) };
    File::from(ready).write_all(b"1").map_err(io_error("whoever started the jail is gone"))
}

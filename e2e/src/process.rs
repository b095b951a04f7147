//! One process under test: started with its output in a log file, watched and ended by pid.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::unistd::Pid;
use serde_json::Value;

pub use nix::sys::signal::Signal;

use crate::wait;

/// A started binary. Ends with the value.
pub(crate) struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command` with its output going to `logs/NAME.{out,err}`, appended.
    pub fn start(name: &str, command: &mut Command, logs: &Path) -> Self {
        let file = |kind: &str| {
            let path = logs.join(format!("{name}.{kind}"));
            let open = File::options().create(true).append(true).open(&path).expect("open a log file");
            (path, open)
        };
        let (stdout, out) = file("out");
        let (stderr, err) = file("err");
        // A start tells its own ready line: forget the one before.
        out.set_len(0).expect("cut the output file");
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("start {name}: {error}"));
        Self { name: name.to_owned(), child, stdout, stderr }
    }

    /// The one line that says it serves.
    #[track_caller]
    pub fn ready(&mut self, limit: Duration) -> Value {
        let line = wait::within(limit, || {
            let mut line = String::new();
            let file = File::open(&self.stdout).ok()?;
            BufReader::new(file).read_line(&mut line).ok()?;
            if line.ends_with('\n') {
                return Some(Ok(line));
            }
            self.child.try_wait().expect("ask for the exit").map(Err)
        });
        match line {
            Some(Ok(line)) => {
                let ready: Value = serde_json::from_str(&line)
                    .unwrap_or_else(|error| panic!("{} printed no JSON but {line:?}: {error}", self.name));
                assert_eq!(ready["ready"], true, "{} printed {line}", self.name);
                ready
            }
            Some(Err(status)) => {
                panic!("{} ended with {status} before it was ready:\n{}", self.name, tail(&self.stderr))
            }
            None => panic!("{} was not ready within {limit:?}:\n{}", self.name, tail(&self.stderr)),
        }
    }

    /// The first line of its output, once it is there.
    #[track_caller]
    pub fn line(&mut self, limit: Duration) -> String {
        let line = wait::within(limit, || {
            let text = fs::read_to_string(&self.stdout).ok()?;
            let line = text.lines().next().filter(|_| text.contains('\n')).map(str::to_owned);
            line.map(Ok).or_else(|| self.child.try_wait().expect("ask for the exit").map(Err))
        });
        match line {
            Some(Ok(line)) => line,
            Some(Err(status)) => panic!("{} ended with {status}:\n{}", self.name, tail(&self.stderr)),
            None => panic!("{} said nothing within {limit:?}:\n{}", self.name, tail(&self.stderr)),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// The exit, if there was one.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("ask for the exit")
    }

    /// Waits for the exit.
    #[track_caller]
    pub fn exit(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} exits", self.name);
        wait::until(limit, &what, || self.exited())
    }

    pub fn signal(&self, what: Signal) {
        signal(self.pid(), what);
    }

    /// Ends it without a word, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to one process; it may be gone already.
pub fn signal(pid: u32, what: Signal) {
    let _ = nix::sys::signal::kill(Pid::from_raw(pid.cast_signed()), what);
}

/// Whether a process lives (a zombie does not).
pub fn alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The state follows the name, which stands in brackets and may hold anything.
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

/// The name of a process's first thread.
pub(crate) fn name(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

/// These processes and all living ones that descend from them: what bears no mark, for it sees nothing
/// of the host.
pub(crate) fn with_descendants(of: BTreeSet<u32>) -> BTreeSet<u32> {
    let mut all = of;
    let Ok(entries) = fs::read_dir("/proc") else { return all };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> =
        pids.filter(|pid| alive(*pid)).filter_map(|pid| Some((pid, parent(pid)?))).collect();
    loop {
        let before = all.len();
        all.extend(
            parents
                .iter()
                .filter(|(_, parent)| all.contains(parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
        if all.len() == before {
            return all;
        }
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Whether a process has an open connection to a port of the loopback.
pub(crate) fn connects(pid: u32, port: u16) -> bool {
    const ESTABLISHED: &str = "01";
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let to = format!(":{port:04X}");
    let inodes: Vec<String> = table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(2);
            let (remote, state) = (fields.next()?, fields.next()?);
            // Queues, timer, retransmissions, user, timeout, inode.
            let inode = fields.nth(5)?;
            (remote.ends_with(&to) && state == ESTABLISHED).then(|| format!("socket:[{inode}]"))
        })
        .collect();
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    open.flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .any(|path| inodes.iter().any(|inode| path.as_os_str() == inode.as_str()))
}

/// Every living process that has `mark` (a path of this test alone) in its command line,
/// its environment or as its work directory. This is how a test finds jails, tasks and
/// database servers that were started for it by others.
pub(crate) fn marked(mark: &Path) -> BTreeSet<u32> {
    let needle = mark.as_os_str().as_encoded_bytes();
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != own && alive(*pid) && has_mark(*pid, needle)).collect()
}

fn has_mark(pid: u32, needle: &[u8]) -> bool {
    let holds = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    let file = |name: &str| fs::read(format!("/proc/{pid}/{name}")).is_ok_and(|bytes| holds(&bytes));
    let cwd = || {
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|path| holds(path.as_os_str().as_encoded_bytes()))
    };
    file("cmdline") || cwd() || file("environ")
}

/// Kills every process that bears the mark, until none is left.
pub(crate) fn kill_marked(mark: &Path, limit: Duration) -> bool {
    let gone = wait::within(limit, || {
        let left = marked(mark);
        for pid in &left {
            signal(*pid, Signal::SIGKILL);
        }
        left.is_empty().then_some(())
    });
    gone.is_some()
}

/// The end of a log file.
pub(crate) fn tail(path: &Path) -> String {
    const LENGTH: u64 = 24 * 1024;
    let Ok(mut file) = File::open(path) else { return String::new() };
    let size = file.metadata().map_or(0, |data| data.len());
    let mut bytes = Vec::new();
    let _ = file.seek(SeekFrom::Start(size.saturating_sub(LENGTH)));
    let _ = file.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

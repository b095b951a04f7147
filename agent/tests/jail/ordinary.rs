//! The second run of a test that root runs: as somebody without privileges. And what root prepares for it
//! that such a user cannot make: files with root's power in them, control groups to divide.

use std::{
    env, fs,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use agent::jail::Limits;
use tempfile::TempDir;

use super::support::{Node, PATIENCE, as_this_user, binary, root, uid, world_readable_dir};

/// Set for the second run.
const SECOND: &str = "MESH_TEST_AS_USER";
/// The agent binary, for a run that cannot reach the first one's.
pub const BINARY: &str = "MESH_TEST_AGENT";
/// The directory that root has filled for it.
const GIVEN: &str = "MESH_TEST_GIVEN";
/// Set when it is in control groups of its own.
const GROUPS: &str = "MESH_TEST_IN_GROUPS";

/// The user that a test started by root runs as the second time: no other test's, since the kernel
/// counts processes by uid.
fn ordinary_uid() -> u32 {
    10_000 + std::process::id() % 20_000
}

/// Runs `body` as this user, and as an ordinary one too when this is root. `name` is the test's.
pub fn as_everybody<F: Future<Output = ()>>(name: &str, body: impl Fn(Node) -> F) {
    as_this_user(body);
    if root() {
        again(name, None, &[]);
    }
}

/// The same with a directory that root has put something into; none where no root ran the test.
pub fn as_everybody_given<F: Future<Output = ()>>(
    name: &str,
    give: impl Fn(&Path),
    body: impl Fn(Node, Option<PathBuf>) -> F,
) {
    if !root() {
        as_this_user(|node| body(node, env::var_os(GIVEN).map(PathBuf::from)));
        return;
    }
    let given = world_readable_dir();
    give(given.path());
    as_this_user(|node| body(node, Some(given.path().to_owned())));
    again(name, Some(&given), &[]);
}

/// The same with the ordinary user in control groups that are its to divide, where root can make some.
pub fn as_everybody_in_groups<F: Future<Output = ()>>(name: &str, body: impl Fn(Node) -> F) {
    as_this_user(body);
    if root() {
        let groups = Delegated::to(ordinary_uid()).unwrap_or_default();
        again(name, None, &groups.0);
    }
}

/// Whether control groups hold what tasks may take; says so when there are none.
pub async fn in_groups(node: &Node) -> bool {
    let there = node.client.probe().await.unwrap().limits == Limits::Cgroup;
    if !there {
        assert!(!root() && env::var_os(GROUPS).is_none(), "this user has control groups on this machine");
        mesh_skip::skip(&format!("no control groups here for uid {}", uid()));
    }
    there
}

/// Says that something is skipped here because only root can do it. Nothing is skipped when root has
/// just done it, in the first run of the same test.
pub fn needs_root(why: &str) {
    if env::var_os(SECOND).is_none() {
        mesh_skip::skip(why);
    }
}

/// Runs the test of this name once more, as somebody without privileges.
fn again(name: &str, given: Option<&TempDir>, groups: &[PathBuf]) {
    let place = world_readable_dir();
    let copy = |from: &Path| {
        let to = place.path().join(from.file_name().unwrap());
        // A link where it can be: debug binaries are large.
        fs::hard_link(from, &to).or_else(|_| fs::copy(from, &to).map(|_| ())).unwrap();
        to
    };
    let mut command = Command::new("/bin/sh");
    command
        .args([
            "-c",
            "until [ \"$1\" = -- ]; do echo 0 > \"$1\" || exit; shift; done; shift; exec \"$@\"",
            "sh",
        ])
        .args(groups.iter().map(|dir| dir.join("cgroup.procs")))
        .arg("--")
        .arg(copy(&env::current_exe().unwrap()))
        .args(["--exact", name, "--nocapture"])
        .current_dir("/")
        .env(SECOND, "1")
        .env(BINARY, copy(&binary()))
        .env("TMPDIR", "/tmp")
        .env("HOME", "/nonexistent")
        // The file may be out of its reach: what it skips is said for it below.
        .env_remove(mesh_skip::FILE)
        .uid(ordinary_uid())
        .gid(ordinary_uid());
    if let Some(given) = given {
        command.env(GIVEN, given.path());
    }
    if !groups.is_empty() {
        command.env(GROUPS, "1");
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "as an ordinary user:\n{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for why in text.lines().filter_map(|line| line.strip_prefix(mesh_skip::MARK)) {
        mesh_skip::skip(&format!("as an ordinary user: {why}"));
    }
}

/// Control groups of version 1 of which a user is the owner. For version 2 `scripts/vm-test` has a run of all
/// tests in one.
#[derive(Default)]
struct Delegated(Vec<PathBuf>);

impl Delegated {
    fn to(uid: u32) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mut made = Self::default();
        for controller in ["memory", "pids", "cpu"] {
            let (mounted, path) = own.lines().find_map(|line| {
                let (names, path) = line.split_once(':')?.1.split_once(':')?;
                names.split(',').any(|name| name == controller).then_some((names, path))
            })?;
            let name = format!("mesh-test-{}", std::process::id());
            let dir = Path::new("/sys/fs/cgroup").join(mounted).join(path.trim_start_matches('/')).join(name);
            fs::create_dir(&dir).ok()?;
            made.0.push(dir.clone());
            for path in [dir.join("cgroup.procs"), dir] {
                chown(path, Some(uid), Some(uid)).ok()?;
            }
        }
        Some(made)
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        fn remove(dir: &Path) -> bool {
            let below = fs::read_dir(dir).into_iter().flatten().flatten();
            for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                remove(&entry.path());
            }
            fs::remove_dir(dir).is_ok()
        }
        // The jail of that run was killed, and what was below it is on its way. No `until`: a test that has
        // failed already is not to fail twice.
        let began = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        for dir in &self.0 {
            while !remove(dir) && began.elapsed() < PATIENCE {
                runtime.block_on(async { tokio::time::sleep(Duration::from_millis(5)).await });
            }
        }
    }
}

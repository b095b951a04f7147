//! Attacks from inside a strict task. Each runs a small hostile program (`attacks.py`) inside, where it must be
//! denied, and without the walls that cover it, where it must succeed: as root's task and as an ordinary
//! user's. Where the task's uid itself is the wall, it succeeds outside of any sandbox; where the uid is one
//! that nobody but root takes away, an ordinary user's run shows that it fails outside too ([`Without::Power`]).

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use agent::jail::{Bounds, ExitCause, Level, Network, Options, StartRequest, Wall};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::support::{
    Ended, Node, as_everybody, as_everybody_in_groups, in_groups, mark, processes, root, until, ways,
};

const PROGRAM: &str = include_str!("attacks.py");

/// How an attack succeeds.
#[derive(Clone, Copy, Debug)]
pub enum Without<'a> {
    /// In the sandbox, these walls taken away.
    Walls(&'a [Wall]),
    /// Outside, as the same user.
    Sandbox,
    /// Outside, as the same user, below a process 1 that is closed to nobody.
    OpenKeeper,
    /// Outside, as root in namespaces of its own. For an ordinary user the kernel's own rules are the wall, which
    /// nobody there can take away: outside of any sandbox it must fail by them. Should it succeed there, then
    /// there is a better control.
    Power,
}

pub fn attack(node: &Node, args: &[&str]) -> StartRequest {
    let words = [&["/usr/bin/python3", "attack.py"], args].concat();
    let request = StartRequest { level: Level::Strict, ..node.request(&words) };
    fs::write(request.work_dir.join("attack.py"), PROGRAM).unwrap();
    request
}

/// Runs it outside of any sandbox, where nothing that it does lasts.
pub fn outside(request: &StartRequest, without: Without<'_>) -> String {
    let as_user = match (request.uid, request.gid) {
        (Some(uid), Some(gid)) => format!("setpriv --reuid {uid} --regid {gid} --clear-groups"),
        _ => String::new(),
    };
    let line = match without {
        Without::Power if root() => {
            "exec unshare --mount --pid --fork --mount-proc --ipc --net \"$@\"".to_owned()
        }
        Without::OpenKeeper => {
            let user = if root() { "" } else { "--user --map-current-user" };
            format!(
                "exec unshare {user} --pid --fork --mount-proc {as_user} sh -c '\"$@\"; exit $?' sh \"$@\""
            )
        }
        Without::Walls(_) | Without::Sandbox | Without::Power => format!("exec {as_user} \"$@\""),
    };
    let output = Command::new("/bin/sh")
        .args(["-c", &line, "sh"])
        .args(&request.argv)
        .current_dir(&request.work_dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

pub fn said(ended: &Ended) -> String {
    format!("{:?}: {}{}", ended.record.cause, ended.out(), ended.err())
}

/// Runs the attack inside and without.
async fn show(node: &mut Node, args: &[&str], without: Without<'_>) {
    show_bounded(node, args, without, Bounds::default()).await;
}

async fn show_bounded(node: &mut Node, args: &[&str], without: Without<'_>, bounds: Bounds) {
    for without in ways() {
        let inside = StartRequest { bounds, without, ..attack(node, args) };
        let ended = node.run(inside).await;
        assert!(!ended.out().contains("reached"), "{args:?} inside: {}", said(&ended));
        let denied = ended.out().contains("denied") || ended.record.cause != ExitCause::Exited(0);
        assert!(denied || ended.out().is_empty(), "{args:?} inside: {}", said(&ended));
        assert!(!ended.err().contains("Error: "), "{args:?} broke: {}", ended.err());
    }
    let control = match without {
        Without::Walls(walls) => {
            let request = StartRequest { bounds, without: walls.to_vec(), ..attack(node, args) };
            said(&node.run(request).await)
        }
        Without::Power if !root() => {
            let said = outside(&attack(node, args), without);
            let denied = said.contains("denied") && !said.contains("reached");
            assert!(denied, "{args:?} needs no root to succeed: show that it does. {said}");
            return;
        }
        Without::Sandbox | Without::OpenKeeper | Without::Power => outside(&attack(node, args), without),
    };
    assert!(control.contains("reached"), "{args:?} {without:?} does not succeed either: {control}");
}

#[test]
fn bombs_stop_at_their_bounds() {
    as_everybody("attacks::bombs_stop_at_their_bounds", async |mut node: Node| {
        let limits = Without::Walls(&[Wall::Limits]);
        let bounds = Bounds { processes: Some(40), ..Bounds::default() };
        show_bounded(&mut node, &["fork_bomb", "120"], limits, bounds).await;
        let bounds = Bounds { memory: Some(96 << 20), ..Bounds::default() };
        show_bounded(&mut node, &["heap", "200000000"], limits, bounds).await;
        for place in ["/tmp", "/dev/shm", "/var/tmp"] {
            // /tmp is as large as half of the memory, unless it is the host's.
            let tree = Without::Walls(&[Wall::Tree, Wall::Landlock, Wall::Limits]);
            show_bounded(&mut node, &["fill", place, "100000000"], tree, bounds).await;
        }
        let tree = Without::Walls(&[Wall::Tree, Wall::Landlock, Wall::Limits]);
        show_bounded(&mut node, &["litter", "/tmp", "20000"], tree, bounds).await;
        let bounds = Bounds { disk: Some(20_000_000), ..Bounds::default() };
        let disk = Without::Walls(&[Wall::Disk, Wall::Limits]);
        show_bounded(&mut node, &["fill", ".", "100000000"], disk, bounds).await;
        node.run(StartRequest { level: Level::Strict, ..node.shell("exit 3") })
            .await
            .expect(&ExitCause::Exited(3));
    });
}

/// As above, where an ordinary user has control groups to divide: there they hold the task, not its limits.
#[test]
fn processes_stop_at_the_bound_of_a_users_own_groups() {
    as_everybody_in_groups(
        "attacks::processes_stop_at_the_bound_of_a_users_own_groups",
        async |mut node: Node| {
            if in_groups(&node).await {
                let bounds = Bounds { processes: Some(40), ..Bounds::default() };
                let limits = Without::Walls(&[Wall::Limits]);
                show_bounded(&mut node, &["fork_bomb", "120"], limits, bounds).await;
            }
        },
    );
}

#[test]
fn a_bomb_without_end_is_gone_soon_after_its_time() {
    as_everybody("attacks::a_bomb_without_end_is_gone_soon_after_its_time", async |mut node: Node| {
        let mark = mark();
        let script = format!("trap '' TERM; b() {{ : {mark}; b & b & wait; }}; b & exec sleep 1000");
        let mut request = StartRequest { level: Level::Strict, ..node.shell(&script) };
        request.bounds.processes = Some(100);
        request.limits.nproc = root().then_some(100);
        request.timeout = Some(Duration::from_secs(1));
        request.grace = Duration::from_millis(200);
        let ended = node.run(request).await;
        ended.expect(&ExitCause::TimedOut);
        println!("it took {} ms", ended.record.run_ms);
        assert!(ended.record.run_ms < 3200, "it took {} ms", ended.record.run_ms);
        until("everything to be gone", || processes(&mark).is_empty()).await;
    });
}

#[test]
fn nobody_takes_the_processor_from_others() {
    as_everybody("attacks::nobody_takes_the_processor_from_others", async |mut node: Node| {
        // On a machine where the agent's user may, such as one that is set up for sound.
        let raised: Option<Vec<Raised>> = [(Resource::Nice, 40), (Resource::Rtprio, 50)]
            .map(|(what, most)| Raised::to(what, most))
            .into_iter()
            .collect();
        let limits = [Wall::Limits];
        let without = if raised.is_some() { Without::Walls(&limits) } else { Without::Power };
        if raised.is_none() && !root() {
            mesh_skip::skip("nobody here lets a user raise priorities, so no attack of a user's succeeds");
        }
        node.client.shutdown(false).await.unwrap();
        node.disconnect();
        node.reconnect().await;
        for name in ["real_time", "priority"] {
            show(&mut node, &[name], without).await;
        }
    });
}

/// A limit of this process and those that it starts, raised until this is dropped. What may be raised stays:
/// an ordinary user's run comes after root's and rests on it.
struct Raised {
    what: Resource,
    before: Option<u64>,
}

impl Raised {
    fn to(what: Resource, most: u64) -> Option<Self> {
        let before = getrlimit(what);
        let maximum = if root() { before.maximum.map(|there| there.max(most)) } else { before.maximum };
        let there = Rlimit { current: Some(most), maximum };
        setrlimit(what, there).is_ok().then_some(Self { what, before: before.current })
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        let _less = setrlimit(self.what, Rlimit { current: self.before, ..getrlimit(self.what) });
    }
}

/// A process outside, of the task's user, with a secret in its environment and its memory; where that lies it
/// says. It lets itself be traced where the kernel asks for that.
fn neighbour(secret: &str) -> (Child, String) {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", NEIGHBOUR]).env("SECRET", secret).stdin(Stdio::null()).stdout(Stdio::piped());
    if root() {
        let uid = super::support::task_uid();
        command.uid(uid).gid(uid);
    }
    let mut child = command.spawn().unwrap();
    let mut address = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut address).unwrap();
    (child, address.trim().to_owned())
}

const NEIGHBOUR: &str = "
import ctypes, os, time
secret = ctypes.create_string_buffer(os.environ['SECRET'].encode())
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_long(-1), 0, 0, 0)
print(ctypes.addressof(secret), flush=True)
time.sleep(600)";

#[test]
fn what_is_others_cannot_be_read() {
    as_everybody("attacks::what_is_others_cannot_be_read", async |mut node: Node| {
        let secret = mark();
        let (mut neighbour, address) = neighbour(&secret);
        let pid = neighbour.id().to_string();
        // Open to everybody: only the file tree stands before it.
        let key = node.dir.path().join("key.pem");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let other = node.shell("true").work_dir.join("file");
        fs::write(&other, "another task's").unwrap();
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let credential = home.path().join("credential");
        fs::write(&credential, "who holds it commands the mesh").unwrap();
        let tree = Without::Walls(&[Wall::Tree, Wall::Landlock]);
        for path in [&key, &other, &credential] {
            show(&mut node, &["read", path.to_str().unwrap()], tree).await;
        }
        for dir in [node.dir.path().to_owned(), node.dir.path().join("attempts")] {
            show(&mut node, &["enter", dir.to_str().unwrap()], tree).await;
        }
        show(&mut node, &["environ", &pid], Without::Sandbox).await;
        show(&mut node, &["any_environ", &secret], Without::Sandbox).await;
        show(&mut node, &["kill", &pid], Without::Sandbox).await;
        let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
        if matches!(yama.trim(), "2" | "3") {
            mesh_skip::skip("this kernel lets nobody but root trace: the control of two attacks");
        } else {
            show(&mut node, &["attach", &pid], Without::Sandbox).await;
            let length = secret.len().to_string();
            show(&mut node, &["read_other", &pid, &address, &length], Without::Sandbox).await;
        }
        show(&mut node, &["keeper"], Without::OpenKeeper).await;
        neighbour.kill().unwrap();
        neighbour.wait().unwrap();
    });
}

#[test]
fn no_descriptor_is_inherited() {
    as_everybody("attacks::no_descriptor_is_inherited", async |mut node: Node| {
        // A jail whose starter left the key open, as a careless supervisor might.
        let careless = node.dir.path().join("careless-agent");
        let key = node.dir.path().join("key.pem");
        let options = Node::options(node.dir.path());
        let agent = options.exe.clone().unwrap();
        let script = format!(
            "#!/bin/bash\nexec 3< {0} 9< {0} 200< {0}\nexec {1} \"$@\"\n",
            key.display(),
            agent.display()
        );
        fs::write(&careless, script).unwrap();
        fs::set_permissions(&careless, fs::Permissions::from_mode(0o755)).unwrap();
        node.client.shutdown(false).await.unwrap();
        node.disconnect();
        node.connect(Options { exe: Some(careless), ..options }).await;
        for _ in 0..2 {
            let ended = node.run(attack(&node, &["descriptors"])).await;
            assert_eq!(ended.out(), "", "a descriptor was inherited");
        }
        // The same starter without a jail between.
        let request = attack(&node, &["descriptors"]);
        let line = format!("exec 9< {}; exec \"$@\"", key.display());
        let control = Command::new("/bin/bash")
            .args(["-c", &line, "bash"])
            .args(&request.argv)
            .current_dir(&request.work_dir)
            .output()
            .unwrap();
        let control = String::from_utf8_lossy(&control.stdout).into_owned();
        assert!(control.contains("reached") && control.contains("key.pem"), "{control}");
    });
}

#[test]
fn nothing_outside_can_be_written() {
    as_everybody("attacks::nothing_outside_can_be_written", async |mut node: Node| {
        let open = node.dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let path = open.join("x");
        show(&mut node, &["write", path.to_str().unwrap()], Without::Walls(&[Wall::Tree, Wall::Landlock]))
            .await;
        fs::remove_file(&path).unwrap();
        // The second wall holds alone.
        let second =
            StartRequest { without: vec![Wall::Tree], ..attack(&node, &["write", path.to_str().unwrap()]) };
        let ended = node.run(second).await;
        assert!(ended.out().contains("denied"), "{}", said(&ended));
        for path in
            ["/usr/mesh-attack", "/etc/mesh-attack", "/mesh-attack", "/dev/mesh-attack", "/bin/mesh-attack"]
        {
            show(&mut node, &["write", path], Without::Power).await;
            if root() {
                fs::remove_file(path).unwrap();
            }
        }
    });
}

#[test]
fn no_system_call_opens_a_way_out() {
    as_everybody("attacks::no_system_call_opens_a_way_out", async |mut node: Node| {
        let filter = Without::Walls(&[Wall::Seccomp]);
        for name in [
            "trace",
            "read_memory",
            "take_descriptor",
            "compare",
            "namespace",
            "keys",
            "page_faults",
            "ring",
            "asynchronous",
            "new_clone",
            "ask_for_programs",
        ] {
            show(&mut node, &[name], filter).await;
        }
        if outside(&attack(&node, &["hypervisor"]), Without::Sandbox).contains("reached") {
            show(&mut node, &["hypervisor"], filter).await;
        } else {
            mesh_skip::skip("this machine has no sockets to a hypervisor");
        }
        // Some distributions' kernels leave counters to root, whatever the filter.
        let counters = if setting("perf_event_paranoid") > 2 { Without::Power } else { filter };
        show(&mut node, &["counters"], counters).await;
        // Under root the keeper is another user.
        show(&mut node, &["keeper_limits"], if root() { Without::Power } else { filter }).await;
        // Landlock forbids to change mounts whoever one is.
        for name in ["mount", "change_root", "enter_namespace"] {
            show(&mut node, &[name], Without::Walls(&[Wall::Seccomp, Wall::Landlock])).await;
        }
        let ended = node.run(attack(&node, &["by_handle_of_its_own"])).await;
        assert!(ended.out().starts_with("denied"), "{}", said(&ended));
        let without = vec![Wall::Seccomp, Wall::Landlock];
        let control = node.run(StartRequest { without, ..attack(&node, &["by_handle_of_its_own"]) }).await;
        if control.out().starts_with("denied [Errno 1]") {
            mesh_skip::skip("this kernel opens files by their handles for root alone");
        } else {
            assert!(control.out().contains("reached"), "{}", said(&control));
        }
        // What an ordinary user may nowhere do: make devices, open any file by its handle, load programs into
        // the kernel (where `kernel.unprivileged_bpf_disabled` says so), read the machine's memory.
        for name in ["device", "by_handle", "programs_in_the_kernel", "memory_device"] {
            if name == "memory_device" && !Path::new("/dev/mem").exists() {
                mesh_skip::skip("this machine has no /dev/mem");
                continue;
            }
            let anybody = name == "programs_in_the_kernel" && setting("unprivileged_bpf_disabled") == 0;
            show(&mut node, &[name], if anybody { filter } else { Without::Power }).await;
        }
        if cfg!(target_arch = "x86_64") {
            let ended = node.run(attack(&node, &["foreign"])).await;
            ended.expect(&ExitCause::Signalled(31));
            let mut bare = attack(&node, &["foreign"]);
            bare.without = vec![Wall::Seccomp];
            let ended = node.run(bare).await;
            if ended.record.cause == ExitCause::Signalled(11) {
                mesh_skip::skip("this kernel has no 32-bit system calls");
            } else {
                assert!(ended.out().contains("reached"), "{}", said(&ended));
            }
        }
    });
}

#[test]
fn no_terminal_of_others_is_reached() {
    as_everybody("attacks::no_terminal_of_others_is_reached", async |mut node: Node| {
        let old = fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti").unwrap_or_else(|_| "1".into());
        if old.trim() == "1" {
            show(&mut node, &["terminal"], Without::Walls(&[Wall::Seccomp])).await;
        } else {
            // This kernel refuses it to everybody but root.
            show(&mut node, &["terminal"], Without::Power).await;
        }
        let ended = node.run(attack(&node, &["controlling_terminal"])).await;
        assert!(ended.out().starts_with("denied [Errno 6]"), "{}", said(&ended));
        // With a terminal to be had it is, which script(1) makes.
        let request = attack(&node, &["controlling_terminal"]);
        let control = Command::new("script")
            .args(["-qec", &request.argv.join(" "), "/dev/null"])
            .current_dir(&request.work_dir)
            .stdin(Stdio::null())
            .output();
        match control {
            Ok(output) => assert!(String::from_utf8_lossy(&output.stdout).contains("reached"), "{output:?}"),
            Err(error) => mesh_skip::skip(&format!("the control needs script(1): {error}")),
        }
    });
}

#[test]
fn no_service_of_the_host_is_reached() {
    as_everybody("attacks::no_service_of_the_host_is_reached", async |mut node: Node| {
        let service = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = service.local_addr().unwrap().port().to_string();
        show(&mut node, &["connect", &port], Without::Walls(&[Wall::Network])).await;
        let name = mark();
        let address =
            <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name);
        let _socket = std::os::unix::net::UnixListener::bind_addr(&address.unwrap()).unwrap();
        show(&mut node, &["abstract", &name], Without::Walls(&[Wall::Network, Wall::Landlock])).await;
        let path = node.dir.path().join("service");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        show(&mut node, &["local", path.to_str().unwrap()], Without::Walls(&[Wall::Tree, Wall::Landlock]))
            .await;
        // With the host's network the second wall still stands before sockets without a file.
        let with_network = StartRequest { network: Network::Host, ..attack(&node, &["abstract", &name]) };
        let ended = node.run(with_network).await;
        if landlock() < 6 {
            assert!(ended.out().contains("reached"), "the documents say so: {}", said(&ended));
            mesh_skip::skip("this kernel's Landlock (before Linux 6.12) cannot hold back such sockets");
        } else {
            assert!(ended.out().contains("denied"), "{}", said(&ended));
        }
    });
}

/// A number that the machine's owner has set for its kernel; 0 where there is none.
fn setting(name: &str) -> i64 {
    fs::read_to_string(format!("/proc/sys/kernel/{name}")).map_or(0, |text| text.trim().parse().unwrap())
}

/// The version of the kernel's Landlock; 0: there is none.
fn landlock() -> i32 {
    let ask = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))";
    let output = Command::new("/usr/bin/python3").args(["-c", ask]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().parse::<i32>().unwrap().max(0)
}

//! Attacks from inside a strict task. Each runs a small hostile program (`attacks.py`) three times over:
//! inside, where it must be denied; and without the walls that cover it, where it must succeed. Where
//! the task's uid itself is the wall, the second run is outside of any sandbox.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use agent::jail::{Bounds, ExitCause, Level, Mount, Network, Options, StartRequest, Wall};

use super::support::{Ended, Node, as_everybody, mark, processes, root, until, ways};

const PROGRAM: &str = include_str!("attacks.py");

/// How an attack succeeds.
#[derive(Clone, Copy, Debug)]
enum Without<'a> {
    /// In the sandbox, these walls taken away.
    Walls(&'a [Wall]),
    /// Outside, as the same user.
    Sandbox,
    /// Outside, as root in namespaces of its own; an ordinary user's run shows the denial alone.
    Power,
}

fn attack(node: &Node, args: &[&str]) -> StartRequest {
    let words = [&["/usr/bin/python3", "attack.py"], args].concat();
    let request = StartRequest { level: Level::Strict, ..node.request(&words) };
    fs::write(request.work_dir.join("attack.py"), PROGRAM).unwrap();
    request
}

/// Runs it outside of any sandbox, where nothing that it does lasts.
fn outside(request: &StartRequest, as_root: bool) -> String {
    let mut command = if as_root {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--mount-proc", "--ipc", "--net"]).args(&request.argv);
        command
    } else {
        let mut command = Command::new(&request.argv[0]);
        command.args(&request.argv[1..]);
        if let (Some(uid), Some(gid)) = (request.uid, request.gid) {
            command.uid(uid).gid(gid);
        }
        command
    };
    let output = command.current_dir(&request.work_dir).stdin(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn said(ended: &Ended) -> String {
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
        Without::Sandbox => outside(&attack(node, args), false),
        Without::Power if root() => outside(&attack(node, args), true),
        Without::Power => {
            super::support::needs_root(&format!("{args:?} needs root to succeed anywhere"));
            return;
        }
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
        show(&mut node, &["real_time"], Without::Power).await;
        show(&mut node, &["priority"], Without::Power).await;
    });
}

/// A process outside, of the task's user, with a secret in its environment.
fn neighbour(secret: &str) -> Child {
    let mut command = Command::new("/bin/sleep");
    command.arg("600").env("SECRET", secret).stdin(Stdio::null());
    if root() {
        let uid = super::support::task_uid();
        command.uid(uid).gid(uid);
    }
    command.spawn().unwrap()
}

#[test]
fn what_is_others_cannot_be_read() {
    as_everybody("attacks::what_is_others_cannot_be_read", async |mut node: Node| {
        let secret = mark();
        let mut neighbour = neighbour(&secret);
        let pid = neighbour.id().to_string();
        // Open to everybody: only the file tree stands before it.
        let key = node.dir.path().join("key.pem");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let other = node.shell("true").work_dir.join("file");
        fs::write(&other, "another task's").unwrap();
        let tree = Without::Walls(&[Wall::Tree, Wall::Landlock]);
        for path in [&key, &other] {
            show(&mut node, &["read", path.to_str().unwrap()], tree).await;
        }
        show(&mut node, &["environ", &pid], Without::Sandbox).await;
        show(&mut node, &["any_environ", &secret], Without::Sandbox).await;
        show(&mut node, &["kill", &pid], Without::Sandbox).await;
        show(&mut node, &["keeper"], Without::Power).await;
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
            "counters",
            "hypervisor",
            "asynchronous",
            "new_clone",
        ] {
            show(&mut node, &[name], filter).await;
        }
        // Under root the keeper is another user.
        show(&mut node, &["keeper_limits"], if root() { Without::Power } else { filter }).await;
        // Landlock forbids to change mounts whoever one is.
        for name in ["mount", "change_root", "enter_namespace"] {
            show(&mut node, &[name], Without::Walls(&[Wall::Seccomp, Wall::Landlock])).await;
        }
        for name in ["device", "by_handle", "programs_in_the_kernel", "memory_device"] {
            if name == "memory_device" && !Path::new("/dev/mem").exists() {
                mesh_skip::skip("this machine has no /dev/mem");
                continue;
            }
            show(&mut node, &[name], Without::Power).await;
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
fn setuid_programs_give_nothing_here_either() {
    as_everybody("attacks::setuid_programs_give_nothing_here_either", async |mut node: Node| {
        let make = |node: &Node| {
            let request = attack(node, &["setuid", "./id"]);
            let id = request.work_dir.join("id");
            fs::copy("/usr/bin/id", &id).unwrap();
            fs::set_permissions(&id, fs::Permissions::from_mode(0o6755)).unwrap();
            request
        };
        let ended = node.run(make(&node)).await;
        assert!(!ended.out().contains("reached"), "{}", said(&ended));
        if !root() {
            super::support::needs_root("only root can make a program of root");
            return;
        }
        let walls = [Wall::Tree, Wall::Capabilities, Wall::NoNewPrivileges, Wall::Landlock, Wall::Seccomp];
        let ended = node.run(StartRequest { without: walls.to_vec(), ..make(&node) }).await;
        assert!(ended.out().contains("reached 0"), "{}", said(&ended));
        // Any one of three walls is enough.
        for kept in [Wall::Tree, Wall::Capabilities, Wall::NoNewPrivileges] {
            let without = walls.iter().copied().filter(|wall| *wall != kept).collect();
            let ended = node.run(StartRequest { without, ..make(&node) }).await;
            assert!(!ended.out().contains("reached"), "{kept:?} alone: {}", said(&ended));
        }
    });
}

/// A copy of cat that brings the capability to read everything, and a file that is root's alone.
fn with_capability(dir: &Path) {
    let program = dir.join("cat");
    fs::copy("/bin/cat", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    // Version 2, effective, CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH permitted.
    let words = [0x0200_0001_u32, 0b110, 0, 0, 0];
    let value: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    rustix::fs::setxattr(&program, "security.capability", &value, rustix::fs::XattrFlags::empty()).unwrap();
    fs::write(dir.join("closed"), "root's alone").unwrap();
    fs::set_permissions(dir.join("closed"), fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn capabilities_of_files_give_nothing() {
    if !root() {
        super::support::needs_root("only root can give a file a capability");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut node = Node::new().await;
        let make = |node: &Node| {
            let request = attack(node, &["file_capability", "./cat", "closed"]);
            with_capability(&request.work_dir);
            request
        };
        let ended = node.run(make(&node)).await;
        assert!(!ended.out().contains("reached"), "{}", said(&ended));
        let walls = [Wall::Tree, Wall::Capabilities, Wall::NoNewPrivileges, Wall::Landlock, Wall::Seccomp];
        let ended = node.run(StartRequest { without: walls.to_vec(), ..make(&node) }).await;
        assert!(ended.out().contains("reached b\"root's alone\""), "{}", said(&ended));
        // Any one of three walls is enough.
        for kept in [Wall::Tree, Wall::Capabilities, Wall::NoNewPrivileges] {
            let without = walls.iter().copied().filter(|wall| *wall != kept).collect();
            let ended = node.run(StartRequest { without, ..make(&node) }).await;
            assert!(!ended.out().contains("reached"), "{kept:?} alone: {}", said(&ended));
        }
        // In a mount, whether it is to be written or not, and whoever its files are shown as.
        let data = tempfile::tempdir().unwrap();
        with_capability(data.path());
        let id = data.path().join("id");
        fs::copy("/usr/bin/id", &id).unwrap();
        fs::set_permissions(&id, fs::Permissions::from_mode(0o6755)).unwrap();
        fs::set_permissions(data.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for (read_only, owner, without) in [
            (true, None, vec![]),
            (false, None, vec![]),
            (false, None, vec![Wall::Capabilities, Wall::NoNewPrivileges, Wall::Seccomp, Wall::Landlock]),
            (false, Some((12_345, 12_345)), vec![]),
        ] {
            for words in [&["file_capability", "/data/cat", "/data/closed"][..], &["setuid", "/data/id"]] {
                let mounts = vec![Mount { source: data.path().into(), to: "/data".into(), read_only, owner }];
                let request = StartRequest { mounts, without: without.clone(), ..attack(&node, words) };
                let ended = node.run(request).await;
                assert!(!ended.out().contains("reached"), "{words:?} {owner:?}: {}", said(&ended));
            }
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

/// The version of the kernel's Landlock; 0: there is none.
fn landlock() -> i32 {
    let ask = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))";
    let output = Command::new("/usr/bin/python3").args(["-c", ask]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().parse::<i32>().unwrap().max(0)
}

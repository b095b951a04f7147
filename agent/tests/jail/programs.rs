//! Common programs in the strict sandbox and outside of any: the same output, the same exit status and
//! the same files, or a wall stands needlessly in the way. What this machine lacks is named and skipped.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use agent::jail::{Level, Network, StartRequest, Wall};

use super::support::{Node, as_everybody, ways};

/// One thing that tasks commonly do.
struct Program {
    does: &'static str,
    /// Programs that it needs besides a shell.
    needs: &'static [&'static str],
    /// Run by `/bin/bash -eu`, in an empty directory.
    script: &'static str,
}

/// A test for each, so that they run side by side and each is named.
macro_rules! programs {
    ($($test:ident: $program:expr,)*) => {
        $(
            #[test]
            fn $test() {
                as_everybody(concat!("programs::", stringify!($test)), async |node: Node| {
                    finds_no_wall_in_its_way(node, &$program).await;
                });
            }
        )*
    };
}

include!("programs.in");

/// How long each may take; outside it is ended then.
const LIMIT: Duration = Duration::from_secs(30);
/// The directories of programs, inside and outside.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

fn there(program: &str) -> bool {
    PATH.split(':').any(|dir| {
        fs::metadata(Path::new(dir).join(program)).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0)
    })
}

/// What a run left: its output, its status, and every file by its path with mode and content.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    stdout: String,
    status: String,
    files: BTreeMap<String, (u32, Vec<u8>)>,
}

fn files(dir: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(&at).unwrap().flatten() {
            let meta = fs::symlink_metadata(entry.path()).unwrap();
            let content = if meta.is_dir() {
                dirs.push(entry.path());
                Vec::new()
            } else if meta.is_symlink() {
                fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes()
            } else if meta.is_file() {
                fs::read(entry.path()).unwrap()
            } else {
                b"special".to_vec()
            };
            let path = entry.path().strip_prefix(dir).unwrap().to_string_lossy().into_owned();
            found.insert(path, (meta.permissions().mode(), content));
        }
    }
    found
}

fn request(node: &Node, program: &Program) -> StartRequest {
    let mut request = node.request(&["/bin/bash", "-eu", "-c", program.script]);
    request.level = Level::Strict;
    request.timeout = Some(LIMIT);
    request
}

async fn inside(node: &mut Node, program: &Program, without: Vec<Wall>) -> (Left, String) {
    let mut request = StartRequest { without, ..request(node, program) };
    request.env.push(("HOME".into(), "/work".into()));
    let work = request.work_dir.clone();
    let ended = node.run(request).await;
    let stdout = String::from_utf8_lossy(&ended.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
    (Left { stdout, status: format!("{:?}", ended.record.cause), files: files(&work) }, stderr)
}

/// The same as the same user, in a directory like that one, with nothing around it.
fn outside(node: &Node, program: &Program) -> (Left, String) {
    let request = request(node, program);
    let mut command = Command::new("/usr/bin/timeout");
    command
        .args(["--kill-after=1", &LIMIT.as_secs().to_string()])
        .args(&request.argv)
        .env_clear()
        .envs(request.env.iter().map(|(name, value)| (name, value)))
        .env("HOME", &request.work_dir)
        .current_dir(&request.work_dir)
        .stdin(Stdio::null());
    if let (Some(uid), Some(gid)) = (request.uid, request.gid) {
        command.uid(uid).gid(gid);
    }
    // Its own, or their names in /dev could not be opened.
    let ([mut stdout, mut stderr], [out, err]) = {
        let ((stdout, out), (stderr, err)) = (io::pipe().unwrap(), io::pipe().unwrap());
        for fd in [&out, &err] {
            std::os::unix::fs::fchown(fd, request.uid, request.gid).unwrap();
        }
        ([stdout, stderr], [out, err])
    };
    let mut child = command.stdout(out).stderr(err).spawn().unwrap();
    drop(command);
    let read = |pipe: &mut io::PipeReader| {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = std::thread::scope(|scope| {
        let stderr = scope.spawn(move || read(&mut stderr));
        (read(&mut stdout), stderr.join().unwrap())
    });
    let status = child.wait().unwrap();
    let status = match status.code() {
        Some(code) => format!("Exited({code})"),
        None => status.to_string(),
    };
    (Left { stdout, status, files: files(&request.work_dir) }, stderr)
}

async fn finds_no_wall_in_its_way(mut node: Node, program: &Program) {
    if let Some(missing) = program.needs.iter().find(|needed| !there(needed)) {
        mesh_skip::skip(&format!("{}: this machine has no {missing} in {PATH}", program.does));
        return;
    }
    let (without, said) = outside(&node, program);
    if without.status != "Exited(0)" {
        mesh_skip::skip(&format!("{}: does not run outside either: {said}", program.does));
        return;
    }
    // With every wall in place: one that is left away here may be the one that is in the way.
    for way in ways() {
        let (within, stderr) = inside(&mut node, program, way.clone()).await;
        let differs = |path: &&String| within.files.get(*path) != without.files.get(*path);
        let files: Vec<&String> = within.files.keys().chain(without.files.keys()).filter(differs).collect();
        assert!(
            within == without,
            "{}: inside {way:?} {} {:?}, outside {} {:?}, other files: {files:?}\n{stderr}",
            program.does,
            within.status,
            within.stdout,
            without.status,
            without.stdout
        );
        println!("alike: {}: {} bytes printed", program.does, within.stdout.len());
    }
}

#[test]
fn a_name_that_cannot_be_resolved_is_told_at_once() {
    as_everybody("programs::a_name_that_cannot_be_resolved_is_told_at_once", async |mut node: Node| {
        let script = "getent hosts mesh-name.example; echo $?; getent hosts localhost | grep -c localhost";
        let request = StartRequest { level: Level::Strict, ..node.shell(script) };
        let ended = node.run(request).await;
        assert_eq!(ended.out(), "2\n1\n", "{}", ended.err());
        assert!(ended.record.run_ms < 5_000, "it took {} ms", ended.record.run_ms);
        // With the host's network the host's resolver is found, wherever its settings really lie.
        let mut request = node.shell("cat /etc/resolv.conf; cat /etc/hosts");
        (request.level, request.network) = (Level::Strict, Network::Host);
        let ended = node.run(request).await;
        let [resolver, hosts] =
            ["/etc/resolv.conf", "/etc/hosts"].map(|file| fs::read_to_string(file).unwrap());
        assert_eq!(ended.out(), resolver + &hosts, "{}", ended.err());
    });
}

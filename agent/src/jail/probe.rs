//! What this machine can do for a task, each layer proved by doing it in a trial process.
//! Nothing is concluded from versions or settings: those only tell what to advise.

use std::{fs, io, path::Path};

use super::{
    keeper::{Trial, trial},
    plan::{Facts, Step},
    protocol::{Layer, Level, Probe},
    sys,
};

/// The uid and gid that a trial changes to: `nobody` on every Linux.
const NOBODY: u32 = 65534;

const USER_REMEDY: &str = "allow unprivileged user namespaces (sysctl user.max_user_namespaces, \
     kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), or run the agent as root";
const ROOT_REMEDY: &str =
    "give the agent CAP_SYS_ADMIN, or run it outside of the container that takes it away";

/// Tries every layer in `dir`, the jail's own directory.
pub fn probe(dir: &Path, facts: &Facts) -> io::Result<Probe> {
    let root = facts.uid == 0;
    let remedy = if root { ROOT_REMEDY } else { USER_REMEDY };
    let mut layers = Vec::new();
    let mut add = |name: &str, result: Result<(), Trial>, remedy: &str| {
        let remedy = match &result {
            Ok(()) => String::new(),
            Err(Trial::Fork(errno)) => format!("{remedy} ({})", io::Error::from(*errno)),
            Err(Trial::Step(what)) => format!("{remedy} ({what} failed)"),
            Err(Trial::Check) => format!("{remedy} (it has no effect here)"),
        };
        layers.push(Layer { name: name.to_owned(), present: result.is_ok(), remedy });
        result.is_ok()
    };

    add("no_new_privs", trial(0, &[Step::NoNewPrivileges], || true), "update the kernel");
    let mut first = Vec::new();
    let mut namespaces = 0;
    let mut basic = true;
    if root {
        let steps = [Step::ClearGroups, Step::Gid(NOBODY), Step::Uid(NOBODY), Step::DropCapabilities];
        let gone = || rustix::thread::set_thread_uid(rustix::process::Uid::ROOT).is_err();
        basic &= add("uid", trial(0, &steps, gone), "give the agent CAP_SETUID and CAP_SETGID");
    } else {
        namespaces = sys::NEW_USER;
        let map = |id: u32| std::ffi::CString::new(format!("{id} {id} 1\n"));
        first.push(Step::MapIds { uid_map: map(facts.uid)?, gid_map: map(facts.gid)? });
        let same = || rustix::process::getuid().as_raw() == facts.uid;
        basic &= add("user_namespace", trial(namespaces, &first, same), remedy);
    }
    namespaces |= sys::NEW_PID;
    basic &= add("pid_namespace", trial(namespaces, &first, || std::process::id() == 1), remedy);
    namespaces |= sys::NEW_MOUNT;
    first.push(Step::PrivateMounts);

    let mut proc = first.clone();
    proc.push(Step::OwnProc);
    let alone = || fs::read_link("/proc/self").is_ok_and(|pid| pid == Path::new("1"));
    let unmasked = "a container's masks over /proc keep a new one from being mounted: run the agent outside of it, or as root";
    basic &= add("own_proc", trial(namespaces, &proc, alone), if root { remedy } else { unmasked });
    basic &= add("hidden_files", hide(dir, namespaces, first)?, remedy);

    let strongest = if basic { Level::Basic } else { Level::None };
    Ok(Probe { strongest, layers })
}

/// Covers a directory with a secret and a work directory in it: only the second may be seen.
fn hide(dir: &Path, namespaces: u64, mut steps: Vec<Step>) -> io::Result<Result<(), Trial>> {
    let outer = dir.join("probe");
    let work = outer.join("work");
    let secret = outer.join("secret");
    fs::create_dir_all(&work)?;
    fs::write(&secret, "secret")?;
    fs::write(work.join("file"), "file")?;
    let c = |path: &Path| std::ffi::CString::new(path.as_os_str().as_encoded_bytes());
    steps.extend([
        Step::Hold(c(&work)?),
        Step::Cover(c(&outer)?),
        Step::MakeDir(c(&work)?),
        Step::Seal(c(&outer)?),
        Step::Restore(c(&work)?),
    ]);
    let result = trial(namespaces, &steps, || {
        fs::metadata(&secret).is_err()
            && fs::write(outer.join("new"), "new").is_err()
            && fs::read(work.join("file")).is_ok_and(|text| text == b"file")
    });
    fs::remove_dir_all(&outer)?;
    Ok(result)
}

//! Where systemd runs the machine, the jail starts in a scope: a unit of its own, with a control
//! group that is its to divide.
//!
//! Two things rest on it. In control groups of version 2 no process may be in a group that is
//! divided, so systemd could not start the agent's unit again while the tasks of the last start
//! divide that unit's group. And the tasks are no longer part of whatever the agent was started
//! from: its unit, a login. An ordinary user's own systemd gives limits that need no root.
//!
//! May enter: how the scope is asked for. Not here: what is done with the group (`cgroup`).

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// The words to put before a command so that it runs in a scope of its own; none where no systemd
/// would give one. `runtime` is the user's runtime directory, none for root.
pub fn prefix(root: &Path, runtime: Option<&Path>, pid: u32, dir: &Path) -> Option<Vec<OsString>> {
    let running = match runtime {
        // `sd_booted(3)`.
        None => root.join("run/systemd/system").is_dir(),
        Some(runtime) => runtime.join("systemd/private").exists(),
    };
    if !running {
        return None;
    }
    let mut words: Vec<OsString> = vec!["systemd-run".into()];
    words.extend(runtime.map(|_| "--user".into()));
    words.extend(["--scope", "--quiet", "--collect", "--property=Delegate=yes"].map(Into::into));
    words.push("--property=TasksMax=infinity".into());
    words.push(format!("--unit=mesh-tasks-{pid}-{}", super::clock::boot().as_millis()).into());
    let mut description = OsString::from("--description=Planetary Mesh tasks of ");
    description.push(dir.parent().unwrap_or(dir));
    words.extend([description, "--".into()]);
    Some(words)
}

/// The runtime directory of an ordinary user; none for root, and none without one.
pub fn runtime_dir() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::prefix;

    fn words(root: &std::path::Path, runtime: Option<&std::path::Path>) -> Option<String> {
        let words = prefix(root, runtime, 7, "/var/lib/mesh/agent/jail".as_ref())?;
        Some(words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_machine_without_systemd_gives_no_scope() {
        let machine = tempfile::tempdir().unwrap();
        assert_eq!(words(machine.path(), None), None);
        assert_eq!(words(machine.path(), Some(machine.path())), None);
    }

    #[test]
    fn a_scope_is_delegated_and_named_after_its_directory() {
        let machine = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(machine.path().join("run/systemd/system")).unwrap();
        let words = words(machine.path(), None).unwrap();
        assert!(
            words.starts_with("systemd-run --scope --quiet --collect --property=Delegate=yes"),
            "{words}"
        );
        assert!(words.contains(" --unit=mesh-tasks-7-"), "{words}");
        assert!(words.ends_with("tasks of /var/lib/mesh/agent --"), "{words}");
    }

    #[test]
    fn an_ordinary_user_asks_their_own_systemd() {
        let runtime = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(runtime.path().join("systemd")).unwrap();
        std::fs::write(runtime.path().join("systemd/private"), "").unwrap();
        let words = words("/".as_ref(), Some(runtime.path())).unwrap();
        assert!(words.starts_with("systemd-run --user --scope"), "{words}");
    }
}

//! Where in a task's file tree a mount may stand: known to whoever checks a job and to whoever runs it.

/// Directories of the tree that are the system's or the task's own.
const TAKEN: [&str; 18] = [
    "bin", "dev", "etc", "gnu", "lib", "lib32", "lib64", "libx32", "nix", "opt", "proc", "run", "sbin",
    "sys", "tmp", "usr", "var", "work",
];

/// The most mounts of a task.
pub const MAX_MOUNTS: usize = 64;

/// Why a mount cannot stand somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    #[error("is no absolute path without `.` and `..`")]
    Path,
    #[error("lies in a directory that every task has; /data or /mnt/data would do")]
    Taken,
    #[error("lies in another mount, or another one in it")]
    Nested,
}

/// Whether a mount may stand at `to`, beside those that stand at `others`.
pub fn check_place<'a>(to: &str, others: impl IntoIterator<Item = &'a str>) -> Result<(), PlaceError> {
    let path = to.strip_prefix('/').ok_or(PlaceError::Path)?;
    if to.len() > crate::names::MAX_PATH || to.contains('\0') {
        return Err(PlaceError::Path);
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(PlaceError::Path);
    }
    if path.split('/').next().is_some_and(|first| TAKEN.contains(&first)) {
        return Err(PlaceError::Taken);
    }
    let within = |inner: &str, outer: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if others.into_iter().any(|other| within(to, other) || within(other, to)) {
        return Err(PlaceError::Nested);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_needs_a_place_of_its_own() {
        for to in ["/data", "/mnt/a b", "/home/x/.cache", "/works", "/usr2"] {
            assert_eq!(check_place(to, []), Ok(()), "{to}");
        }
        for to in ["", "/", "data", "/data/", "//data", "/a/../etc", "/./a", "/a\0"] {
            assert_eq!(check_place(to, []), Err(PlaceError::Path), "{to:?}");
        }
        for to in ["/usr", "/etc/x", "/work/data", "/proc/1", "/dev/shm", "/tmp"] {
            assert_eq!(check_place(to, []), Err(PlaceError::Taken), "{to}");
        }
        for (to, other) in [("/a", "/a"), ("/a/b", "/a"), ("/a", "/a/b")] {
            assert_eq!(check_place(to, [other]), Err(PlaceError::Nested), "{to} {other}");
        }
        assert_eq!(check_place("/ab", ["/a"]), Ok(()));
    }
}

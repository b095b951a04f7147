//! What of this machine a strict task gets to see: looked up when the jail starts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::plan::System;

/// Directories with programs, libraries and settings, where they exist.
const DIRECTORIES: [&str; 13] = [
    "/usr",
    "/etc",
    "/opt",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix",
    "/gnu",
    // How many processors there are and how they hang together.
    "/sys/devices/system",
    // Without it a program that writes letters reads every font anew, and leaves a cache in the work
    // directory.
    "/var/cache/fontconfig",
];
/// Nothing, zeros, a full disk, chance, and whatever terminal a process has made its own.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];
/// Where the resolver's servers are written; often a link to a place that a daemon keeps.
const RESOLVER: &str = "/etc/resolv.conf";

/// Looks.
pub fn look() -> System {
    let mut system = System {
        devices: DEVICES.into_iter().map(PathBuf::from).filter(|path| path.exists()).collect(),
        ..System::default()
    };
    for path in DIRECTORIES.map(PathBuf::from) {
        match fs::read_link(&path) {
            Ok(target) => system.links.push((path, target)),
            Err(_) if path.is_dir() => system.directories.push(path),
            Err(_) => {}
        }
    }
    if let Ok(file) = fs::canonicalize(RESOLVER)
        && let Some(dir) = file.parent()
        && dir.starts_with("/run")
        && dir != Path::new("/run")
    {
        system.resolver.push(dir.to_owned());
    }
    system
}

//! Finds the installed Postgres server binaries and picks one version of them.

use std::path::{Path, PathBuf};

use super::OLDEST_MAJOR;
use super::error::PostgresError;
use super::launch;
use super::owner::Owner;

/// The server binaries of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries {
    pub dir: PathBuf,
    pub major: u32,
}

/// Which version is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted<'a> {
    /// A new cluster: the named directory, else the highest version.
    New,
    /// The cluster in this directory was made by this major version; no other can open it.
    Major(u32, &'a Path),
}

const NEEDED: [&str; 3] = ["postgres", "initdb", "pg_ctl"];

/// Finds the binaries. `named` is `--pg-bin-dir`.
pub(super) async fn find(
    named: Option<&Path>,
    wanted: Wanted<'_>,
    owner: &Owner,
) -> Result<Binaries, PostgresError> {
    let mut found = Vec::new();
    if let Some(dir) = named {
        let binaries = probe(dir, owner).await.ok_or_else(|| PostgresError::BinDir(dir.to_owned()))?;
        match wanted {
            Wanted::New => return recent(binaries),
            Wanted::Major(..) => found.push(binaries),
        }
    }
    for dir in installed() {
        found.extend(probe(&dir, owner).await);
    }
    pick(found, wanted)
}

fn pick(found: Vec<Binaries>, wanted: Wanted<'_>) -> Result<Binaries, PostgresError> {
    match wanted {
        Wanted::New => {
            // The first of equals: package directories come before PATH.
            let best = found.into_iter().rev().max_by_key(|binaries| binaries.major);
            recent(best.ok_or_else(|| PostgresError::NotInstalled { install: install(None) })?)
        }
        Wanted::Major(major, dir) => {
            found.into_iter().find(|binaries| binaries.major == major).ok_or_else(|| {
                PostgresError::MajorGone { major, dir: dir.to_owned(), install: install(Some(major)) }
            })
        }
    }
}

fn recent(binaries: Binaries) -> Result<Binaries, PostgresError> {
    if binaries.major >= OLDEST_MAJOR {
        return Ok(binaries);
    }
    Err(PostgresError::TooOld {
        found: binaries.major,
        dir: binaries.dir,
        oldest: OLDEST_MAJOR,
        install: install(None),
    })
}

/// The directories where packages put server binaries, and PATH.
fn installed() -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for entry in std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
        dirs.push(entry.path().join("bin"));
    }
    for entry in std::fs::read_dir("/usr").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("pgsql-") {
            dirs.push(entry.path().join("bin"));
        }
    }
    if let Some(path) = std::env::var_os("PATH") {
        // A relative entry would mean another directory than the one that was probed.
        dirs.extend(std::env::split_paths(&path).filter(|dir| dir.is_absolute()));
    }
    dirs.retain(|dir| NEEDED.iter().all(|name| dir.join(name).is_file()));
    dirs
}

/// The binaries in one directory, when they are there and tell their version.
async fn probe(dir: &Path, owner: &Owner) -> Option<Binaries> {
    if !NEEDED.iter().all(|name| dir.join(name).is_file()) {
        return None;
    }
    let mut command = launch::command(&dir.join("postgres"), owner);
    command.arg("--version");
    let output = launch::output(command, launch::SHORT).await.ok()?;
    let major = parse_version(&String::from_utf8_lossy(&output.stdout))?;
    Some(Binaries { dir: dir.to_owned(), major })
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` is 15, `… 18beta1` is 18.
fn parse_version(text: &str) -> Option<u32> {
    let version = text.split("(PostgreSQL)").nth(1)?.trim_start();
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

/// The command that installs Postgres here.
fn install(major: Option<u32>) -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    install_on(&release, major)
}

fn install_on(os_release: &str, major: Option<u32>) -> String {
    let families: Vec<&str> = os_release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
        .flat_map(|value| value.trim_matches('"').split_whitespace())
        .collect();
    let is = |names: &[&str]| names.iter().any(|name| families.contains(name));
    if is(&["debian", "ubuntu"]) {
        let package = major.map_or_else(|| "postgresql".to_owned(), |major| format!("postgresql-{major}"));
        format!("apt-get install {package}")
    } else if is(&["fedora", "rhel", "centos"]) {
        let package =
            major.map_or_else(|| "postgresql-server".to_owned(), |major| format!("postgresql{major}-server"));
        format!("dnf install {package}")
    } else {
        let version = major.map_or_else(String::new, |major| format!(" {major}"));
        format!("your system's package of the PostgreSQL{version} server")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binaries(dir: &str, major: u32) -> Binaries {
        Binaries { dir: dir.into(), major }
    }

    #[test]
    fn versions_are_read_as_packages_print_them() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_version("postgres (PostgreSQL) 9.6.24\n"), Some(9));
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn a_new_cluster_takes_the_highest_and_an_old_one_its_own() {
        let found = vec![binaries("/a", 15), binaries("/b", 17), binaries("/c", 17), binaries("/d", 16)];
        assert_eq!(pick(found.clone(), Wanted::New).unwrap(), binaries("/b", 17));
        let of = |major| pick(found.clone(), Wanted::Major(major, Path::new("/data")));
        assert_eq!(of(15).unwrap(), binaries("/a", 15));
        let gone = of(14).unwrap_err().to_string();
        assert!(gone.contains("/data") && gone.contains("Postgres 14"), "{gone}");
    }

    #[test]
    fn a_version_that_is_too_old_is_refused_by_name() {
        let error = pick(vec![binaries("/old", 13)], Wanted::New).unwrap_err().to_string();
        assert!(error.contains("version 13, in /old, but at least 14"), "{error}");
    }

    #[test]
    fn the_remedy_is_the_command_of_the_distribution() {
        assert_eq!(install_on("ID=debian\n", None), "apt-get install postgresql");
        assert_eq!(
            install_on("NAME=x\nID=mint\nID_LIKE=\"ubuntu debian\"\n", Some(15)),
            "apt-get install postgresql-15"
        );
        assert_eq!(install_on("ID=fedora\n", None), "dnf install postgresql-server");
        assert_eq!(install_on("", Some(16)), "your system's package of the PostgreSQL 16 server");
    }

    #[tokio::test]
    async fn a_named_directory_without_binaries_is_an_error_and_not_passed_over() {
        let empty = tempfile::tempdir().unwrap();
        let owner = Owner::find(&empty.path().join("postgres")).unwrap();
        let error = find(Some(empty.path()), Wanted::New, &owner).await.unwrap_err();
        assert!(matches!(error, PostgresError::BinDir(_)), "{error}");
    }
}

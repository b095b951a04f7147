//! How a test says that it, or a part of it, was skipped: a test runner shows such a test as passed.
//! May enter: nothing that a test could do by itself.

#![forbid(unsafe_code)]

use std::{env, fs::File, io::Write as _, thread};

/// Names the file that skips are told in; `scripts/test` sets it, and prints the file at its end.
pub const FILE: &str = "MESH_TEST_SKIPS";
/// How the line begins that is printed.
pub const MARK: &str = "skipped: ";

/// Says why the test that this thread runs, or a part of it, was not done here.
///
/// # Panics
/// When the file cannot be written: a skip that nobody hears of is what this is against.
pub fn skip(why: &str) {
    println!("{MARK}{why}");
    let Some(path) = env::var_os(FILE) else { return };
    // In one write, for tests of other processes append to it as well.
    let line = format!("{}: {}\n", name(), why.replace('\n', " "));
    let file = File::options().create(true).append(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    assert!(written.is_ok(), "cannot write {}: {written:?}", path.display());
}

/// The test's name: that of its thread, or what was asked for when it runs in the first one.
fn name() -> String {
    let thread = thread::current();
    let asked = || env::args().skip(1).find(|arg| !arg.starts_with('-'));
    match thread.name() {
        Some(name) if name != "main" => name.to_owned(),
        _ => asked().unwrap_or_else(|| "a test".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    /// Run by the test below in a process of its own, for the variable is the process's.
    #[test]
    fn says_why() {
        if env::var_os("MESH_TEST_SKIPPING").is_some() {
            skip("nothing of the kind\nis here");
        }
    }

    #[test]
    fn a_skip_is_printed_and_appended_with_the_name_of_its_test() {
        let file = env::temp_dir().join(format!("mesh-skips-{}", std::process::id()));
        for _ in 0..2 {
            let run = Command::new(env::current_exe().unwrap())
                .args(["--exact", "tests::says_why", "--nocapture"])
                .env("MESH_TEST_SKIPPING", "1")
                .env(FILE, &file)
                .output()
                .unwrap();
            assert!(run.status.success());
            assert!(String::from_utf8_lossy(&run.stdout).contains("skipped: nothing of the kind"));
        }
        let told = fs::read_to_string(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(told, "tests::says_why: nothing of the kind is here\n".repeat(2));
    }
}

//! Wall clocks are set, by hand and by others, and decide nothing: leases, deadlines and waits are
//! measured on clocks that nobody sets. This test reads the sources of the rooms that decide.

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, below `src`.
const ROOMS: [&str; 9] = [
    "session.rs",
    "attempts",
    "jail",
    "jailer.rs",
    "hub.rs",
    "runner.rs",
    "seen.rs",
    "records.rs",
    "backoff.rs",
];
/// What reads a wall clock.
const READS: [&str; 5] = ["SystemTime", "UNIX_EPOCH", "Utc::now", "Local::now", "ClockId::Realtime"];
/// The stamp of the jail's own log.
const LOG: &str = "let stamp = chrono::Utc::now()";
/// The daemon's and the jail's stamps.
const STAMPS: [&str; 2] = ["wall_ms()", "unix_ms()"];
/// What makes a decision of a stamp.
const DECIDES: [&str; 6] = [" - ", "sub(", " < ", " > ", "<=", ">="];

fn sources(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            sources(&entry.unwrap().path(), files);
        }
    } else if path.extension().is_some_and(|kind| kind == "rs") {
        files.push(path.to_owned());
    }
}

fn faults(source: &str) -> Vec<String> {
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    let bad = |line: &&str| {
        let reads = READS.iter().any(|word| line.contains(word)) && !line.contains(LOG);
        let stamped = STAMPS.iter().any(|word| line.contains(word));
        reads || stamped && DECIDES.iter().any(|word| line.contains(word))
    };
    code.filter(bad).map(str::to_owned).collect()
}

#[test]
fn no_wall_clock_decides() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    for room in ROOMS {
        assert!(src.join(room).exists(), "{room} moved");
        sources(&src.join(room), &mut files);
    }
    for file in files {
        assert_eq!(faults(&fs::read_to_string(&file).unwrap()), [""; 0], "{}", file.display());
    }
}

#[test]
fn a_decision_by_the_wall_clock_is_caught() {
    for line in
        ["if SystemTime::now() > end {", "let left = end - unix_ms();", "clock::wall_ms() >= self.lease"]
    {
        assert!(!faults(line).is_empty(), "not caught: {line}");
    }
    assert!(faults("began_ms: clock::wall_ms(),").is_empty());
}

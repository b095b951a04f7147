//! Reads `$MESH_PROGRESS`: the last line that a task wrote there, such as `40 resizing`.
//!
//! The task owns the file and may put anything in its place: it is opened beneath the work
//! directory, through no link, without waiting, and only its last bytes are read.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use mesh_proto::v1::Progress;

use crate::beneath::Root;
use crate::stage::PROGRESS;

/// Bytes at the file's end that are looked at.
const TAIL: u64 = 4096;
/// The longest message, in bytes.
const MAX_MESSAGE: usize = 200;

/// Watches one attempt's progress file.
#[derive(Debug)]
pub struct Watcher {
    work_dir: PathBuf,
    /// Length and time of change when it was last read.
    seen: (i64, i64, u64),
    last: Option<Progress>,
}

impl Watcher {
    pub fn new(work_dir: PathBuf) -> Self {
        Self { work_dir, seen: (0, 0, 0), last: None }
    }

    /// The progress, when it changed since the last look.
    pub fn look(&mut self) -> Option<Progress> {
        let (file, stat) = Root::open(&self.work_dir, None).ok()?.read(PROGRESS).ok()?;
        let now = (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
        if now == self.seen || stat.st_size == 0 {
            return None;
        }
        self.seen = now;
        let size = stat.st_size as u64;
        let mut tail = vec![0; size.min(TAIL) as usize];
        let read = file.read_at(&mut tail, size.saturating_sub(TAIL)).ok()?;
        let progress = parse(&String::from_utf8_lossy(&tail[..read]))?;
        if self.last.as_ref() == Some(&progress) {
            return None;
        }
        self.last = Some(progress.clone());
        Some(progress)
    }
}

/// The last line that begins with a number from 0 to 100; a fraction is cut off.
fn parse(text: &str) -> Option<Progress> {
    text.lines().rev().find_map(|line| {
        let line = line.trim();
        let (number, message) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let percent: f64 = number.trim_end_matches('%').parse().ok()?;
        if !(0.0..=100.0).contains(&percent) {
            return None;
        }
        let mut message = message.trim().to_owned();
        while message.len() > MAX_MESSAGE {
            message.pop();
        }
        Some(Progress { percent: percent as u32, message })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<(u32, String)> {
        parse(text).map(|progress| (progress.percent, progress.message))
    }

    #[test]
    fn the_last_line_that_says_something_counts() {
        assert_eq!(of("40 resizing"), Some((40, "resizing".into())));
        assert_eq!(of("1 a\n2 b\n"), Some((2, "b".into())));
        assert_eq!(of("7\n"), Some((7, String::new())));
        assert_eq!(of("99.9% nearly there\n"), Some((99, "nearly there".into())));
        assert_eq!(of("50 half\nnonsense\n"), Some((50, "half".into())));
        for bad in ["", "hello", "-1 x", "101 x", "NaN x", "inf"] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
        assert_eq!(of(&format!("1 {}", "ü".repeat(500))).unwrap().1, "ü".repeat(100));
    }

    #[test]
    fn only_changes_are_told_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".mesh")).unwrap();
        let path = dir.path().join(PROGRESS);
        let mut watcher = Watcher::new(dir.path().to_owned());
        assert_eq!(watcher.look(), None);
        std::fs::write(&path, "10 a\n").unwrap();
        assert_eq!(watcher.look().unwrap().percent, 10);
        assert_eq!(watcher.look(), None);
        std::fs::write(&path, "20 bb\n").unwrap();
        assert_eq!(watcher.look().unwrap().percent, 20);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(dir.path().join("other"), "90 x\n").unwrap();
        std::os::unix::fs::symlink("../other", &path).unwrap();
        assert_eq!(watcher.look(), None);
    }
}

//! Finds the promised outputs in a work directory after its task has ended: which files there
//! are and what they hold. Symbolic links, FIFOs and devices are refused by name; what a task may leave
//! is bounded, and so is the time that it takes to go through it.
//!
//! May enter: looking and hashing. Sending is `blobs/`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use globset::{GlobBuilder, GlobMatcher};
use mesh_proto::digest::{Digest, Hasher};
use mesh_proto::names::{MAX_PATH, check_path, escape};
use mesh_proto::v1::FileEntry;

use crate::beneath::{Kind, Root};
use crate::stage::AREA;

/// Entries that a glob may have to look at.
const MAX_SEARCHED: usize = 200_000;

/// How long it may take to find and read the outputs when they take no room on disk: holes in files and
/// endless trees give no more time. What is there to be read does, as a slow disk needs it.
const PATIENCE: Duration = Duration::from_secs(30);
const BYTES_A_SECOND: u64 = 4 << 20;
const EACH_FILE: Duration = Duration::from_millis(20);
/// The unit of a file's blocks, in bytes.
const BLOCK: u64 = 512;

/// Why outputs cannot be collected. The first kinds are the task's fault, the last the node's.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    #[error("output `{0}` was promised and is not there")]
    Missing(String),
    #[error("output `{0}` is a symbolic link; only files and directories are collected")]
    Link(String),
    #[error("output `{0}` is a FIFO, a socket or a device; only files and directories are collected")]
    Special(String),
    #[error("the name of output `{0}` is not valid UTF-8 or too long")]
    Name(String),
    #[error("output `{0}` belongs to another user")]
    Foreign(String),
    #[error("more than {0} files in the outputs")]
    TooMany(usize),
    #[error("the outputs hold more than {0} bytes")]
    TooLarge(u64),
    #[error("more than {MAX_SEARCHED} files to search for `{0}`")]
    TooManySearched(String),
    #[error(
        "the outputs could not be gone through in {} s, at `{at}`: they are too many files or directories, \
         or files of holes", .after.as_secs()
    )]
    TooSlow { at: String, after: Duration },
    #[error("output `{0}` is no usable path or glob")]
    Pattern(String),
    #[error("output `{path}` cannot be read: {source}")]
    Read { path: String, source: io::Error },
    #[error("the work directory cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// How much is collected at the most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub files: usize,
    pub bytes: u64,
    /// Only files of this user count as the task's; none: everything does.
    pub uid: Option<u32>,
    /// How long to go through what takes no room on disk; usually [`Bounds::PATIENCE`].
    pub patience: Duration,
}

impl Bounds {
    pub const PATIENCE: Duration = PATIENCE;
}

/// Whether an output is named by a glob.
pub fn is_glob(output: &str) -> bool {
    output.contains(['*', '?', '[', '{'])
}

/// Every file that `outputs` promise, hashed, in order of path.
pub fn collect(root: &Root, outputs: &[String], bounds: Bounds) -> Result<Vec<FileEntry>, CollectError> {
    let clock = Clock { began: Instant::now(), allowed: bounds.patience };
    let mut collector =
        Collector { root, bounds, clock, found: BTreeMap::new(), bytes: 0, searched: 0, matched: false };
    for output in outputs {
        if is_glob(output) {
            collector.glob(output)?;
        } else {
            collector.path(output)?;
        }
    }
    let mut entries = Vec::with_capacity(collector.found.len());
    for (path, kind) in std::mem::take(&mut collector.found) {
        entries.push(match kind {
            Kind::Directory => FileEntry { path, directory: true, ..FileEntry::default() },
            Kind::File | Kind::Symlink | Kind::Special => collector.hash(path)?,
        });
    }
    Ok(entries)
}

/// How long it has taken and may take.
#[derive(Clone, Copy)]
struct Clock {
    began: Instant,
    allowed: Duration,
}

impl Clock {
    /// The path is where one is now.
    fn check(&self, at: &str) -> Result<(), CollectError> {
        if self.began.elapsed() > self.allowed {
            return Err(CollectError::TooSlow { at: escape(at), after: self.allowed });
        }
        Ok(())
    }

    /// There is a file with this much on disk to read.
    fn grant(&mut self, bytes: u64) {
        if bytes > 0 {
            let reading = Duration::from_millis(bytes.saturating_mul(1000) / BYTES_A_SECOND);
            self.allowed = self.allowed.saturating_add(reading).saturating_add(EACH_FILE);
        }
    }
}

struct Collector<'a> {
    root: &'a Root,
    bounds: Bounds,
    clock: Clock,
    /// Files, and directories with nothing in them.
    found: BTreeMap<String, Kind>,
    bytes: u64,
    searched: usize,
    /// The glob that is looked for stands for something.
    matched: bool,
}

impl Collector<'_> {
    fn path(&mut self, output: &str) -> Result<(), CollectError> {
        check_path(output).map_err(|_| CollectError::Pattern(escape(output)))?;
        let path = output.trim_end_matches('/');
        let missing = || CollectError::Missing(escape(output));
        // A link on the way there is as good as nothing there.
        let (kind, size) = self.root.look(path).map_err(|_| missing())?.ok_or_else(missing)?;
        if output.ends_with('/') && kind == Kind::File {
            return Err(missing());
        }
        self.take(path, kind, size)
    }

    fn take(&mut self, path: &str, kind: Kind, size: u64) -> Result<(), CollectError> {
        match kind {
            Kind::Symlink => Err(CollectError::Link(escape(path))),
            Kind::Special => Err(CollectError::Special(escape(path))),
            Kind::File => {
                self.bytes = self.bytes.saturating_add(size);
                if self.bytes > self.bounds.bytes {
                    return Err(CollectError::TooLarge(self.bounds.bytes));
                }
                self.add(path, kind)
            }
            Kind::Directory => {
                let items = self.list(path)?;
                if items.is_empty() {
                    return self.add(path, kind);
                }
                for (path, kind, size) in items {
                    self.take(&path, kind, size)?;
                }
                Ok(())
            }
        }
    }

    fn add(&mut self, path: &str, kind: Kind) -> Result<(), CollectError> {
        self.found.insert(path.to_owned(), kind);
        if self.found.len() > self.bounds.files {
            return Err(CollectError::TooMany(self.bounds.files));
        }
        Ok(())
    }

    fn list(&self, dir: &str) -> Result<Vec<(String, Kind, u64)>, CollectError> {
        self.clock.check(dir)?;
        let items = self.root.list(dir, MAX_SEARCHED).map_err(|source| match source.kind() {
            io::ErrorKind::FileTooLarge => CollectError::TooMany(self.bounds.files),
            _ => CollectError::Read { path: escape(dir), source },
        })?;
        let path = |name: &[u8]| {
            let lossy = || escape(&String::from_utf8_lossy(name));
            let name = std::str::from_utf8(name).map_err(|_| CollectError::Name(lossy()))?;
            let path = if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
            if path.len() > MAX_PATH { Err(CollectError::Name(lossy())) } else { Ok(path) }
        };
        items.into_iter().map(|item| Ok((path(&item.name)?, item.kind, item.size))).collect()
    }

    fn glob(&mut self, output: &str) -> Result<(), CollectError> {
        let built = GlobBuilder::new(output.trim_end_matches('/')).literal_separator(true).build();
        let matcher = built.map_err(|_| CollectError::Pattern(escape(output)))?.compile_matcher();
        self.matched = false;
        // The names before the first special character need no search.
        let fixed = output.find(['*', '?', '[', '{']).unwrap_or(0);
        let start = output[..fixed].rsplit_once('/').map_or("", |(dir, _)| dir);
        if self.root.look(start).ok().flatten().is_some_and(|(kind, _)| kind == Kind::Directory)
            || start.is_empty()
        {
            self.search(start, &matcher, output)?;
        }
        if !self.matched {
            return Err(CollectError::Missing(escape(output)));
        }
        Ok(())
    }

    fn search(&mut self, dir: &str, matcher: &GlobMatcher, output: &str) -> Result<(), CollectError> {
        for (path, kind, size) in self.list(dir)? {
            self.searched += 1;
            if self.searched > MAX_SEARCHED {
                return Err(CollectError::TooManySearched(escape(output)));
            }
            // The agent's own files are no output, and inputs only when they are named.
            if path == AREA || (path == "inputs" && !output.starts_with("inputs/")) {
                continue;
            }
            if matcher.is_match(&path) {
                self.matched = true;
                self.take(&path, kind, size)?;
            } else if kind == Kind::Directory {
                self.search(&path, matcher, output)?;
            }
        }
        Ok(())
    }

    fn hash(&mut self, path: String) -> Result<FileEntry, CollectError> {
        let wrong = |source| CollectError::Read { path: escape(&path), source };
        let (mut file, stat) = self.root.read(&path).map_err(wrong)?;
        // Without this a hard link to a file that the task itself may not read would be read for it.
        if self.bounds.uid.is_some_and(|uid| stat.st_uid != uid) {
            return Err(CollectError::Foreign(escape(&path)));
        }
        let blocks = file.metadata().map_err(wrong)?.blocks();
        self.clock.grant(blocks.saturating_mul(BLOCK).min(stat.st_size.unsigned_abs()));
        let (digest, size) = read(&mut file, || self.clock.check(&path), wrong)?;
        let executable = stat.st_mode & 0o100 != 0;
        Ok(FileEntry { path, digest: digest.to_vec(), size, executable, directory: false })
    }
}

/// Digest and length of a file from where it stands to its end.
pub fn digest(file: &mut File) -> io::Result<(Digest, u64)> {
    read(file, || Ok(()), |error| error)
}

/// The same, as long as `go_on` says after each piece.
fn read<E>(
    file: &mut File,
    go_on: impl Fn() -> Result<(), E>,
    wrong: impl Fn(io::Error) -> E,
) -> Result<(Digest, u64), E> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 128 * 1024];
    let mut size = 0;
    loop {
        let n = file.read(&mut buffer).map_err(&wrong)?;
        if n == 0 {
            return Ok((hasher.finish(), size));
        }
        go_on()?;
        hasher.update(&buffer[..n]);
        size += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    const BOUNDS: Bounds = Bounds { files: 100, bytes: 1 << 20, uid: None, patience: Bounds::PATIENCE };

    fn tree(dir: &Path) {
        fs::create_dir_all(dir.join("out/deep/empty")).unwrap();
        fs::create_dir_all(dir.join("inputs")).unwrap();
        fs::create_dir_all(dir.join(".mesh")).unwrap();
        for (path, text) in [
            ("out/a.txt", "a"),
            ("out/deep/b\n.txt", "b"),
            ("top.png", "p"),
            ("inputs/i.png", "i"),
            (".mesh/progress", "1"),
        ] {
            fs::write(dir.join(path), text).unwrap();
        }
    }

    fn names(dir: &Path, outputs: &[&str], bounds: Bounds) -> Result<Vec<String>, String> {
        let outputs: Vec<String> = outputs.iter().map(ToString::to_string).collect();
        let root = Root::open(dir, None).unwrap();
        let entries = collect(&root, &outputs, bounds).map_err(|error| error.to_string())?;
        Ok(entries.into_iter().map(|entry| entry.path).collect())
    }

    #[test]
    fn files_directories_and_globs_are_found_once_each() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path());
        let go = |outputs: &[&str]| names(dir.path(), outputs, BOUNDS).unwrap();
        assert_eq!(go(&["out/"]), ["out/a.txt", "out/deep/b\n.txt", "out/deep/empty"]);
        assert_eq!(go(&["out", "out/a.txt", "out/*.txt"]), go(&["out/"]));
        assert_eq!(go(&["*.png"]), ["top.png"]);
        assert_eq!(go(&["**/*.png"]), ["top.png"], "inputs are no outputs");
        assert_eq!(go(&["inputs/*.png"]), ["inputs/i.png"]);
        assert_eq!(go(&["out/d*"]), ["out/deep/b\n.txt", "out/deep/empty"]);
        assert_eq!(go(&["*/*.txt"]), ["out/a.txt"]);
        assert_eq!(go(&["out/", "out/d*"]), go(&["out/"]), "named twice is there all the same");
    }

    #[test]
    fn what_each_file_holds_is_told() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path());
        let root = Root::open(dir.path(), None).unwrap();
        let entries = collect(&root, &["top.png".to_owned()], BOUNDS).unwrap();
        assert_eq!((entries[0].size, &entries[0].digest), (1, &Digest::of(b"p").to_vec()));
        assert!(!entries[0].executable && !entries[0].directory);
    }

    #[test]
    fn a_missing_output_is_named() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path());
        for output in ["nope", "nope/", "out/*.gif", "nope/*.txt", "top.png/", "out/a.txt/x"] {
            let error = names(dir.path(), &[output], BOUNDS).unwrap_err();
            assert_eq!(error, format!("output `{output}` was promised and is not there"));
        }
    }

    #[test]
    fn links_and_special_files_are_refused_by_name_and_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path());
        symlink("/etc/passwd", dir.path().join("out/link")).unwrap();
        assert!(names(dir.path(), &["out/"], BOUNDS).unwrap_err().contains("`out/link` is a symbolic link"));
        fs::remove_file(dir.path().join("out/link")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("out/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(names(dir.path(), &["out/"], BOUNDS).unwrap_err().contains("`out/pipe` is a FIFO"));
        symlink("/etc", dir.path().join("etc")).unwrap();
        assert!(names(dir.path(), &["etc/passwd"], BOUNDS).unwrap_err().contains("not there"));
        assert!(names(dir.path(), &["etc/*"], BOUNDS).unwrap_err().contains("not there"));
    }

    #[test]
    fn what_a_task_leaves_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path());
        let files = Bounds { files: 2, ..BOUNDS };
        assert_eq!(names(dir.path(), &["out/"], files).unwrap_err(), "more than 2 files in the outputs");
        let bytes = Bounds { bytes: 1, ..BOUNDS };
        assert_eq!(names(dir.path(), &["out/"], bytes).unwrap_err(), "the outputs hold more than 1 bytes");
    }

    #[test]
    fn the_time_for_what_takes_no_room_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path());
        let patience = Duration::from_millis(200);
        let bounds = Bounds { bytes: u64::MAX, patience, ..BOUNDS };
        // Nothing on disk, and a quarter of an hour to read.
        let holes = File::create(dir.path().join("out/holes")).unwrap();
        holes.set_len(1 << 40).unwrap();
        let began = Instant::now();
        let error = names(dir.path(), &["out/holes"], bounds).unwrap_err();
        assert!(error.contains("could not be gone through in 0 s, at `out/holes`"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
        // A tree that is as deep as names may be, once for each time that it is named.
        fs::remove_file(dir.path().join("out/holes")).unwrap();
        let deep = ["d"; 500].join("/");
        fs::create_dir_all(dir.path().join("out").join(deep)).unwrap();
        let error = names(dir.path(), &vec!["out"; 10_000], bounds).unwrap_err();
        assert!(error.contains("could not be gone through"), "{error}");
        // What is on disk has its time.
        fs::write(dir.path().join("top.png"), vec![1; 8 << 20]).unwrap();
        let bounds = Bounds { patience: Duration::ZERO, ..bounds };
        assert_eq!(names(dir.path(), &["top.png"], bounds).unwrap(), ["top.png"]);
    }

    #[test]
    fn a_file_of_another_user_is_not_collected() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path());
        let other = Bounds { uid: Some(4_000_000), ..BOUNDS };
        assert!(names(dir.path(), &["top.png"], other).unwrap_err().contains("belongs to another user"));
    }
}

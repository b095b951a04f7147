//! The files on this node's disk, and which of them go when there are too many.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use mesh_proto::digest::{Digest, Hasher};

/// Bytes read at a time.
const PIECE: usize = 256 * 1024;

/// Blobs by digest. What an earlier life left is not trusted before it was read once: its machine may
/// have lost power before the content was on disk.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    max: u64,
    index: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    entries: HashMap<Digest, Entry>,
    by_use: BTreeMap<u64, Digest>,
    total: u64,
    clock: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    size: u64,
    used: u64,
    verified: bool,
}

impl Cache {
    /// Opens the cache under `root` and takes stock of what is there. Unfinished downloads go.
    pub fn open(root: &Path, max: u64) -> io::Result<Self> {
        fs::DirBuilder::new().mode(0o700).recursive(true).create(root)?;
        let part = root.join("part");
        let _ = fs::remove_dir_all(&part);
        fs::create_dir(&part)?;
        let mut found: Vec<(SystemTime, Digest, u64)> = Vec::new();
        for shard in fs::read_dir(root)?.flatten() {
            let Ok(files) = fs::read_dir(shard.path()) else { continue };
            for file in files.flatten() {
                let digest = file.file_name().to_str().and_then(|name| name.parse().ok());
                if let (Some(digest), Ok(meta)) = (digest, file.metadata()) {
                    found.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), digest, meta.len()));
                }
            }
        }
        found.sort_unstable();
        let mut index = Index::default();
        for (_, digest, size) in found {
            index.add(digest, size, false);
        }
        let cache = Self { root: root.to_owned(), max, index: Mutex::new(index) };
        cache.evict();
        Ok(cache)
    }

    /// Opens a blob, when it is here and was verified in this life.
    pub fn get(&self, digest: Digest) -> Option<File> {
        if !self.lock().touch(digest)?.verified {
            return None;
        }
        self.open_file(digest)
    }

    /// Opens a blob that an earlier life left, when it is here and still has its content; a damaged
    /// one is removed. Reads all of it.
    pub fn verify(&self, digest: Digest) -> io::Result<Option<File>> {
        let Some(entry) = self.lock().touch(digest) else { return Ok(None) };
        let Some(mut file) = self.open_file(digest) else { return Ok(None) };
        if entry.verified {
            return Ok(Some(file));
        }
        let mut hasher = Hasher::default();
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => hasher.update(&piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // A bad block: what cannot be read is fetched again.
                    tracing::warn!(%digest, %error, "cannot read a cached blob");
                    break;
                }
            }
        }
        if hasher.finish() == digest {
            file.rewind()?;
            self.lock().add(digest, entry.size, true);
            return Ok(Some(file));
        }
        tracing::warn!(%digest, "a cached blob is damaged; it is fetched again");
        self.lock().remove(digest);
        fs::remove_file(self.path(digest))?;
        Ok(None)
    }

    fn open_file(&self, digest: Digest) -> Option<File> {
        let Ok(file) = File::open(self.path(digest)) else {
            // Somebody cleaned up by hand.
            self.lock().remove(digest);
            return None;
        };
        // So that the order of use outlasts a restart.
        let _ = file.set_modified(SystemTime::now());
        Some(file)
    }

    /// Where a download of `digest` is written until it is verified.
    pub fn part(&self, digest: Digest) -> PathBuf {
        self.root.join("part").join(digest.to_string())
    }

    /// Takes a verified file in; it is renamed to its place.
    pub fn insert(&self, digest: Digest, file: &Path, size: u64) -> io::Result<File> {
        let path = self.path(digest);
        if let Some(shard) = path.parent() {
            fs::create_dir_all(shard)?;
        }
        fs::rename(file, &path)?;
        let opened = File::open(&path)?;
        self.lock().add(digest, size, true);
        self.evict();
        Ok(opened)
    }

    /// Bytes held.
    pub fn size(&self) -> u64 {
        self.lock().total
    }

    fn path(&self, digest: Digest) -> PathBuf {
        let name = digest.to_string();
        self.root.join(&name[..2]).join(name)
    }

    fn evict(&self) {
        let mut gone = Vec::new();
        {
            let mut index = self.lock();
            while index.total > self.max {
                let Some((_, &digest)) = index.by_use.first_key_value() else { break };
                index.remove(digest);
                gone.push(digest);
            }
        }
        for digest in gone {
            if let Err(error) = fs::remove_file(self.path(digest)) {
                tracing::warn!(%digest, %error, "cannot remove a cached blob");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn add(&mut self, digest: Digest, size: u64, verified: bool) {
        self.remove(digest);
        self.clock += 1;
        self.entries.insert(digest, Entry { size, used: self.clock, verified });
        self.by_use.insert(self.clock, digest);
        self.total += size;
    }

    fn remove(&mut self, digest: Digest) {
        if let Some(entry) = self.entries.remove(&digest) {
            self.by_use.remove(&entry.used);
            self.total -= entry.size;
        }
    }

    /// What is known of a blob, which is used now.
    fn touch(&mut self, digest: Digest) -> Option<Entry> {
        let entry = *self.entries.get(&digest)?;
        self.add(digest, entry.size, entry.verified);
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn put(cache: &Cache, text: &str) -> Digest {
        let digest = Digest::of(text.as_bytes());
        fs::write(cache.part(digest), text).unwrap();
        cache.insert(digest, &cache.part(digest), text.len() as u64).unwrap();
        digest
    }

    fn read(cache: &Cache, digest: Digest) -> Option<String> {
        let mut text = String::new();
        cache.verify(digest).unwrap()?.read_to_string(&mut text).unwrap();
        Some(text)
    }

    #[test]
    fn the_longest_unused_goes_first_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 10).unwrap();
        let (a, b) = (put(&cache, "aaaa"), put(&cache, "bbbb"));
        assert_eq!(read(&cache, a).as_deref(), Some("aaaa"));
        drop(cache);
        let cache = Cache::open(dir.path(), 10).unwrap();
        let c = put(&cache, "cccc");
        assert_eq!(read(&cache, b), None, "b was used before a");
        assert_eq!(read(&cache, a).as_deref(), Some("aaaa"));
        assert_eq!(read(&cache, c).as_deref(), Some("cccc"));
        assert_eq!(cache.size(), 8);
    }

    #[test]
    fn a_file_in_use_stays_readable_when_it_is_evicted() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 5).unwrap();
        let a = put(&cache, "aaaa");
        let mut file = cache.get(a).unwrap();
        put(&cache, "bbbb");
        assert!(cache.get(a).is_none());
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "aaaa");
    }

    #[test]
    fn what_was_cleaned_up_by_hand_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 100).unwrap();
        let a = put(&cache, "aaaa");
        fs::remove_file(cache.path(a)).unwrap();
        assert!(cache.get(a).is_none());
        assert_eq!(cache.size(), 0);
    }

    #[test]
    fn what_an_earlier_life_left_is_read_before_it_is_trusted() {
        for damage in [None, Some(""), Some("aaa"), Some("aaab"), Some("aaaaa")] {
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::open(dir.path(), 100).unwrap();
            let a = put(&cache, "aaaa");
            assert!(cache.get(a).is_some(), "it was verified on its way here");
            drop(cache);
            let cache = Cache::open(dir.path(), 100).unwrap();
            if let Some(content) = damage {
                fs::write(cache.path(a), content).unwrap();
            }
            assert!(cache.get(a).is_none(), "not trusted yet");
            assert_eq!(read(&cache, a).as_deref(), damage.is_none().then_some("aaaa"), "{damage:?}");
            assert_eq!(cache.get(a).is_some(), damage.is_none(), "{damage:?}");
            assert_eq!(cache.path(a).exists(), damage.is_none(), "{damage:?}");
            assert_eq!(cache.size(), if damage.is_none() { 4 } else { 0 });
        }
    }
}

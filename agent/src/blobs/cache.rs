//! The files on this node's disk, and which of them go when there are too many.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use mesh_proto::digest::Digest;

/// Verified blobs, by digest.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    max: u64,
    index: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    entries: HashMap<Digest, (u64, u64)>,
    by_use: BTreeMap<u64, Digest>,
    total: u64,
    clock: u64,
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
            index.add(digest, size);
        }
        let cache = Self { root: root.to_owned(), max, index: Mutex::new(index) };
        cache.evict();
        Ok(cache)
    }

    /// Opens a blob, when it is here.
    pub fn get(&self, digest: Digest) -> Option<File> {
        if !self.lock().touch(digest) {
            return None;
        }
        let path = self.path(digest);
        let Ok(file) = File::open(&path) else {
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
        self.lock().add(digest, size);
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
    fn add(&mut self, digest: Digest, size: u64) {
        self.remove(digest);
        self.clock += 1;
        self.entries.insert(digest, (size, self.clock));
        self.by_use.insert(self.clock, digest);
        self.total += size;
    }

    fn remove(&mut self, digest: Digest) {
        if let Some((size, used)) = self.entries.remove(&digest) {
            self.by_use.remove(&used);
            self.total -= size;
        }
    }

    fn touch(&mut self, digest: Digest) -> bool {
        let Some(&(size, _)) = self.entries.get(&digest) else { return false };
        self.add(digest, size);
        true
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
        cache.get(digest)?.read_to_string(&mut text).unwrap();
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
}

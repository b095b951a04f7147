//! The local files of a job: each once, however many places it goes to.

use std::{
    collections::HashMap,
    fs, io,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use mesh_proto::digest::{Digest, Hasher};

/// A file of this machine that a task wants.
#[derive(Debug)]
pub struct LocalFile {
    pub path: PathBuf,
    pub size: u64,
    pub executable: bool,
}

/// Position in a [`FileTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(usize);

#[derive(Debug, Default)]
pub struct FileTable {
    files: Vec<LocalFile>,
    by_path: HashMap<PathBuf, FileId>,
}

/// Why a file cannot be an input.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0} is neither a file nor a directory")]
    Special(PathBuf),
    #[error("{0} is a directory")]
    Directory(PathBuf),
}

impl FileTable {
    /// Adds a regular file; symbolic links to one are followed.
    pub fn add(&mut self, path: &Path) -> Result<FileId, FileError> {
        if let Some(id) = self.by_path.get(path) {
            return Ok(*id);
        }
        let meta = fs::metadata(path).map_err(|source| FileError::Io { path: path.to_owned(), source })?;
        if meta.is_dir() {
            return Err(FileError::Directory(path.to_owned()));
        }
        if !meta.is_file() {
            return Err(FileError::Special(path.to_owned()));
        }
        let id = FileId(self.files.len());
        self.files.push(LocalFile {
            path: path.to_owned(),
            size: meta.len(),
            executable: meta.permissions().mode() & 0o111 != 0,
        });
        self.by_path.insert(path.to_owned(), id);
        Ok(id)
    }

    pub fn len(&self) -> usize {
        self.files.len()
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Reads and digests every file, a few at a time.
    pub fn hash(self) -> Result<HashedFiles, FileError> {
        let next = AtomicUsize::new(0);
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        let files = &self.files;
        let work = || {
            let mut done = Vec::new();
            let mut buffer = Vec::new();
            while let Some((at, file)) = {
                let at = next.fetch_add(1, Ordering::Relaxed);
                files.get(at).map(|file| (at, file))
            } {
                buffer.resize(256 * 1024, 0);
                let result = digest(&file.path, &mut buffer)
                    .map_err(|source| FileError::Io { path: file.path.clone(), source });
                let failed = result.is_err();
                done.push((at, result));
                if failed {
                    break;
                }
            }
            done
        };
        let done: Vec<_> = if files.len() < 2 {
            work()
        } else {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..workers.min(files.len())).map(|_| scope.spawn(work)).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
            })
        };
        let mut digests: Vec<Option<(Digest, u64)>> = vec![None; files.len()];
        for (at, result) in done {
            digests[at] = Some(result?);
        }
        let hashed = self
            .files
            .into_iter()
            .zip(digests)
            .map(|(file, hashed)| {
                let (digest, size) = hashed.ok_or_else(|| FileError::Io {
                    path: file.path.clone(),
                    source: io::Error::other("it was not read"),
                })?;
                Ok(HashedFile { digest, size, executable: file.executable, path: file.path })
            })
            .collect::<Result<_, FileError>>()?;
        Ok(HashedFiles(hashed))
    }
}

/// The digest and the length of a file as it is now.
pub fn digest(path: &Path, buffer: &mut [u8]) -> io::Result<(Digest, u64)> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Hasher::default();
    let mut size = 0;
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                size += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[derive(Debug)]
pub struct HashedFile {
    pub path: PathBuf,
    pub digest: Digest,
    pub size: u64,
    pub executable: bool,
}

#[derive(Debug)]
pub struct HashedFiles(Vec<HashedFile>);

impl HashedFiles {
    pub fn get(&self, id: FileId) -> &HashedFile {
        &self.0[id.0]
    }

    pub fn into_vec(self) -> Vec<HashedFile> {
        self.0
    }
}

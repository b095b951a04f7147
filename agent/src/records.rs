//! What is written down of an attempt, so that a daemon that was killed finds it again:
//!
//! ```text
//! attempts/12-0-7-1/
//!   record    the assignment, the boot and the slot it was taken under; there before anything else
//!   exec      empty; written before the jail is asked to start the process, unless the record says
//!             that the jail made all this itself in the moment before
//!   spool, exit…   the jail's
//!   end       the end as it is told to the coordinator, once it is known
//!   work/     the task's work directory (elsewhere when other users cannot reach the data directory)
//! attempts/spare-7/   the jail's, for an attempt to come
//! ```
//!
//! Every file is whole or rejected: it carries a digest and is renamed into place, alone or with its
//! directory. Nothing is fsynced: a kill of the daemon loses no write, and after a reboot the boot id makes all of it void.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use mesh_proto::digest::Digest;
use mesh_proto::ids::AttemptKey;
use mesh_proto::v1;
use prost::Message;

use crate::remove::remove_tree;

const RECORD: &str = "record";
const EXEC: &str = "exec";
const END: &str = "end";
const MAGIC: &[u8; 8] = b"mesh-at1";

/// Why a written record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is damaged: {what}")]
    Damaged { path: PathBuf, what: &'static str },
}

/// The written assignment.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    #[prost(string, tag = "1")]
    pub boot_id: String,
    #[prost(uint32, tag = "2")]
    pub slot: u32,
    #[prost(message, optional, tag = "3")]
    pub assignment: Option<v1::Assignment>,
    /// The jail wrote this when it was to start the process.
    #[prost(bool, tag = "4")]
    pub begun: bool,
}

/// What was found of one attempt.
#[derive(Debug)]
pub struct Found {
    pub key: AttemptKey,
    pub slot: u32,
    pub assignment: v1::Assignment,
    /// The jail was, or may have been, asked to start it.
    pub executed: bool,
    pub end: Option<v1::Ended>,
}

/// One entry of the attempts directory.
#[derive(Debug)]
pub enum Entry {
    Found(Box<Found>),
    /// Of an older boot: whatever ran is gone.
    Old(AttemptKey),
    /// Damaged: the attempt cannot be trusted to be what was assigned.
    Rejected(AttemptKey, RecordError),
    /// Not an attempt's at all.
    Foreign(PathBuf),
}

/// The attempts directory.
#[derive(Clone, Debug)]
pub struct Records {
    root: PathBuf,
    boot_id: String,
}

impl Records {
    pub fn new(root: PathBuf, boot_id: String) -> Self {
        Self { root, boot_id }
    }

    /// The directory of one attempt.
    pub fn dir(&self, key: AttemptKey) -> PathBuf {
        self.root.join(key.to_string())
    }

    /// Makes the attempt's directory and writes its assignment down.
    pub fn write(&self, key: AttemptKey, slot: u32, assignment: &v1::Assignment) -> Result<(), RecordError> {
        let dir = self.dir(key);
        let made = fs::DirBuilder::new().mode(0o710).recursive(true).create(&dir);
        made.map_err(|source| RecordError::Io { path: dir.clone(), source })?;
        put(&dir.join(RECORD), &self.record(slot, assignment, false))
    }

    /// The bytes of the record of an attempt that the jail makes a directory for when it starts it.
    pub fn begun(&self, slot: u32, assignment: &v1::Assignment) -> Vec<u8> {
        whole(&self.record(slot, assignment, true))
    }

    fn record(&self, slot: u32, assignment: &v1::Assignment, begun: bool) -> Record {
        Record { boot_id: self.boot_id.clone(), slot, assignment: Some(assignment.clone()), begun }
    }

    /// Notes that the process may exist from now on.
    pub fn write_exec(&self, key: AttemptKey) -> Result<(), RecordError> {
        let path = self.dir(key).join(EXEC);
        fs::File::create(&path).map(drop).map_err(|source| RecordError::Io { path, source })
    }

    /// Writes the end down.
    pub fn write_end(&self, key: AttemptKey, end: &v1::Ended) -> Result<(), RecordError> {
        put(&self.dir(key).join(END), end)
    }

    /// Removes all of an attempt's files.
    pub fn remove(&self, key: AttemptKey) -> io::Result<()> {
        remove_tree(&self.dir(key))
    }

    /// Everything in the attempts directory, judged.
    pub fn scan(&self) -> Result<Vec<Entry>, RecordError> {
        let at = |source| RecordError::Io { path: self.root.clone(), source };
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(at)? {
            let entry = entry.map_err(at)?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(crate::jail::SPARE)) {
                continue;
            }
            let Some(key) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                entries.push(Entry::Foreign(entry.path()));
                continue;
            };
            entries.push(self.judge(key).unwrap_or_else(|error| Entry::Rejected(key, error)));
        }
        Ok(entries)
    }

    fn judge(&self, key: AttemptKey) -> Result<Entry, RecordError> {
        let dir = self.dir(key);
        let damaged = |what| RecordError::Damaged { path: dir.join(RECORD), what };
        let record: Record =
            get(&dir.join(RECORD))?.ok_or_else(|| damaged("it is missing, or was never whole"))?;
        if record.boot_id != self.boot_id {
            return Ok(Entry::Old(key));
        }
        let assignment = record.assignment.ok_or_else(|| damaged("it holds no assignment"))?;
        if AttemptKey::try_from(assignment.attempt).ok() != Some(key) {
            return Err(damaged("it is another attempt's"));
        }
        let executed = record.begun || dir.join(EXEC).exists();
        let end = get(&dir.join(END))?;
        Ok(Entry::Found(Box::new(Found { key, slot: record.slot, assignment, executed, end })))
    }
}

/// A message with its digest.
fn whole(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let mut bytes = Vec::with_capacity(MAGIC.len() + 32 + body.len());
    bytes.extend(MAGIC);
    bytes.extend(Digest::of(&body).0);
    bytes.extend(&body);
    bytes
}

/// Writes a message with its digest, whole or not at all.
fn put(path: &Path, message: &impl Message) -> Result<(), RecordError> {
    write_whole(path, &whole(message)).map_err(|source| RecordError::Io { path: path.to_owned(), source })
}

/// Reads a message back; none when the file does not exist.
fn get<M: Message + Default>(path: &Path) -> Result<Option<M>, RecordError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordError::Io { path: path.to_owned(), source }),
    };
    let damaged = |what| RecordError::Damaged { path: path.to_owned(), what };
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("it does not begin as a record does"))?;
    let (digest, body) = rest.split_at_checked(32).ok_or_else(|| damaged("it is too short"))?;
    if digest != Digest::of(body).0 {
        return Err(damaged("its digest does not match"));
    }
    M::decode(body).map(Some).map_err(|_| damaged("it does not decode"))
}

/// Writes a file under another name and renames it into place, readable by its owner alone.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    io::Write::write_all(&mut options.open(&part)?, bytes)?;
    fs::rename(&part, path)
}

#[cfg(test)]
mod tests {
    use mesh_proto::ids::{JobNumber, TaskKey};

    use super::*;

    const KEY: AttemptKey = AttemptKey { task: TaskKey { job: JobNumber(12), task: 0, index: 7 }, number: 1 };

    fn written(dir: &Path) -> Records {
        let records = Records::new(dir.to_owned(), "boot-a".to_owned());
        let assignment =
            v1::Assignment { attempt: Some(KEY.into()), job_name: "thumbs".into(), ..Default::default() };
        records.write(KEY, 3, &assignment).unwrap();
        records
    }

    #[test]
    fn an_attempt_is_found_again_with_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let records = written(dir.path());
        records.write_exec(KEY).unwrap();
        let end = v1::Ended { exit_code: 3, output: "out".into(), output_length: 3, ..Default::default() };
        records.write_end(KEY, &end).unwrap();
        let entries = records.scan().unwrap();
        let [Entry::Found(found)] = &entries[..] else { panic!("{entries:?}") };
        assert_eq!((found.key, found.slot, found.executed), (KEY, 3, true));
        assert_eq!(found.assignment.job_name, "thumbs");
        assert_eq!(found.end, Some(end));
    }

    #[test]
    fn an_attempt_of_an_older_boot_is_void() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path());
        let rebooted = Records::new(dir.path().to_owned(), "boot-b".to_owned());
        assert!(matches!(rebooted.scan().unwrap()[..], [Entry::Old(KEY)]));
    }

    #[test]
    fn every_flipped_byte_and_every_truncation_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let records = written(dir.path());
        let path = dir.path().join("12-0-7-1/record");
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x40;
            fs::write(&path, &flipped).unwrap();
            assert!(matches!(records.scan().unwrap()[..], [Entry::Rejected(KEY, _)]), "byte {at} flipped");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(matches!(records.scan().unwrap()[..], [Entry::Rejected(KEY, _)]), "cut at {at}");
        }
    }

    #[test]
    fn a_foreign_entry_is_no_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let records = written(dir.path());
        records.remove(KEY).unwrap();
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        assert!(matches!(&records.scan().unwrap()[..], [Entry::Foreign(_)]));
    }
}

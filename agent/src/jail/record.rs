//! The exit record of an attempt on disk: written whole under another name, then renamed, with a
//! checksum, so that what can be read is what was written. The space for it is taken when the
//! attempt starts, so that a disk filled by then cannot swallow how it ended; the file
//! that holds the space is also the sign that a jail once started this attempt.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    rc::Rc,
};

use sha2::{Digest as _, Sha256};

use super::{protocol::ExitRecord, rooms::reserve};

/// Name of the record in the attempt directory.
pub const RECORD: &str = "exit";
/// Its name until the attempt ends.
pub const PENDING: &str = "exit.pending";
/// The largest record, in bytes.
const MAX: u64 = 16 * 1024;
/// Space taken in advance, in bytes.
pub const RESERVED: u64 = 4096;

/// The record of an attempt cannot be read or trusted.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the exit record is damaged")]
    Damaged,
    #[error("cannot read the exit record")]
    Io(#[from] io::Error),
}

/// How the attempt of `attempt_dir` ended; none when it has not, as far as is written.
pub fn read_exit_record(attempt_dir: &Path) -> Result<Option<ExitRecord>, RecordError> {
    let mut file = match File::open(attempt_dir.join(RECORD)) {
        Ok(file) => file.take(MAX),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    // Where the space lies in the file itself, zeros follow the record, or stand for it.
    let padded = bytes.len() as u64 == RESERVED;
    let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    match bytes.get(..end) {
        Some([]) if padded => Ok(None),
        Some(record) if padded => decode(record).map(Some).ok_or(RecordError::Damaged),
        _ => decode(&bytes).map(Some).ok_or(RecordError::Damaged),
    }
}

/// Whether a jail once began to run this attempt (and may be gone since).
pub fn was_started(attempt_dir: &Path) -> bool {
    attempt_dir.join(PENDING).exists() || attempt_dir.join(RECORD).exists()
}

fn decode(bytes: &[u8]) -> Option<ExitRecord> {
    let (sum, body) = bytes.split_at_checked(64)?;
    let body = body.strip_prefix(b"\n")?;
    (hex::encode(Sha256::digest(body)).as_bytes() == sum).then(|| serde_json::from_slice(body).ok())?
}

fn encode(record: &ExitRecord) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(record)?;
    let mut bytes = hex::encode(Sha256::digest(&body)).into_bytes();
    bytes.push(b'\n');
    bytes.extend(body);
    Ok(bytes)
}

/// The room kept for an attempt's record.
#[derive(Clone, Debug)]
pub struct Pending {
    file: Rc<File>,
    /// The file has its name already, and zeros in it.
    in_place: bool,
}

impl Pending {
    /// Takes the room; fails when the disk is full or the attempt was started before.
    pub fn take(attempt_dir: &Path) -> io::Result<Self> {
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(attempt_dir.join(PENDING))?;
        match reserve(&file) {
            Ok(()) => Ok(Self { file: Rc::new(file), in_place: false }),
            Err(error) => {
                let _gone = std::fs::remove_file(attempt_dir.join(PENDING));
                Err(error)
            }
        }
    }

    /// Room in a file that is called as the record is, with zeros in it.
    pub fn in_place(file: Rc<File>) -> Self {
        Self { file, in_place: true }
    }

    /// Gives the room back of an attempt that never ran, where it can be taken again.
    pub fn give_up(&self, attempt_dir: &Path) {
        if !self.in_place {
            let _gone = std::fs::remove_file(attempt_dir.join(PENDING));
        }
    }

    /// Writes the record and gives it its name. On an error nothing can be read yet and it may be
    /// tried again.
    pub fn write(&self, attempt_dir: &Path, record: &ExitRecord) -> io::Result<()> {
        let bytes = encode(record)?;
        self.file.write_all_at(&bytes, 0)?;
        if self.in_place {
            return Ok(());
        }
        self.file.set_len(bytes.len() as u64)?;
        std::fs::rename(attempt_dir.join(PENDING), attempt_dir.join(RECORD))
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::ids::{AttemptKey, JobNumber, TaskKey};

    use super::{
        super::protocol::{ExitCause, Killer},
        *,
    };

    fn record() -> ExitRecord {
        ExitRecord {
            attempt: AttemptKey { task: TaskKey { job: JobNumber(12), task: 0, index: 7 }, number: 1 },
            cause: ExitCause::Exited(3),
            started_at_ms: 1_700_000_000_000,
            ended_at_ms: 1_700_000_000_500,
            run_ms: 500,
            cpu_ms: 20,
            max_rss_bytes: 1 << 20,
            spool_len: 77,
            output_cut: false,
            killer: Killer::Request,
            untouched: false,
        }
    }

    #[test]
    fn a_record_reads_back_and_the_attempt_counts_as_started_from_the_first_moment() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!was_started(dir.path()));
        let pending = Pending::take(dir.path()).unwrap();
        assert!(was_started(dir.path()));
        assert!(read_exit_record(dir.path()).unwrap().is_none(), "a room is no record");
        assert!(Pending::take(dir.path()).is_err(), "the same attempt was begun twice");
        pending.write(dir.path(), &record()).unwrap();
        assert_eq!(read_exit_record(dir.path()).unwrap(), Some(record()));
        assert!(was_started(dir.path()));
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let whole = encode(&record()).unwrap();
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_none(), "cut at {length} was taken for a record");
        }
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes).is_none(), "bit {bit} flipped was taken for a record");
        }
    }
}

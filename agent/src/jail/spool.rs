//! One attempt's output file: frames appended in order of reading, cut at a limit. The file
//! always ends with a whole frame: what a full disk tore is taken off again.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use mesh_proto::frame::{self, HEADER, Kind};

use super::protocol::SPOOL;

/// The most that is read from a task at once, in bytes: small enough that a chatty task
/// cannot keep the others waiting, large enough to keep the headers' share small.
pub const PIECE: usize = 64 * 1024;

/// Bytes by which a spool may be longer than twice its limit.
const SLACK: u64 = 16 * 1024;

/// Room for one frame, its header before its data; one for the whole jail.
pub struct Buffer(Box<[u8]>);

impl Buffer {
    /// An empty one.
    pub fn new() -> Self {
        Self(vec![0; HEADER + PIECE].into_boxed_slice())
    }

    /// Where the data goes.
    pub fn data(&mut self) -> &mut [u8] {
        &mut self.0[HEADER..]
    }
}

/// An attempt's output file while it is written.
pub struct Spool {
    path: PathBuf,
    /// Made with the first byte: most short tasks say nothing.
    file: Option<File>,
    length: u64,
    /// Data bytes that may still come.
    room: u64,
    /// How long the file may become: a task that writes byte by byte pays for its headers.
    longest: u64,
    stdout: u64,
    stderr: u64,
    cut: bool,
    /// A write failed: nothing is added any more.
    broken: bool,
}

impl Spool {
    /// A new one in `attempt_dir` for at most `max` bytes of data.
    pub fn new(attempt_dir: &Path, max: u64) -> Self {
        let longest = max.saturating_mul(2).saturating_add(SLACK);
        Self {
            path: attempt_dir.join(SPOOL),
            file: None,
            length: 0,
            room: max,
            longest,
            stdout: 0,
            stderr: 0,
            cut: false,
            broken: false,
        }
    }

    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether something was left out.
    pub fn cut(&self) -> bool {
        self.cut
    }

    /// Appends the first `length` bytes of the buffer's data; drops what passes the limit, and
    /// marks where.
    pub fn append(&mut self, kind: Kind, time_ms: u64, buffer: &mut Buffer, length: usize) -> io::Result<()> {
        if self.cut || self.broken {
            return Ok(());
        }
        let room = self.room.min(self.longest.saturating_sub(self.length + HEADER as u64));
        let kept = length.min(usize::try_from(room).unwrap_or(usize::MAX));
        if kept > 0 {
            let offset = match kind {
                Kind::Stderr => &mut self.stderr,
                Kind::Stdout | Kind::Cut => &mut self.stdout,
            };
            buffer.0[..HEADER].copy_from_slice(&frame::header(kind, *offset, time_ms, kept));
            *offset += kept as u64;
            self.room -= kept as u64;
            self.write(&buffer.0[..HEADER + kept])?;
        }
        if kept < length {
            self.cut = true;
            let total = self.stdout + self.stderr;
            self.write(&frame::header(Kind::Cut, total, time_ms, 0))?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = if let Some(file) = &mut self.file {
            file
        } else {
            let made = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&self.path);
            self.file.insert(made.inspect_err(|_| self.broken = true)?)
        };
        if let Err(error) = file.write_all(bytes) {
            self.broken = true;
            file.set_len(self.length)?;
            return Err(error);
        }
        self.length += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_in_single_bytes_cannot_fill_the_disk_with_headers() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path(), 10_000);
        let mut buffer = Buffer::new();
        for _ in 0..10_000 {
            spool.append(Kind::Stdout, 1, &mut buffer, 1).unwrap();
        }
        assert!(spool.cut());
        assert!(spool.length() < 20_000 + SLACK + 100, "{}", spool.length());
    }

    #[test]
    fn output_is_cut_at_its_limit_once_and_marked() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path(), 10);
        let mut buffer = Buffer::new();
        buffer.data()[..6].copy_from_slice(b"abcdef");
        spool.append(Kind::Stdout, 1, &mut buffer, 6).unwrap();
        spool.append(Kind::Stderr, 2, &mut buffer, 6).unwrap();
        spool.append(Kind::Stdout, 3, &mut buffer, 6).unwrap();

        let bytes = std::fs::read(dir.path().join(SPOOL)).unwrap();
        assert_eq!(spool.length(), bytes.len() as u64);
        let mut decoder = frame::Decoder::default();
        decoder.push(&bytes);
        let mut got = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            got.push((frame.kind, frame.offset, frame.data));
        }
        assert_eq!(decoder.pending(), 0);
        let expected: [(Kind, u64, &[u8]); 3] =
            [(Kind::Stdout, 0, b"abcdef"), (Kind::Stderr, 0, b"abcd"), (Kind::Cut, 10, b"")];
        assert_eq!(got, expected.map(|(kind, offset, data)| (kind, offset, data.into())));
        assert!(spool.cut());
    }
}

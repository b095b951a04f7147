//! One attempt's file: positions, and what is trusted of it after a start.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use mesh_proto::frame::{HEADER, Header};

/// An open file of output.
pub(super) struct AttemptFile {
    file: File,
    /// Bytes that it holds.
    len: u64,
    /// Bytes that are on disk.
    durable: u64,
    /// Bytes that were there when it was opened: written again when they come again.
    inherited: u64,
    pub(super) dirty: bool,
}

/// Where an append landed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Landed {
    Here,
    /// It lies past the end, and was dropped.
    Gap,
}

impl AttemptFile {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        Ok(Self { file, len: 0, durable: 0, inherited: 0, dirty: true })
    }

    /// Opens a file that is there. `trusted` when this process wrote all of it; otherwise its
    /// frames are looked at, it is cut at the first invalid one, and synced, its name as well.
    pub(super) fn open(path: &Path, trusted: bool) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let mut len = file.metadata()?.len();
        if !trusted {
            let valid = valid_prefix(&file, len)?;
            if valid < len {
                tracing::warn!(path = %path.display(), len, valid, "cut output at an invalid frame");
                file.set_len(valid)?;
                len = valid;
            }
            file.sync_all()?;
            // Whoever made it may have crashed before its name was on disk.
            if let Some(dir) = path.parent() {
                File::open(dir)?.sync_all()?;
            }
        }
        Ok(Self { file, len, durable: len, inherited: len, dirty: false })
    }

    pub(super) fn durable(&self) -> u64 {
        self.durable
    }

    /// Puts `data` at `position`. What is there already is kept, unless it is inherited.
    pub(super) fn write(&mut self, position: u64, data: &[u8]) -> io::Result<Landed> {
        if position > self.len {
            return Ok(Landed::Gap);
        }
        let skip = if position < self.inherited { 0 } else { self.len - position };
        let Some(data) = data.get(skip as usize..).filter(|data| !data.is_empty()) else {
            return Ok(Landed::Here);
        };
        let position = position + skip;
        self.dirty = true;
        self.file.write_all_at(data, position)?;
        self.len = self.len.max(position + data.len() as u64);
        Ok(Landed::Here)
    }

    /// Makes everything durable. After a failure nobody knows what the kernel dropped, so the
    /// file goes back to what was durable before, and the agent sends the rest again.
    pub(super) fn sync(&mut self) -> io::Result<u64> {
        match self.file.sync_data() {
            Ok(()) => self.durable = self.len,
            Err(error) => {
                let _ = self.file.set_len(self.durable);
                self.len = self.durable;
                self.inherited = self.durable;
                return Err(error);
            }
        }
        self.dirty = false;
        Ok(self.durable)
    }
}

/// Bytes before the first frame whose header is invalid. A frame or header that is cut off by
/// the end of the file is not invalid.
fn valid_prefix(file: &File, len: u64) -> io::Result<u64> {
    let mut window = vec![0; 64 * 1024];
    let (mut start, mut filled) = (0_u64, 0_usize);
    let mut at = 0_u64;
    while at < len {
        let here = at.checked_sub(start).map(|skip| skip as usize).filter(|skip| skip + HEADER <= filled);
        let skip = if let Some(skip) = here {
            skip
        } else {
            start = at;
            filled = read_full(file, &mut window, at)?;
            0
        };
        let mut head = [0; HEADER];
        let there = &window[skip..filled.min(skip + HEADER)];
        head[..there.len()].copy_from_slice(there);
        // A header cut short is filled up with zeros, which are valid everywhere but in the kind.
        match Header::parse(&head) {
            Ok(header) if !there.is_empty() => at += (HEADER + header.length) as u64,
            Ok(_) | Err(_) => return Ok(at),
        }
    }
    Ok(len)
}

fn read_full(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use mesh_proto::frame::{Kind, MAX_DATA, header};

    use super::*;

    fn frame(offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = header(Kind::Stdout, offset, 1, length).to_vec();
        bytes.resize(HEADER + length, b'x');
        bytes
    }

    fn prefix_of(bytes: &[u8]) -> u64 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1-0-0-1");
        std::fs::write(&path, bytes).unwrap();
        valid_prefix(&File::open(path).unwrap(), bytes.len() as u64).unwrap()
    }

    #[test]
    fn only_an_invalid_header_cuts_a_file() {
        let mut good = Vec::new();
        for length in [0, 1, 65_500, 3, MAX_DATA, 64 * 1024, 17] {
            good.extend(frame(0, length));
        }
        let whole = good.len();
        assert_eq!(prefix_of(&good), whole as u64);
        for cut in [1, 10, HEADER, HEADER + 16, whole - 1] {
            assert_eq!(prefix_of(&good[..whole - cut]), (whole - cut) as u64, "cut by {cut}");
        }
        for tail in [vec![0; 1], vec![0; 5000], vec![9; 300], header(Kind::Cut, 0, 0, 0)[1..].to_vec()] {
            let mut torn = good.clone();
            torn.extend(&tail);
            assert_eq!(prefix_of(&torn), whole as u64, "with the tail {:?}", &tail[..1]);
        }
        assert_eq!(prefix_of(&[]), 0);
        assert_eq!(prefix_of(&[0; 100]), 0);
    }

    #[test]
    fn a_failed_sync_takes_back_what_was_never_durable() {
        // A device takes writes and refuses to sync.
        let file = File::options().read(true).write(true).open("/dev/null").unwrap();
        let mut output = AttemptFile { file, len: 7, durable: 7, inherited: 7, dirty: false };
        assert_eq!(output.write(7, b"0123456789").unwrap(), Landed::Here);
        output.sync().unwrap_err();
        assert_eq!(output.durable(), 7);
        assert_eq!(output.write(17, b"more").unwrap(), Landed::Gap, "the agent was not sent back");
        assert_eq!(output.write(7, b"0123456789").unwrap(), Landed::Here);
    }
}

//! Reading a part of a file into memory.
//!
//! May enter: what two stores need of plain files, and nothing that knows a format.

use std::{fs::File, io};

use bytes::Bytes;
use rustix::buffer::spare_capacity;

/// `length` bytes from `position`, fewer only where the file ends. Blocks on the disk.
pub(crate) fn read_at(file: &File, position: u64, length: usize) -> io::Result<Bytes> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let next = position + bytes.len() as u64;
        if rustix::io::pread(file, spare_capacity(&mut bytes), next)? == 0 {
            break;
        }
    }
    // A vector may have more room than was asked for.
    bytes.truncate(length);
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_comes_whole_and_the_end_of_the_file_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let file = File::open(path).unwrap();
        assert_eq!(read_at(&file, 2, 5).unwrap(), &b"23456"[..]);
        assert_eq!(read_at(&file, 8, 100).unwrap(), &b"89"[..]);
        assert!(read_at(&file, 10, 1).unwrap().is_empty());
    }
}

//! The frame in which a task's output is kept: written by the jail into an attempt's spool,
//! carried and stored byte for byte, decoded by whoever reads the log. Copying a spool is
//! therefore appending bytes at a position, and a torn tail is a frame that is not whole.
//!
//! Layout, little endian: `kind u8`, `length u24`, `offset u64` (in the kind's stream, bytes
//! before this frame's), `time u64` (Unix milliseconds), then `length` bytes of data.

use bytes::{Bytes, BytesMut};

/// Size of a frame's header in bytes.
pub const HEADER: usize = 20;
/// The most data that one frame carries, in bytes.
pub const MAX_DATA: usize = 256 * 1024;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Stdout,
    Stderr,
    /// The output was cut here because it passed its limit; the data is empty.
    Cut,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Cut => 3,
        }
    }

    fn of(byte: u8) -> Option<Self> {
        [Self::Stdout, Self::Stderr, Self::Cut].into_iter().find(|kind| kind.byte() == byte)
    }
}

/// One piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    /// Bytes of the same stream before this frame.
    pub offset: u64,
    /// Unix milliseconds when the bytes were read from the task.
    pub time_ms: u64,
    pub data: Bytes,
}

/// The bytes are no spool.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("unknown frame kind {0}")]
    Kind(u8),
    #[error("frame of {0} bytes, at most {MAX_DATA} are allowed")]
    Length(usize),
}

/// The header of a frame for `length` bytes of data (at most [`MAX_DATA`]).
#[must_use]
pub fn header(kind: Kind, offset: u64, time_ms: u64, length: usize) -> [u8; HEADER] {
    debug_assert!(length <= MAX_DATA);
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&((length as u32) << 8 | u32::from(kind.byte())).to_le_bytes());
    bytes[4..12].copy_from_slice(&offset.to_le_bytes());
    bytes[12..20].copy_from_slice(&time_ms.to_le_bytes());
    bytes
}

/// A frame's header, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub offset: u64,
    pub time_ms: u64,
    /// Bytes of data behind the header, at most [`MAX_DATA`].
    pub length: usize,
}

impl Header {
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, FrameError> {
        let eight = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
        let length = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], 0]) as usize;
        let kind = Kind::of(bytes[0]).ok_or(FrameError::Kind(bytes[0]))?;
        if length > MAX_DATA {
            return Err(FrameError::Length(length));
        }
        Ok(Self { kind, offset: eight(4), time_ms: eight(12), length })
    }
}

/// Takes frames out of a spool that arrives in pieces.
#[derive(Default)]
pub struct Decoder {
    rest: BytesMut,
}

impl Decoder {
    /// Adds a piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.rest.extend_from_slice(piece);
    }

    /// The next whole frame, or none until more is pushed. After an error the rest is unusable.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(head) = self.rest.first_chunk::<HEADER>() else { return Ok(None) };
        let Header { kind, offset, time_ms, length } = Header::parse(head)?;
        if self.rest.len() < HEADER + length {
            return Ok(None);
        }
        let mut frame = self.rest.split_to(HEADER + length);
        let data = frame.split_off(HEADER).freeze();
        Ok(Some(Frame { kind, offset, time_ms, data }))
    }

    /// Bytes that are pushed and not yet taken.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.rest.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(frames: &[Frame]) -> Vec<u8> {
        let mut out = Vec::new();
        for frame in frames {
            out.extend(header(frame.kind, frame.offset, frame.time_ms, frame.data.len()));
            out.extend(&frame.data);
        }
        out
    }

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let kind = prop_oneof![Just(Kind::Stdout), Just(Kind::Stderr), Just(Kind::Cut)];
        let frame = (kind, any::<u64>(), any::<u64>(), proptest::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(kind, offset, time_ms, data)| Frame { kind, offset, time_ms, data: data.into() });
        proptest::collection::vec(frame, 0..20)
    }

    proptest! {
        #[test]
        fn a_spool_cut_anywhere_decodes_to_the_same_frames(frames in frames(), step in 1_usize..97) {
            let bytes = encode(&frames);
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, frames);
            prop_assert_eq!(decoder.pending(), 0);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }
}

//! From spool bytes, stored or inline, to the pieces of a log that a person reads.

use bytes::Bytes;
use mesh_proto::{
    frame::{Decoder, Frame, Kind},
    ids::AttemptKey,
    v1::{LogChunk, OutputStream},
};

/// Which streams are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    Both,
    Stdout,
    Stderr,
}

/// A piece of a task's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Unspecified when the piece only says that output is missing.
    pub stream: OutputStream,
    /// Bytes of the stream before this piece.
    pub offset: u64,
    /// Unix milliseconds when the agent read the bytes.
    pub time_ms: u64,
    pub data: Bytes,
    /// Output from here on is not here: cut by its limit, or unreadable.
    pub missing: bool,
    /// It was cut by its limit.
    pub cut: bool,
}

impl Piece {
    /// As it goes over the wire, with the task's own names.
    pub fn into_chunk(self, task: &str, array: bool, attempt: AttemptKey) -> LogChunk {
        LogChunk {
            task: task.to_owned(),
            index: attempt.task.index,
            array,
            attempt: attempt.number,
            stream: self.stream.into(),
            offset: self.offset,
            time_ms: self.time_ms as i64,
            data: self.data,
            missing: self.missing,
            cut: self.cut,
        }
    }
}

/// Takes pieces out of a spool that arrives in parts, from its beginning or from a position
/// that another decoder reported.
pub struct LogDecoder {
    decoder: Decoder,
    streams: Streams,
    /// Spool bytes before the next part.
    position: u64,
    broken: bool,
}

impl LogDecoder {
    pub fn new(streams: Streams, position: u64) -> Self {
        Self { decoder: Decoder::default(), streams, position, broken: false }
    }

    /// Everything that a whole spool holds, as short output that rides in an attempt's row.
    pub fn whole(streams: Streams, spool: &[u8]) -> Vec<Piece> {
        Self::new(streams, 0).push(spool)
    }

    /// Adds the next part and takes the pieces that are whole. After unreadable bytes, which
    /// are told by one piece that is missing, there are none.
    pub fn push(&mut self, part: &[u8]) -> Vec<Piece> {
        self.position += part.len() as u64;
        let mut pieces = Vec::new();
        if self.broken {
            return pieces;
        }
        self.decoder.push(part);
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => pieces.extend(piece(frame, self.streams)),
                Ok(None) => return pieces,
                Err(error) => {
                    tracing::warn!(%error, position = self.boundary(), "output cannot be read further");
                    self.broken = true;
                    self.decoder = Decoder::default();
                    pieces.push(missing(0, 0, false));
                    return pieces;
                }
            }
        }
    }

    /// Where the next part begins.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The end of the last whole frame: where a new decoder could go on.
    pub fn boundary(&self) -> u64 {
        self.position - self.decoder.pending() as u64
    }
}

fn piece(frame: Frame, streams: Streams) -> Option<Piece> {
    let Frame { kind, offset, time_ms, data } = frame;
    let stream = match (kind, streams) {
        (Kind::Stdout, Streams::Both | Streams::Stdout) => OutputStream::Stdout,
        (Kind::Stderr, Streams::Both | Streams::Stderr) => OutputStream::Stderr,
        (Kind::Stdout, Streams::Stderr) | (Kind::Stderr, Streams::Stdout) => return None,
        (Kind::Cut, Streams::Both | Streams::Stdout | Streams::Stderr) => {
            return Some(missing(offset, time_ms, true));
        }
    };
    Some(Piece { stream, offset, time_ms, data, missing: false, cut: false })
}

fn missing(offset: u64, time_ms: u64, cut: bool) -> Piece {
    Piece { stream: OutputStream::Unspecified, offset, time_ms, data: Bytes::new(), missing: true, cut }
}

#[cfg(test)]
mod tests {
    use mesh_proto::frame::header;

    use super::*;

    fn spool() -> Vec<u8> {
        let mut spool = Vec::new();
        for (kind, offset, data) in [
            (Kind::Stdout, 0, "one\n"),
            (Kind::Stderr, 0, "oops\n"),
            (Kind::Stdout, 4, "two\n"),
            (Kind::Cut, 8, ""),
        ] {
            spool.extend(header(kind, offset, 1000 + offset, data.len()));
            spool.extend(data.as_bytes());
        }
        spool
    }

    fn text(pieces: &[Piece]) -> String {
        pieces
            .iter()
            .map(
                |piece| if piece.missing { "<missing>".into() } else { String::from_utf8_lossy(&piece.data) },
            )
            .collect()
    }

    #[test]
    fn each_stream_can_be_read_alone_and_a_cut_always_shows() {
        assert_eq!(text(&LogDecoder::whole(Streams::Both, &spool())), "one\noops\ntwo\n<missing>");
        assert_eq!(text(&LogDecoder::whole(Streams::Stdout, &spool())), "one\ntwo\n<missing>");
        assert_eq!(text(&LogDecoder::whole(Streams::Stderr, &spool())), "oops\n<missing>");
        let second = &LogDecoder::whole(Streams::Stdout, &spool())[1];
        assert_eq!((second.offset, second.time_ms), (4, 1004));
    }

    #[test]
    fn a_follower_can_go_on_at_the_boundary_that_another_reached() {
        let spool = spool();
        for cut in 0..spool.len() {
            let mut first = LogDecoder::new(Streams::Both, 0);
            let mut got = text(&first.push(&spool[..cut]));
            let boundary = first.boundary();
            let mut second = LogDecoder::new(Streams::Both, boundary);
            got += &text(&second.push(&spool[boundary as usize..]));
            assert_eq!(got, "one\noops\ntwo\n<missing>", "cut at {cut}");
        }
    }

    #[test]
    fn unreadable_bytes_are_told_once() {
        let mut spool = spool();
        spool.extend([77; 40]);
        let mut decoder = LogDecoder::new(Streams::Both, 0);
        assert_eq!(text(&decoder.push(&spool)), "one\noops\ntwo\n<missing><missing>");
        assert_eq!(decoder.push(&spool), []);
    }
}

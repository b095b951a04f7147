//! A task's bytes on a terminal: what would move the cursor or ring the bell is shown
//! instead of done. Newlines and tabs stay; text may arrive cut anywhere.

use std::fmt::Write as _;

use mesh_proto::names;

/// Escapes a stream piece by piece. Holds back at most three bytes of an unfinished character.
#[derive(Default)]
pub struct Escaper {
    pending: Vec<u8>,
}

impl Escaper {
    /// The next piece, safe to show.
    pub fn push(&mut self, piece: &[u8]) -> String {
        let joined;
        let bytes = if self.pending.is_empty() {
            piece
        } else {
            self.pending.extend_from_slice(piece);
            joined = std::mem::take(&mut self.pending);
            &joined
        };
        let mut out = String::with_capacity(bytes.len());
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text(chunk.valid(), &mut out);
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && is_unfinished(invalid) {
                self.pending = invalid.to_vec();
            } else {
                raw(invalid, &mut out);
            }
        }
        out
    }

    /// What was held back, at the end.
    pub fn finish(&mut self) -> String {
        let mut out = String::new();
        raw(&std::mem::take(&mut self.pending), &mut out);
        out
    }
}

/// Whether more bytes could make it a character.
fn is_unfinished(bytes: &[u8]) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(_) => false,
        Err(error) => error.valid_up_to() == 0 && error.error_len().is_none(),
    }
}

fn text(text: &str, out: &mut String) {
    for (at, line) in text.split('\n').enumerate() {
        if at > 0 {
            out.push('\n');
        }
        out.push_str(&names::escape(line));
    }
}

fn raw(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        let _ = write!(out, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_terminal_is_not_steered() {
        let mut escaper = Escaper::default();
        assert_eq!(
            escaper.push(b"a\tb\n\x1b[2J\x1b]0;x\x07\r\xff\xc3("),
            "a\tb\n\\x1b[2J\\x1b]0;x\\x07\\x0d\\xff\\xc3("
        );
    }

    #[test]
    fn a_character_cut_in_two_arrives_whole() {
        let mut escaper = Escaper::default();
        let shown: String = "é€😀".bytes().map(|byte| escaper.push(&[byte])).collect();
        assert_eq!(shown, "é€😀");
        assert_eq!(escaper.push(b"\xe2\x82"), "");
        assert_eq!(escaper.finish(), "\\xe2\\x82");
    }

    proptest! {
        #[test]
        fn pieces_show_as_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..60), cut in 0_usize..60) {
            let mut whole = Escaper::default();
            let expected = whole.push(&bytes) + &whole.finish();
            let cut = cut.min(bytes.len());
            let mut pieces = Escaper::default();
            let shown = pieces.push(&bytes[..cut]) + &pieces.push(&bytes[cut..]) + &pieces.finish();
            prop_assert_eq!(&shown, &expected);
            prop_assert!(!shown.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
        }
    }
}

//! Lists cut into messages: none is much longer than [`MESSAGE`], whatever their items are.

use std::{iter::Peekable, vec::IntoIter};

use prost::Message;

/// Where a message of a list is cut, in bytes; a single longer item still goes.
pub(super) const MESSAGE: usize = 512 * 1024;

/// The parts of a list, in order. An empty list has none.
pub(super) struct Pages<T>(Peekable<IntoIter<T>>);

impl<T: Message> Pages<T> {
    pub fn of(items: Vec<T>) -> Self {
        Self(items.into_iter().peekable())
    }
}

impl<T: Message> Iterator for Pages<T> {
    type Item = Vec<T>;

    fn next(&mut self) -> Option<Vec<T>> {
        let first = self.0.next()?;
        let mut size = first.encoded_len();
        let mut page = vec![first];
        while let Some(item) = self.0.next_if(|item| {
            size += item.encoded_len();
            size <= MESSAGE
        }) {
            page.push(item);
        }
        Some(page)
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::v1::FileEntry;

    use super::*;

    fn file(length: usize) -> FileEntry {
        FileEntry { path: "x".repeat(length), ..FileEntry::default() }
    }

    #[test]
    fn pages_keep_order_and_size() {
        let lengths = [10, MESSAGE, 10, 10, MESSAGE / 2, MESSAGE / 2, MESSAGE * 2, 1];
        let pages: Vec<Vec<FileEntry>> = Pages::of(lengths.map(file).to_vec()).collect();
        let seen: Vec<usize> = pages.iter().flatten().map(|file| file.path.len()).collect();
        assert_eq!(seen, lengths);
        for page in &pages {
            let size: usize = page.iter().map(Message::encoded_len).sum();
            assert!(page.len() == 1 || size <= MESSAGE, "{size} bytes in {} items", page.len());
        }
        assert!(pages.len() < lengths.len(), "nothing travels together");
        assert_eq!(Pages::of(Vec::<FileEntry>::new()).count(), 0);
    }
}

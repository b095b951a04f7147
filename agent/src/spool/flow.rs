//! Which bytes of which spool go next: positions and credit, pure.

use std::collections::BTreeMap;

use mesh_proto::ids::AttemptKey;

/// Bytes of a spool that may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub key: AttemptKey,
    pub position: u64,
    pub length: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Position {
    sent: u64,
    durable: u64,
    available: u64,
}

/// The state of one output stream.
#[derive(Debug)]
pub struct Flow {
    window: u64,
    max_chunk: usize,
    positions: BTreeMap<AttemptKey, Position>,
    /// Whose turn was last.
    last: Option<AttemptKey>,
}

impl Flow {
    /// `window` bounds what is unacknowledged, all attempts together; at least one chunk goes.
    pub fn new(window: u64, max_chunk: usize) -> Self {
        Self { window: window.max(1), max_chunk, positions: BTreeMap::new(), last: None }
    }

    /// Says how long an attempt's spool is; an attempt not known yet goes on at `durable`.
    pub fn available(&mut self, key: AttemptKey, durable: u64, length: u64) {
        let fresh = Position { sent: durable, durable, available: length };
        let position = self.positions.entry(key).or_insert(fresh);
        position.available = position.available.max(length);
    }

    /// Forgets the attempts that `keep` does not name.
    pub fn retain(&mut self, keep: impl Fn(AttemptKey) -> bool) {
        self.positions.retain(|key, _| keep(*key));
    }

    /// Takes an acknowledgement. One below what was durable before says that the coordinator lost
    /// something: it is sent again from there. One above what was sent says that it has more than
    /// this agent knew.
    pub fn acked(&mut self, key: AttemptKey, durable: u64) {
        if let Some(position) = self.positions.get_mut(&key) {
            position.sent = if durable < position.durable { durable } else { position.sent.max(durable) };
            position.durable = durable;
        }
    }

    /// Bytes sent and not acknowledged.
    pub fn in_flight(&self) -> u64 {
        self.positions.values().map(|position| position.sent - position.durable).sum()
    }

    /// The next chunk, counted as sent: the attempts take turns.
    pub fn next_chunk(&mut self) -> Option<Chunk> {
        let credit = self.window.saturating_sub(self.in_flight());
        if credit == 0 {
            return None;
        }
        let waits = |(_, position): &(&AttemptKey, &Position)| position.sent < position.available;
        let after = |key: &AttemptKey| Some(*key) > self.last;
        let mut waiting = self.positions.iter().filter(waits).map(|(key, _)| *key);
        let key = waiting.clone().find(after).or_else(|| waiting.next())?;
        let position = self.positions.get_mut(&key)?;
        let length = (position.available - position.sent).min(self.max_chunk as u64).min(credit);
        let chunk = Chunk { key, position: position.sent, length: length as usize };
        position.sent += length;
        self.last = Some(key);
        Some(chunk)
    }

    /// A chunk was not sent after all, or only its first bytes were there.
    pub fn unsent(&mut self, chunk: Chunk) {
        if let Some(position) = self.positions.get_mut(&chunk.key) {
            position.sent = position.sent.min(chunk.position);
            position.available = position.available.min(chunk.position);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::ids::{JobNumber, TaskKey};
    use proptest::prelude::*;

    use super::*;

    fn key(index: u32) -> AttemptKey {
        AttemptKey { task: TaskKey { job: JobNumber(1), task: 0, index }, number: 1 }
    }

    #[test]
    fn attempts_take_turns() {
        let mut flow = Flow::new(1000, 10);
        flow.available(key(0), 0, 500);
        flow.available(key(1), 0, 10);
        flow.available(key(2), 0, 15);
        let turns: Vec<(u32, u64, usize)> = std::iter::from_fn(|| flow.next_chunk())
            .take(6)
            .map(|chunk| (chunk.key.task.index, chunk.position, chunk.length))
            .collect();
        assert_eq!(turns, [(0, 0, 10), (1, 0, 10), (2, 0, 10), (0, 10, 10), (2, 10, 5), (0, 20, 10)]);
    }

    #[test]
    fn it_goes_on_where_the_coordinator_stands() {
        let mut flow = Flow::new(100, 100);
        flow.available(key(0), 0, 50);
        flow.next_chunk();
        flow.acked(key(0), 80);
        flow.available(key(0), 80, 90);
        assert_eq!(flow.next_chunk(), Some(Chunk { key: key(0), position: 80, length: 10 }));
        flow.acked(key(0), 20);
        assert_eq!(flow.next_chunk(), Some(Chunk { key: key(0), position: 20, length: 70 }));
    }

    proptest! {
        #[test]
        fn every_byte_arrives_once_in_order_within_the_window(
            lengths in proptest::collection::vec(0_u64..400, 1..6),
            window in 1_u64..200,
            chunk in 1_usize..64,
            lags in proptest::collection::vec(0_usize..5, 400),
        ) {
            let mut flow = Flow::new(window, chunk);
            let mut got = vec![0_u64; lengths.len()];
            let mut flying: std::collections::VecDeque<Chunk> = std::collections::VecDeque::new();
            for (index, length) in lengths.iter().enumerate() {
                flow.available(key(index as u32), 0, *length);
            }
            for lag in lags.into_iter().chain(std::iter::repeat_n(0, 4000)) {
                if let Some(next) = flow.next_chunk() {
                    flying.push_back(next);
                }
                prop_assert!(flow.in_flight() <= window);
                while flying.len() > lag {
                    let Some(chunk) = flying.pop_front() else { break };
                    let have = &mut got[chunk.key.task.index as usize];
                    prop_assert_eq!(*have, chunk.position);
                    *have += chunk.length as u64;
                    flow.acked(chunk.key, *have);
                }
            }
            prop_assert_eq!(got, lengths);
        }
    }
}

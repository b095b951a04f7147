//! What the table has to say to the coordinator: events in their order, the inventory of a session, and how
//! output travels.

use mesh_proto::ids::AttemptKey;
use mesh_proto::limits;
use mesh_proto::v1::{self, attempt_event::Event};

use super::{Attempt, Output, Shippable, State, Stop, Table};

impl Table {
    /// Takes events out of the outbox for one message: until it is empty or they reach `max_bytes`.
    pub fn take_events(&mut self, max_bytes: usize) -> Vec<v1::AttemptEvent> {
        let mut events: Vec<v1::AttemptEvent> = Vec::new();
        let (mut bytes, mut counted) = (0, 0);
        while bytes < max_bytes {
            let Some(key) = self.outbox.pop_front() else { break };
            let Some(attempt) = self.attempts.get_mut(&key) else { continue };
            attempt.unsent.queued = false;
            let unsent = std::mem::take(&mut attempt.unsent);
            let mut push =
                |event| events.push(v1::AttemptEvent { attempt: Some(key.into()), event: Some(event) });
            match &attempt.state {
                State::Waiting | State::InLine { .. } => {}
                State::Withdrawn { .. } => push(Event::Withdrawn(v1::Withdrawn {})),
                State::Active { started, .. } => {
                    if let Some(started) = started.filter(|_| unsent.started) {
                        attempt.start = None;
                        push(Event::Started(started));
                    }
                    if let Some(progress) = unsent.progress {
                        push(Event::Progress(progress));
                    }
                }
                State::Ended { ended, .. } => {
                    // Both in one message are one commit.
                    if let Some(started) = attempt.start.take().filter(|_| unsent.ended) {
                        push(Event::Started(started));
                    }
                    // The last word of a task before it ended, such as that it came to 100.
                    if let Some(progress) = unsent.progress {
                        push(Event::Progress(progress));
                    }
                    if unsent.ended {
                        push(Event::Ended((**ended).clone()));
                    }
                }
            }
            bytes += events[counted..].iter().map(prost::Message::encoded_len).sum::<usize>();
            counted = events.len();
        }
        events
    }

    /// Every attempt whose end the coordinator has not acknowledged.
    pub fn inventory(&self) -> Vec<v1::InventoryItem> {
        let state = |attempt: &Attempt| match &attempt.state {
            State::Waiting | State::InLine { .. } | State::Active { started: None, .. } => {
                Some(v1::InventoryState::Accepted)
            }
            State::Active { stop: Some(Stop::Discard), .. }
            | State::Ended { acked: true, .. }
            | State::Withdrawn { .. } => None,
            State::Active { .. } => Some(v1::InventoryState::Running),
            State::Ended { acked: false, .. } => Some(v1::InventoryState::Ended),
        };
        self.attempts
            .iter()
            .filter_map(|(key, attempt)| {
                let state = state(attempt)?.into();
                Some(v1::InventoryItem { attempt: Some((*key).into()), state })
            })
            .collect()
    }

    /// Decides how an ending attempt's output of `length` bytes travels: `true` when it rides in
    /// the end itself, and then none of it is ever streamed.
    pub fn seal(&mut self, key: AttemptKey, length: u64) -> bool {
        let Some(attempt) = self.attempts.get_mut(&key) else { return false };
        attempt.output.sealed = !attempt.output.streamed && length <= limits::INLINE_OUTPUT as u64;
        attempt.output.sealed
    }

    /// Claims an attempt's output for the stream; `false` when its end carries it.
    pub fn begin_streaming(&mut self, key: AttemptKey) -> bool {
        let Some(attempt) = self.attempts.get_mut(&key) else { return false };
        attempt.output.streamed |= !attempt.output.sealed;
        attempt.output.streamed
    }

    /// The attempts whose spool may hold something that the coordinator lacks.
    pub fn shippable(&self) -> Vec<Shippable> {
        let of = |(key, attempt): (&AttemptKey, &Attempt)| {
            let Output { streamed, sealed, durable, closed } = attempt.output;
            let length = match &attempt.state {
                _ if closed || sealed => return None,
                State::Waiting
                | State::InLine { .. }
                | State::Withdrawn { .. }
                | State::Active { stop: Some(Stop::Discard), .. } => return None,
                State::Active { .. } => None,
                State::Ended { ended, .. } if is_inline(ended) || durable >= ended.output_length => {
                    return None;
                }
                State::Ended { ended, .. } => Some(ended.output_length),
            };
            Some(Shippable { key: *key, durable, length, streamed })
        };
        self.attempts.iter().filter_map(of).collect()
    }
}

/// Whether the end carries all the output there is.
pub fn is_inline(ended: &v1::Ended) -> bool {
    ended.output.len() as u64 == ended.output_length
}

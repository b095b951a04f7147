//! The streams of a connection. Each hands out its messages in the order in which they entered,
//! whatever delays them: what travels is not the message but the right to take the first that waits,
//! so that nothing on the way has to look after the order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    network::{Down, Message, Up},
    plan::Micros,
};

/// Which stream of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    Results,
    Output,
    Assign,
    Acks,
    OutputAcks,
}

impl Lane {
    fn of(message: &Message) -> Option<Self> {
        match message {
            Message::Up(Up::Results { .. }) => Some(Self::Results),
            Message::Up(Up::Output { .. }) => Some(Self::Output),
            Message::Down(Down::Assign { .. } | Down::AssignEnded { .. }) => Some(Self::Assign),
            Message::Down(Down::Acks { .. } | Down::ResultsEnded { .. }) => Some(Self::Acks),
            Message::Down(Down::OutputAck { .. }) => Some(Self::OutputAcks),
            Message::Up(
                Up::Register { .. } | Up::Heartbeat { .. } | Up::OpenAssign { .. } | Up::Dropped { .. },
            )
            | Message::Down(Down::Registered { .. } | Down::Beat { .. }) => None,
        }
    }

    fn is_up(self) -> bool {
        match self {
            Self::Results | Self::Output => true,
            Self::Assign | Self::Acks | Self::OutputAcks => false,
        }
    }
}

/// What is on its way.
#[derive(Debug)]
pub enum Parcel {
    /// A call or its answer, of no stream.
    Alone(Message),
    /// The first that waits in a stream.
    First(Lane),
}

impl Parcel {
    /// Whether it goes from an agent to a coordinator.
    pub fn is_up(&self) -> bool {
        match self {
            Self::Alone(Message::Up(_)) => true,
            Self::Alone(Message::Down(_)) => false,
            Self::First(lane) => lane.is_up(),
        }
    }

    pub fn lane(&self) -> Option<Lane> {
        match self {
            Self::Alone(_) => None,
            Self::First(lane) => Some(*lane),
        }
    }
}

/// What the streams of a connection hold.
#[derive(Debug, Default)]
pub struct Streams {
    waiting: BTreeMap<Lane, VecDeque<Message>>,
    /// When the last of a stream arrives, as far as is known.
    last: BTreeMap<Lane, Micros>,
    lost: BTreeSet<Lane>,
}

impl Streams {
    /// A message that could be there at a time: when it is.
    pub fn enter(&mut self, message: Message, at: Micros) -> (Parcel, Micros) {
        let Some(lane) = Lane::of(&message) else { return (Parcel::Alone(message), at) };
        let last = self.last.entry(lane).or_default();
        let at = at.max(*last + 1);
        *last = at;
        self.waiting.entry(lane).or_default().push_back(message);
        (Parcel::First(lane), at)
    }

    /// As many leave as have entered.
    pub fn leave(&mut self, parcel: Parcel) -> Option<Message> {
        match parcel {
            Parcel::Alone(message) => Some(message),
            Parcel::First(lane) => self.waiting.get_mut(&lane)?.pop_front(),
        }
    }

    /// What a stream holds is there at this time, and not before.
    pub fn delay(&mut self, lane: Lane, at: Micros) {
        let last = self.last.entry(lane).or_default();
        *last = at.max(*last);
    }

    /// Nothing comes out of it any more.
    pub fn lose(&mut self, lane: Lane) {
        self.lost.insert(lane);
    }

    pub fn is_lost(&self, lane: Lane) -> bool {
        self.lost.contains(&lane)
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::ids::SessionId;
    use uuid::Uuid;

    use super::*;
    use crate::{
        plan::SECOND,
        rng::Rng,
        world::{Happening, World},
    };

    #[test]
    fn a_stream_keeps_its_order_over_links_that_block_and_heal() {
        let mut waited = 0;
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut world = World::new(seed, None, false);
            world.start_coordinator(0);
            let connection = world.connect(0, 0, 0).unwrap();
            let (mut got, mut blocked) = (Vec::new(), false);
            for number in 0..30 {
                let message = Down::AssignEnded { session: SessionId(Uuid::from_u128(number)) };
                world.send(connection, Message::Down(message));
                if rng.chance(300) {
                    blocked = !blocked;
                    if blocked {
                        world.block(0, 0, (false, true), SECOND);
                    } else {
                        world.unblock(0, 0, None);
                    }
                }
                if rng.chance(500) {
                    happens(&mut world, &mut got);
                }
            }
            waited += 30 - got.len();
            world.unblock(0, 0, None);
            while got.len() < 30 {
                assert!(happens(&mut world, &mut got), "seed {seed}: lost after {got:?}");
            }
            assert!(got.is_sorted(), "seed {seed}: {got:?}");
        }
        assert!(waited > 1000, "hardly anything waited: {waited}");
    }

    /// What happens next, as far as the network is concerned.
    fn happens(world: &mut World, got: &mut Vec<SessionId>) -> bool {
        match world.pop() {
            None => return false,
            Some(Happening::Arrive { connection, parcel }) => {
                if let Some(Message::Down(Down::AssignEnded { session })) =
                    world.comes_out(connection, parcel)
                {
                    got.push(session);
                }
            }
            Some(Happening::Unblock { node, host, block }) => world.unblock(node, host, Some(block)),
            Some(_) => {}
        }
        true
    }
}

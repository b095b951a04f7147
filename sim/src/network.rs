//! The network between coordinator and agents: connections that break, block in one or both
//! directions, and deliver late. Within a stream messages keep their order; across streams and
//! connections they overtake each other.

use std::sync::Arc;

use coordinator::engine::{effect::Verdict, event::Held};
use mesh_proto::ids::{AttemptKey, BootId, SessionId};
use mesh_proto::v1::{self, AckKind};

use crate::{
    plan::{MS, Micros, SECOND},
    stream::{Parcel, Streams},
    world::{Happening, World},
};

/// What an agent says.
#[derive(Clone, Debug)]
pub enum Up {
    Register {
        call: u64,
        boot: BootId,
        inventory: Vec<(AttemptKey, Held)>,
        seen: Point,
        /// When the inventory was taken, by the machine's clock.
        taken: Micros,
    },
    Heartbeat {
        call: u64,
        session: SessionId,
    },
    OpenAssign {
        session: SessionId,
    },
    /// The agent dropped the streams of a session.
    Dropped {
        session: SessionId,
    },
    Results {
        session: SessionId,
        events: Vec<v1::AttemptEvent>,
    },
    Output {
        session: SessionId,
        key: AttemptKey,
        length: u64,
    },
}

/// What the coordinator says.
#[derive(Clone, Debug)]
pub enum Down {
    Registered { call: u64, answer: Result<Registered, No> },
    Beat { call: u64, answer: Result<(Point, Micros), No> },
    Assign { session: SessionId, orders: Vec<Order>, leader: Point },
    AssignEnded { session: SessionId },
    Acks { session: SessionId, acks: Vec<(AttemptKey, AckKind, bool)> },
    ResultsEnded { session: SessionId },
    OutputAck { session: SessionId, key: AttemptKey, durable: u64, discard: bool },
}

/// Where a history stands: incarnation, epoch, seq. What really happened to the database beside it
/// is for the checker alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    pub incarnation: u64,
    pub epoch: u64,
    pub seq: u64,
    /// How often the database had gone back in time.
    pub timeline: u64,
}

#[derive(Clone, Debug)]
pub struct Registered {
    pub session: SessionId,
    pub verdicts: Vec<(AttemptKey, v1::Verdict)>,
    pub leader: Point,
    /// How long what lives on a lease may live, from when the registration was sent.
    pub lease: Micros,
}

/// An answer that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum No {
    Unavailable,
    Stale,
}

/// An order on the assignment stream.
#[derive(Clone, Debug)]
pub enum Order {
    Start(AttemptKey),
    /// The same, put into words.
    Run(Arc<v1::Assignment>),
    Cancel(AttemptKey),
    Withdraw(AttemptKey),
    RegisterAgain,
}

/// Verdicts as the engine gives them, before the look-ups.
pub type EngineVerdicts = Vec<(AttemptKey, Verdict)>;

/// A message on its way.
#[derive(Clone, Debug)]
pub enum Message {
    Up(Up),
    Down(Down),
}

impl Message {
    /// Calls that are tried again, and words that are said again.
    fn may_come_twice(&self) -> bool {
        matches!(self, Self::Up(Up::Register { .. } | Up::Heartbeat { .. } | Up::Results { .. }))
    }
}

/// The way between one node and one host.
#[derive(Debug, Default)]
pub struct Link {
    pub up_blocked: bool,
    pub down_blocked: bool,
    /// Counts the blocks, so that the end of one does not end the next.
    block: u64,
    held: Vec<(u64, Parcel)>,
}

impl Link {
    pub fn is_blocked(&self) -> bool {
        self.up_blocked || self.down_blocked
    }
}

/// One connection, with all its streams.
#[derive(Debug)]
pub struct Connection {
    pub node: usize,
    pub host: usize,
    /// The lives of its two ends.
    pub daemon: u64,
    pub process: u64,
    /// Whether each end still believes in it.
    pub agent_open: bool,
    pub server_open: bool,
    cut: bool,
    streams: Streams,
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Agent,
    Server,
}

impl World {
    /// The way between a node and a host.
    #[must_use]
    pub fn link(&self, node: usize, host: usize) -> usize {
        node * self.hosts.len() + host
    }

    /// A new connection of a node to the coordinator that lives at a host.
    pub fn connect(&mut self, node: usize, host: usize, daemon: u64) -> Option<u64> {
        let process = self.hosts[host].process.as_ref()?.life;
        let id = self.number();
        let connection = Connection {
            node,
            host,
            daemon,
            process,
            agent_open: true,
            server_open: true,
            cut: false,
            streams: Streams::default(),
        };
        self.connections.insert(id, connection);
        Some(id)
    }

    /// Sends a message; whether it arrives is another matter.
    pub fn send(&mut self, connection: u64, message: Message) {
        let mut latency = self.rng.skewed(50, 3 * MS);
        if self.rng.chance(self.weather().late) {
            latency += self.rng.skewed(MS, 30 * SECOND);
        }
        let Some(open) = self.connections.get(&connection) else { return };
        let sender_open = match message {
            Message::Up(_) => open.agent_open,
            Message::Down(_) => open.server_open,
        };
        if !sender_open {
            return;
        }
        let process = open.process;
        self.check_halted(process, &message);
        let twice = message.may_come_twice() && self.rng.chance(self.weather().twice);
        let copy = twice.then(|| message.clone());
        let at = self.depart(connection, message, self.now + latency);
        if let Some(copy) = copy {
            self.history.note(self.now, "message comes twice", "");
            let again = at + self.rng.skewed(1, SECOND);
            self.depart(connection, copy, again);
        }
    }

    /// Lets a message arrive at a time, or behind what was said before it; says when.
    fn depart(&mut self, connection: u64, message: Message, at: Micros) -> Micros {
        let Some(open) = self.connections.get_mut(&connection) else { return at };
        let (parcel, at) = open.streams.enter(message, at);
        self.at(at, Happening::Arrive { connection, parcel });
        at
    }

    /// What comes out at the other end when something arrives, if anything does.
    pub fn comes_out(&mut self, connection: u64, parcel: Parcel) -> Option<Message> {
        let loses = self.rng.chance(500);
        let open = self.connections.get_mut(&connection)?;
        let link = &mut self.links[open.node * self.hosts.len() + open.host];
        let blocked = if parcel.is_up() { link.up_blocked } else { link.down_blocked };
        if blocked && !open.cut {
            link.held.push((connection, parcel));
            return None;
        }
        let lane = parcel.lane();
        let message = open.streams.leave(parcel)?;
        if open.cut && (blocked || loses || lane.is_some_and(|lane| open.streams.is_lost(lane))) {
            if let Some(lane) = lane {
                open.streams.lose(lane);
            }
            self.history.note(self.now, "message lost", format_args!("{message:?}"));
            return None;
        }
        Some(message)
    }

    pub fn arrive(&mut self, connection: u64, parcel: Parcel) {
        let Some(message) = self.comes_out(connection, parcel) else { return };
        let Some(open) = self.connections.get(&connection) else { return };
        let (node, daemon, process) = (open.node, open.daemon, open.process);
        match message {
            Message::Up(up) => {
                let there = open.server_open && self.core_of(process).is_some();
                if there {
                    self.history.note(self.now, "arrives", format_args!("from node {node}: {up:?}"));
                    self.take_up(connection, node, up);
                }
            }
            Message::Down(down) => {
                let there =
                    open.agent_open && self.machines[node].daemon.as_ref().is_some_and(|d| d.life == daemon);
                if there {
                    self.history.note(self.now, "arrives", format_args!("at node {node}: {down:?}"));
                    self.take_down(node, connection, down);
                }
            }
        }
    }

    /// A connection breaks; each side notices in its own time.
    pub fn cut(&mut self, connection: u64, agent_notices: Micros, server_notices: Micros) {
        let Some(open) = self.connections.get_mut(&connection) else { return };
        if std::mem::replace(&mut open.cut, true) {
            return;
        }
        self.history.note(self.now, "connection breaks", format_args!("{connection}"));
        self.after(agent_notices, Happening::Noticed { connection, side: Side::Agent });
        self.after(server_notices, Happening::Noticed { connection, side: Side::Server });
    }

    /// Breaks every connection of a node.
    pub fn cut_node(&mut self, node: usize) {
        for connection in self.connections_of(node) {
            let mut wait = || match self.rng.range(0, 3) {
                0 => self.rng.skewed(0, 50 * MS),
                1 => self.rng.skewed(0, 2 * SECOND),
                _ => self.rng.range(5 * SECOND, 25 * SECOND),
            };
            let (agent, server) = (wait(), wait());
            self.cut(connection, agent, server);
        }
    }

    pub fn connections_of(&self, node: usize) -> Vec<u64> {
        let live = self.connections.iter().filter(|(_, open)| open.node == node);
        live.map(|(id, _)| *id).collect()
    }

    pub fn noticed(&mut self, connection: u64, side: Side) {
        let Some(open) = self.connections.get_mut(&connection) else { return };
        let (node, daemon, process) = (open.node, open.daemon, open.process);
        match side {
            Side::Agent => {
                open.agent_open = false;
                if self.machines[node].daemon.as_ref().is_some_and(|d| d.life == daemon) {
                    self.agent_disconnected(node, connection);
                }
            }
            Side::Server => {
                open.server_open = false;
                if self.core_of(process).is_some() {
                    self.server_disconnected(connection);
                }
            }
        }
        if let Some(open) = self.connections.get(&connection)
            && !open.agent_open
            && !open.server_open
        {
            self.connections.remove(&connection);
        }
    }

    /// Nothing passes in these directions between a node and a host. A connection that is blocked
    /// on one side only is dead as well: what is sent is never acknowledged, and keepalives end it.
    pub fn block(&mut self, node: usize, host: usize, (up, down): (bool, bool), lasts: Micros) {
        let at = self.link(node, host);
        let link = &mut self.links[at];
        link.up_blocked |= up;
        link.down_blocked |= down;
        link.block += 1;
        let block = link.block;
        self.history.note(
            self.now,
            "partition",
            format_args!("node {node} from host {host}, up {up} down {down}"),
        );
        let patience = self.rng.range(5 * SECOND, 25 * SECOND);
        self.after(patience, Happening::Keepalive { node, host, block });
        self.after(lasts, Happening::Unblock { node, host, block });
    }

    pub fn keepalive(&mut self, node: usize, host: usize, block: u64) {
        let link = &self.links[self.link(node, host)];
        if link.block == block && link.is_blocked() {
            for connection in self.connections_of(node) {
                if self.connections.get(&connection).is_some_and(|open| open.host == host) {
                    let (agent, server) = (self.rng.skewed(0, 10 * SECOND), self.rng.skewed(0, 10 * SECOND));
                    self.cut(connection, agent, server);
                }
            }
        }
    }

    pub fn unblock(&mut self, node: usize, host: usize, block: Option<u64>) {
        let at = self.link(node, host);
        let link = &mut self.links[at];
        if block.is_some_and(|block| block != link.block) || !link.is_blocked() {
            return;
        }
        link.up_blocked = false;
        link.down_blocked = false;
        let held = std::mem::take(&mut link.held);
        self.history.note(self.now, "partition heals", format_args!("node {node}"));
        // What waited comes in its order, after retransmission.
        let begin = self.now + self.rng.skewed(MS, SECOND);
        for (place, (connection, parcel)) in (0..).zip(held) {
            let at = begin + place;
            if let Some(lane) = parcel.lane()
                && let Some(open) = self.connections.get_mut(&connection)
            {
                open.streams.delay(lane, at);
            }
            self.at(at, Happening::Arrive { connection, parcel });
        }
    }
}

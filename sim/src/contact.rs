//! A daemon's way to the coordinators: it connects, registers, beats, hears, and tries the next one,
//! as `agent/src/session.rs` does.

use agent::attempts::Input;
use coordinator::engine::event::Held;
use mesh_proto::ids::{AttemptKey, SessionId};
use mesh_proto::v1::{self, AckKind, InventoryState};

use crate::{
    daemon::Phase,
    machine::DaemonStep,
    network::{Down, Message, No, Order, Point, Registered, Up},
    plan::{MS, Micros, SECOND},
    world::World,
};

/// The first wait before another try, and the longest.
pub const BACKOFF: (Micros, Micros) = (200 * MS, 10 * SECOND);
const REGISTER: Micros = 20 * SECOND;
const HEARTBEAT: Micros = 5 * SECOND;
const CONNECT: Micros = 5 * SECOND;
const OFFLINE: Micros = 30 * SECOND;

impl World {
    pub fn connect_daemon(&mut self, node: usize) {
        let Some(daemon) = self.daemon(node) else { return };
        if daemon.phase != Phase::Away {
            return;
        }
        let (life, known, host) = (daemon.life, daemon.connection, daemon.endpoint % self.hosts.len());
        let usable =
            |id: &u64| self.connections.get(id).is_some_and(|open| open.agent_open && open.host == host);
        let blocked = self.links[self.link(node, host)].is_blocked();
        let connection = match known.filter(usable) {
            Some(connection) => Some(connection),
            None if blocked => None,
            None => self.connect(node, host, life),
        };
        let Some(connection) = connection else {
            self.try_another(node);
            let wait = self.backoff(node) + if blocked { CONNECT } else { 0 };
            return self.daemon_after(node, wait, DaemonStep::Connect);
        };
        self.register(node, connection);
    }

    fn try_another(&mut self, node: usize) {
        if let Some(daemon) = self.daemon(node) {
            daemon.endpoint += 1;
        }
    }

    fn register(&mut self, node: usize, connection: u64) {
        let call = self.number();
        let machine = &mut self.machines[node];
        let (boot, seen, sent) = (machine.boot_id(), machine.seen, machine.clock.read(self.now));
        let Some(daemon) = &mut machine.daemon else { return };
        daemon.connection = Some(connection);
        daemon.phase = Phase::Registering { connection, call, sent };
        let inventory = daemon.table.inventory().iter().filter_map(held).collect();
        self.send(connection, Message::Up(Up::Register { call, boot, inventory, seen, taken: sent }));
        self.daemon_after(node, REGISTER, DaemonStep::Late { call });
    }

    fn backoff(&mut self, node: usize) -> Micros {
        let Some(daemon) = self.daemon(node) else { return BACKOFF.1 };
        let step = daemon.backoff;
        daemon.backoff = (step * 2).min(BACKOFF.1);
        self.rng.range(step / 2, step)
    }

    /// The session, or the try for one, is over.
    fn session_ends(&mut self, node: usize, why: &'static str) {
        let Some(daemon) = self.daemon(node) else { return };
        let old = std::mem::replace(&mut daemon.phase, Phase::Away);
        if old == Phase::Away {
            return;
        }
        self.history.note(self.now, "session ends", format_args!("node {node}: {why}"));
        if matches!(old, Phase::Registering { .. }) {
            self.try_another(node);
        }
        self.drop_streams(old);
        let wait = self.backoff(node);
        self.daemon_after(node, wait, DaemonStep::Connect);
    }

    fn drop_streams(&mut self, phase: Phase) {
        if let Phase::Live { connection, session, .. } = phase {
            self.send(connection, Message::Up(Up::Dropped { session }));
        }
    }

    pub fn agent_disconnected(&mut self, node: usize, connection: u64) {
        let phase = self.daemon(node).map(|daemon| daemon.phase);
        match phase {
            Some(Phase::Registering { connection: used, .. } | Phase::Live { connection: used, .. })
                if used == connection =>
            {
                self.session_ends(node, "the connection broke");
            }
            Some(Phase::Registering { .. } | Phase::Live { .. } | Phase::Away) | None => {}
        }
    }

    pub fn late(&mut self, node: usize, late: u64) {
        match self.daemon(node).map(|daemon| daemon.phase) {
            Some(Phase::Registering { call, .. }) if call == late => {
                self.session_ends(node, "no answer to the registration");
            }
            Some(Phase::Live { beat: Some((call, _)), .. }) if call == late => {
                self.session_ends(node, "no answer to a heartbeat");
            }
            Some(Phase::Registering { .. } | Phase::Live { .. } | Phase::Away) | None => {}
        }
    }

    pub fn beat(&mut self, node: usize, of: SessionId) {
        let (call, sent) = (self.number(), self.machines[node].clock.read(self.now));
        let Some(daemon) = self.daemon(node) else { return };
        let Phase::Live { connection, session, beat, .. } = &mut daemon.phase else { return };
        if *session != of {
            return;
        }
        *beat = Some((call, sent));
        let (connection, session) = (*connection, *session);
        self.send(connection, Message::Up(Up::Heartbeat { call, session }));
        self.daemon_after(node, HEARTBEAT * 2, DaemonStep::Late { call });
        self.daemon_after(node, HEARTBEAT, DaemonStep::Beat { session });
    }

    /// Takes note of where a coordinator stands, or refuses it.
    fn observe(&mut self, node: usize, leader: Point) -> bool {
        let machine = &mut self.machines[node];
        if leader.timeline == 0 {
            machine.seen_lost = machine.seen_lost.max(leader.seq);
        }
        let seen = machine.seen;
        if (leader.incarnation, leader.epoch) < (seen.incarnation, seen.epoch) {
            self.session_ends(node, "a stale leader");
            return false;
        }
        let same = leader.incarnation == seen.incarnation;
        machine.seen = Point { seq: if same { leader.seq.max(seen.seq) } else { leader.seq }, ..leader };
        true
    }

    /// A message of the coordinator arrived.
    pub fn take_down(&mut self, node: usize, connection: u64, down: Down) {
        let Some(phase) = self.daemon(node).map(|daemon| daemon.phase) else { return };
        let live = |of: SessionId| matches!(phase, Phase::Live { session, .. } if session == of);
        match down {
            Down::Registered { call: of, answer } => {
                if !matches!(phase, Phase::Registering { call, .. } if call == of) {
                    return;
                }
                match answer {
                    Ok(registered) => self.registered(node, connection, registered),
                    Err(No::Unavailable) => self.session_ends(node, "registration unavailable"),
                    Err(No::Stale) => self.session_ends(node, "registration stale"),
                }
            }
            Down::Beat { call, answer } => self.beat_answered(node, call, answer),
            Down::Assign { session, orders, leader } if live(session) => {
                if self.observe(node, leader) {
                    self.obey(node, connection, orders);
                }
            }
            Down::Acks { session, acks } if live(session) => {
                for (key, kind, ended) in acks {
                    match kind {
                        AckKind::Unspecified => {}
                        AckKind::Durable => self.input(node, Input::Ack { key, stale: false, ended }),
                        AckKind::Stale => self.input(node, Input::Ack { key, stale: true, ended }),
                    }
                }
            }
            Down::OutputAck { session, key, durable, discard } if live(session) => {
                if let Some(daemon) = self.daemon(node) {
                    daemon.shipping.remove(&key);
                }
                self.input(node, Input::OutputDurable { key, durable, discard });
            }
            Down::AssignEnded { session } if live(session) => {
                self.session_ends(node, "the assignments ended");
            }
            Down::ResultsEnded { session } if live(session) => {
                self.session_ends(node, "the result stream ended");
            }
            Down::Assign { .. }
            | Down::Acks { .. }
            | Down::OutputAck { .. }
            | Down::AssignEnded { .. }
            | Down::ResultsEnded { .. } => {}
        }
    }

    fn beat_answered(&mut self, node: usize, of: u64, answer: Result<(Point, Micros), No>) {
        let now = self.now;
        let Some(daemon) = self.daemon(node) else { return };
        let Phase::Live { answered, beat, .. } = &mut daemon.phase else { return };
        let Some((_, sent)) = beat.take_if(|(call, _)| *call == of) else { return };
        match answer {
            Ok((leader, lease)) => {
                *answered = now;
                if self.observe(node, leader) {
                    self.prolong(node, sent, lease);
                }
            }
            Err(No::Unavailable) if now - *answered < OFFLINE => {}
            Err(No::Unavailable) => self.session_ends(node, "recovering for too long"),
            Err(No::Stale) => self.session_ends(node, "the session is over"),
        }
    }

    fn registered(&mut self, node: usize, connection: u64, registered: Registered) {
        let Some(Phase::Registering { sent, .. }) = self.daemon(node).map(|daemon| daemon.phase) else {
            return;
        };
        let seen = self.machines[node].seen;
        if !self.observe(node, registered.leader) {
            return;
        }
        self.check_forward(node, seen, registered.leader);
        if self.is_unnoticed(node, registered.leader) {
            self.history.note(self.now, "going back is not noticed", format_args!("node {node}"));
            self.done = true;
            return;
        }
        let session = registered.session;
        self.history.note(self.now, "registered", format_args!("node {node}"));
        self.check_killed_later(node, &registered);
        for (key, verdict) in registered.verdicts {
            self.input(node, Input::Verdict(key, verdict));
        }
        // Behind the verdicts: what another attempt has taken the place of gets no time from this.
        self.prolong(node, sent, registered.lease);
        self.input(node, Input::SessionOpened);
        let now = self.now;
        let Some(daemon) = self.daemon(node) else { return };
        daemon.backoff = BACKOFF.0;
        daemon.shipping.clear();
        daemon.flushing = false;
        daemon.phase = Phase::Live { connection, session, answered: now, beat: None };
        self.send(connection, Message::Up(Up::OpenAssign { session }));
        self.tell(node, true);
        self.beat(node, session);
        self.ship(node);
    }

    fn obey(&mut self, node: usize, connection: u64, orders: Vec<Order>) {
        let (mut withdrawals, mut cancels, mut again) = (Vec::new(), Vec::new(), false);
        for order in orders {
            match order {
                Order::Start(_) => {}
                Order::Run(assignment) => self.input(node, Input::Assigned(assignment)),
                Order::Withdraw(key) => withdrawals.push(key),
                Order::Cancel(key) => cancels.push(key),
                Order::RegisterAgain => again = true,
            }
        }
        for key in withdrawals {
            self.input(node, Input::Withdraw(key));
        }
        for key in cancels {
            self.input(node, Input::Cancel(key));
        }
        if again && let Some(daemon) = self.daemon(node) {
            let old = std::mem::replace(&mut daemon.phase, Phase::Away);
            self.history.note(self.now, "registering again", format_args!("node {node}"));
            self.drop_streams(old);
            self.register(node, connection);
        }
    }
}

fn held(item: &v1::InventoryItem) -> Option<(AttemptKey, Held)> {
    let held = match item.state() {
        InventoryState::Unspecified | InventoryState::Accepted => Held::Accepted,
        InventoryState::Running => Held::Running,
        InventoryState::Ended => Held::Ended,
    };
    Some((AttemptKey::try_from(item.attempt).ok()?, held))
}

//! The machines that coordinators run on: a process each, a boot-time clock that runs a little
//! unevenly, a way to the database that can be cut. Whatever a coordinator does happens at its
//! host: `World::turn` says whose turn it is.

use crate::{
    coordinator::Coordinator,
    plan::{MS, Micros},
    trouble::CommitPoint,
    world::{Happening, World},
};

/// A clock that counts from the boot of its machine, in microseconds, and drifts.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock {
    /// Microseconds that it gains in a second.
    pub gains: i64,
}

impl BootClock {
    /// What it shows.
    #[must_use]
    pub fn read(self, now: Micros) -> Micros {
        now.saturating_add_signed(now.cast_signed() / 1_000_000 * self.gains)
    }

    /// When it shows that, within a second's drift.
    #[must_use]
    pub fn when(self, shows: Micros) -> Micros {
        let guess = shows.saturating_add_signed(-(shows.cast_signed() / 1_000_000 * self.gains));
        guess + MS
    }
}

/// One machine.
#[derive(Debug, Default)]
pub struct Host {
    pub process: Option<Coordinator>,
    /// The process stands still until then.
    pub frozen_until: Micros,
    /// Where it dies next, and for how long.
    pub crash_at: Option<(CommitPoint, Micros)>,
    pub clock: BootClock,
    /// Nothing passes between it and the database until then.
    pub cut_off_until: Micros,
}

impl World {
    /// The process whose turn it is.
    #[must_use]
    pub fn core(&self) -> Option<&Coordinator> {
        self.hosts[self.turn].process.as_ref()
    }

    pub fn core_mut(&mut self) -> Option<&mut Coordinator> {
        self.hosts[self.turn].process.as_mut()
    }

    /// The process whose turn it is, if it is this one.
    pub fn core_of(&mut self, life: u64) -> Option<&mut Coordinator> {
        self.core_mut().filter(|core| core.life == life)
    }

    /// Where this process runs, if it does.
    #[must_use]
    pub fn host_of(&self, life: u64) -> Option<usize> {
        self.hosts.iter().position(|host| host.process.as_ref().is_some_and(|core| core.life == life))
    }

    /// The one at the coordinator's end of a connection, while it lives: without it the network
    /// still has to know.
    pub fn process_at(&self, connection: u64) -> Option<u64> {
        let process = self.connections.get(&connection)?.process;
        self.host_of(process).map(|_| process)
    }

    /// What the clock of the host whose turn it is shows.
    #[must_use]
    pub fn clock(&self) -> Micros {
        self.hosts[self.turn].clock.read(self.now)
    }

    /// Whether this host cannot reach the database.
    #[must_use]
    pub fn cut_off(&self, host: usize) -> bool {
        self.database_down || self.now < self.hosts[host].cut_off_until
    }

    /// Whether this host cannot write to the database: to begin with, it cannot raise seq.
    #[must_use]
    pub fn cannot_write(&self, host: usize) -> bool {
        self.cut_off(host) || self.now < self.database_read_only_until
    }

    /// A coordinator that stands still takes no part until it goes on.
    pub fn freeze(&mut self, host: usize, lasts: Micros) {
        self.history.note(self.now, "coordinator stands still", format_args!("{host}: {} ms", lasts / MS));
        self.hosts[host].frozen_until = self.now + lasts;
    }

    pub fn cut_off_database(&mut self, host: usize, lasts: Micros) {
        self.history.note(self.now, "cut off from the database", format_args!("{host}: {} ms", lasts / MS));
        self.hosts[host].cut_off_until = self.now + lasts;
    }

    /// kill -9 of the coordinator whose turn it is, and its start after a while.
    pub fn crash(&mut self, down: Micros) {
        let host = self.turn;
        let Some(dead) = self.hosts[host].process.take() else { return };
        self.history.note(self.now, "coordinator dies", format_args!("life {}", dead.life));
        self.hosts[host].crash_at = None;
        self.hosts[host].frozen_until = self.now;
        let connections: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, open)| open.process == dead.life)
            .map(|(id, _)| *id)
            .collect();
        for connection in connections {
            let agent = self.rng.skewed(0, 50 * MS);
            self.cut(connection, agent, 0);
        }
        // The database sees the connection break and rolls back, or had the COMMIT already.
        let open: Vec<u64> =
            self.transactions.iter().filter(|(_, tx)| tx.life == dead.life).map(|(id, _)| *id).collect();
        for tx in open {
            let lands = self.rng.chance(500);
            if let Some(transaction) = self.transactions.get_mut(&tx) {
                transaction.lands &= lands;
            }
        }
        self.after(down, Happening::StartCoordinator { host });
    }
}

//! A whole mesh under a seed: the real engine, the agents' real table of attempts, and around
//! them a network, a clock, a database, processes, people, and everything that goes wrong.
//! One thread; the same seed gives the same history to the microsecond.
//!
//! `docs/simulation.md` says what is simulated and which promises are checked where.
//!
//! ```text
//! plan      what a seed decides beforehand: nodes, jobs, faults
//! world     the queue of happenings               host      coordinators' machines, their clocks
//! coordinator  standing by, taking the lead       commit    the real engine in the commit loop
//! transaction  fence, COMMIT, answer              release   what follows a commit
//! edge      handlers and sessions                 voice     what is said to agents
//! database  rows, guards, the leader's row        network   connections that break and block
//! client    people who submit, cancel, drain      redrive   people who try dead letters again
//! daemon    the real table of attempts, sessions
//! runner    one attempt                           machine   disk, jail, leases
//! invariant the promises, by name                 history   the true story, and what it must obey
//! witness   what an engine was told               faults    what goes wrong, and the end
//! broken    rules broken on purpose, to show that the checker bites
//! ```

#![forbid(unsafe_code)]

mod broken;
mod client;
mod commit;
mod coordinator;
mod daemon;
mod database;
mod edge;
mod faults;
mod history;
mod host;
mod invariant;
mod machine;
mod network;
mod plan;
mod redrive;
mod release;
mod restore;
mod rng;
mod runner;
mod transaction;
mod voice;
mod witness;
mod world;

pub use broken::{BROKEN, Broken, replay};
pub use invariant::{INVARIANTS, Invariant, Violation};
pub use world::{Outcome, run};

//! A whole mesh under a seed: the real engine, the agents' real table of attempts, and around
//! them a network, a clock, a database, processes, people, and everything that goes wrong.
//! One thread; the same seed gives the same history to the microsecond.
//!
//! `docs/simulation.md` says what is simulated and which promises are checked where.
//!
//! ```text
//! plan      what a seed decides beforehand: nodes, jobs, faults
//! world     the clock and the queue of happenings
//! commit    the coordinator's process: the real engine under the rules of the commit loop
//! edge      its handlers and sessions             network   connections that break and block
//! database  rows, guards, the leader's row        client    people who submit, cancel, drain
//! daemon    the real table of attempts, sessions  runner    one attempt     machine  disk, jail
//! history   the true story, and what it must obey faults    what goes wrong, and the end
//! broken    rules broken on purpose, to show that the checker bites
//! ```

#![forbid(unsafe_code)]

mod broken;
mod client;
mod commit;
mod daemon;
mod database;
mod edge;
mod faults;
mod history;
mod machine;
mod network;
mod plan;
mod rng;
mod runner;
mod world;

pub use broken::{BROKEN, Broken, replay};
pub use world::{Outcome, run};

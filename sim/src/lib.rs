//! A whole mesh under a seed: the real engine, the agents' real table of attempts, and around
//! them a network, a clock, a database, processes, people, and everything that goes wrong.
//! One thread; the same seed gives the same history to the microsecond.
//!
//! `docs/simulation.md` says what is simulated and which promises are checked where.
//!
//! ```text
//! plan      what a seed decides: nodes, jobs      trouble   and what will go wrong
//! world     the queue of happenings               host      coordinators' machines, their clocks
//! coordinator  a process and its terms            lead      standing by, taking the lead
//! commit    the real engine in the commit loop    transaction  fence, COMMIT, answer
//! release   what follows a commit                 restore   a database that goes back in time
//! edge      handlers                              session   sessions of nodes
//! voice     what is said to agents                network   connections that break and block
//! database  rows, guards, the leader's row        client    people who submit and cancel
//! redrive   people who try dead letters again     operator  people who cordon and drain
//! daemon    the real table of attempts            contact   its way to the coordinators
//! runner    one attempt                           machine   disk, daemon
//! jail      processes, leases                     line      attempts that stand in line for a slot
//! faults    faults happen, are healed; the end
//! invariant the promises, by name                 history   the true story, and what it must obey
//! witness   what an engine was told               stream    the order within a connection's streams
//! broken    rules broken on purpose
//! ```

#![forbid(unsafe_code)]

mod broken;
mod client;
mod commit;
mod contact;
mod coordinator;
mod daemon;
mod database;
mod edge;
mod faults;
mod history;
mod host;
mod invariant;
mod jail;
mod lead;
mod line;
mod machine;
mod network;
mod operator;
mod plan;
mod redrive;
mod release;
mod restore;
mod rng;
mod runner;
mod session;
mod stream;
mod transaction;
mod trouble;
mod voice;
mod witness;
mod world;

pub use broken::{BROKEN, Broken, replay};
pub use invariant::{INVARIANTS, Invariant, Violation};
pub use world::{Outcome, run};

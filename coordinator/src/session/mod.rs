//! Live connections: agents' sessions with their assignment and acknowledgement streams,
//! watchers of jobs, followers of logs. Nothing here is stored; after a restart it comes back
//! with the agents' registrations.
//!
//! Every queue is bounded. A session that is too slow for its queue is ended and registers
//! again, which says everything anew; a watcher only ever sees the newest state of its job; a
//! follower that lags looks the tasks up again.

mod cache;
mod hub;
mod plans;
mod registry;
mod speaker;

pub use hub::{Hub, TaskNews};
pub use plans::{PlanError, Plans, digests};
pub use registry::{Acked, Command, Live, Sessions, Taken};
pub use speaker::{Voice, speak_acks, speak_assignments, told_by_agent};

//! The jail's two clocks: boot time for every duration and deadline, wall time for stamps.

pub use crate::clock::{boot, unix_ms as wall_ms};

//! What a test stops for a while: the coordinator, its database, its disk.

use std::{collections::BTreeSet, time::Duration};

use super::Mesh;
use crate::{
    Filler, Signal,
    process::{alive, marked},
    signal, wait,
};

impl Mesh {
    /// Stops the coordinator's process for a while, as a suspended machine would.
    pub fn stun(&self, time: Duration) {
        let process = self.coordinator.as_ref().expect("the coordinator runs");
        process.signal(Signal::SIGSTOP);
        let ended = wait::within(time, || (!alive(process.pid())).then_some(()));
        process.signal(Signal::SIGCONT);
        assert!(ended.is_none(), "the coordinator died while it was stopped");
    }

    /// Fills the disk of its own to its last block until the value goes.
    #[track_caller]
    pub fn fill_disk(&self) -> Filler {
        Filler::new(self.coordinator_pid(), &self.data_dir())
    }

    /// Stops every process of the private Postgres until the value goes.
    pub fn stop_postgres(&self) -> Stopped {
        let stopped = Stopped(marked(&self.data_dir().join("postgres")));
        assert!(!stopped.0.is_empty(), "the private Postgres runs");
        stopped.0.iter().for_each(|pid| signal(*pid, Signal::SIGSTOP));
        stopped
    }
}

/// Processes that are stopped. They go on when the value goes.
pub struct Stopped(BTreeSet<u32>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.iter().for_each(|pid| signal(*pid, Signal::SIGCONT));
    }
}

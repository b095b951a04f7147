//! A second coordinator of a shared mesh.

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::{
    Reply, http,
    process::{Process, Signal},
    wait::secs,
};

/// It runs until the value is dropped or it is killed.
pub struct Second {
    process: Process,
    ready: Value,
}

impl Second {
    #[track_caller]
    pub(crate) fn start(name: &str, command: &mut Command, logs: &Path) -> Self {
        let mut process = Process::start(name, command, logs);
        let ready = process.ready(secs(60));
        Self { process, ready }
    }

    /// What it said when it was ready.
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    /// host:port of a port (`grpc`, `join`, `http`).
    pub fn address(&self, port: &str) -> &str {
        self.ready[port].as_str().expect("the ready line names the port")
    }

    /// GETs from its HTTP port.
    pub fn http(&self, path: &str) -> Option<Reply> {
        http::get(self.address("http"), path)
    }

    /// Whether it says that it serves the mesh.
    pub fn leads(&self) -> bool {
        self.http("/readyz").is_some_and(|reply| reply.status == 200)
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM, and its end.
    #[track_caller]
    pub fn stop(&mut self) {
        self.process.signal(Signal::SIGTERM);
        self.process.exit(secs(30));
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        self.process.kill();
    }
}

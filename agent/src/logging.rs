//! Logs go to standard error: for people on a terminal, JSON lines otherwise. `MESH_LOG` or
//! `RUST_LOG` filters them.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Sets the process's log up; once, at its start.
pub fn start() {
    let filter = EnvFilter::try_from_env("MESH_LOG")
        .or_else(|_| EnvFilter::try_from_default_env())
        .unwrap_or_else(|_| EnvFilter::new("info"));
    // A log that cannot be written, on a full disk say, ends nothing.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    if std::io::stderr().is_terminal() {
        builder.init();
    } else {
        builder.json().flatten_event(true).with_span_list(false).init();
    }
}

//! Progress on a terminal: one bar on standard error, gone when the work is done.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mesh_proto::{state::Named as _, v1};

use super::Out;

/// A bar over bytes; invisible without a terminal.
pub fn bytes(out: Out, what: &'static str, total: u64) -> ProgressBar {
    bar(out, total, "{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}").with_prefix(what)
}

/// A bar over the tasks of a job.
pub fn tasks(out: Out, number: u64) -> ProgressBar {
    let bar = bar(out, 1, "{prefix} {bar:30} {pos}/{len} {msg}").with_prefix(format!("job {number}"));
    if out.progress {
        bar.enable_steady_tick(Duration::from_millis(200));
    }
    bar
}

fn bar(out: Out, total: u64, template: &str) -> ProgressBar {
    let target = if out.progress { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(total), target).with_style(style.progress_chars("=> "))
}

/// Shows where a job stands.
pub fn show_job(bar: &ProgressBar, job: &v1::Job) {
    let counts = job.counts.unwrap_or_default();
    let ended = counts.completed + counts.failed + counts.cancelled;
    let open = counts.blocked + counts.queued + counts.assigned + counts.running + counts.retrying;
    bar.set_length(ended + open);
    bar.set_position(ended);
    let mut words = vec![job.state().upper()];
    for (count, word) in
        [(counts.running, "running"), (counts.retrying, "retrying"), (counts.failed, "failed")]
    {
        if count > 0 {
            words.push(format!("{count} {word}"));
        }
    }
    bar.set_message(words.join(", "));
}

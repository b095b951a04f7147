//! The one place where the daemon starts background work: it carries the caller's span and
//! reports a panic instead of swallowing it.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

/// Runs `work` in the background under the current span; a panic is logged with `name`.
pub fn spawn<F>(name: &'static str, work: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    // What a panic leaves half done is behind locks that say so, or gone with the future.
    let guarded = AssertUnwindSafe(work).catch_unwind().map(move |done| {
        if let Err(panic) = done {
            let said = panic.downcast_ref::<&str>().copied();
            let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            tracing::error!(task = name, panic = said.unwrap_or_default(), "background task panicked");
        }
    });
    #[expect(clippy::disallowed_methods, reason = "this is the crate's spawn helper")]
    tokio::spawn(guarded.in_current_span())
}

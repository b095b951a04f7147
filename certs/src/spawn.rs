//! The one place that starts tasks: each carries its caller's span, and a panic in it is told.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use tokio::task::AbortHandle;
use tracing::Instrument as _;

/// Runs `future` in the background.
#[expect(clippy::disallowed_methods, reason = "this is the helper that everything else must use")]
pub(crate) fn spawn(name: &'static str, future: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    let span = tracing::Span::current();
    let watched = async move {
        if AssertUnwindSafe(future).catch_unwind().await.is_err() {
            tracing::error!(task = name, "a background task panicked");
        }
    };
    tokio::spawn(watched.instrument(span)).abort_handle()
}

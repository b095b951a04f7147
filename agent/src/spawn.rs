//! The one place where the daemon starts background work: it carries the caller's span and
//! reports a panic instead of swallowing it.

use std::future::Future;

use tokio::task::JoinHandle;
use tracing::Instrument as _;

/// Runs `work` in the background under the current span; a panic is logged with `name`.
pub fn spawn<F>(name: &'static str, work: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let guarded = async move {
        // The inner task exists so that its panic arrives here as an error.
        #[expect(clippy::disallowed_methods, reason = "this is the crate's spawn helper")]
        let inner = tokio::spawn(work.in_current_span());
        let _stop = AbortOnDrop(inner.abort_handle());
        if let Err(error) = inner.await
            && error.is_panic()
        {
            tracing::error!(task = name, %error, "background task panicked");
        }
    };
    #[expect(clippy::disallowed_methods, reason = "this is the crate's spawn helper")]
    tokio::spawn(guarded.in_current_span())
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

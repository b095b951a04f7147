//! The one way to start work beside the caller: named, in the caller's span, and a panic is
//! told in the log instead of vanishing with its task.
//!
//! May enter: nothing else. What runs is the caller's business.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
};

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
pub use tokio_util::task::AbortOnDropHandle as AbortOnDrop;
use tracing::{Instrument as _, Span, error, info_span};

/// Runs `future` as its own task. Dropping the handle leaves it running.
#[expect(clippy::disallowed_methods, reason = "this is the helper that everybody else uses")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    let watched = async move {
        AssertUnwindSafe(future).catch_unwind().await.unwrap_or_else(|panic| {
            report(name, panic.as_ref());
            resume_unwind(panic)
        })
    };
    tokio::spawn(watched.instrument(info_span!("work", name)))
}

/// Runs `future` as its own task, which ends when the handle is dropped.
pub fn spawn_owned<F>(name: &'static str, future: F) -> AbortOnDrop<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    AbortOnDrop::new(spawn(name, future))
}

/// Runs `work`, which may block on files, on the runtime's threads for that.
pub fn blocking<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let span = Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(|| watch(name, work)))
}

/// Runs `work` on a thread of its own, for loops that block for the life of the process.
pub fn thread<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<thread::JoinHandle<T>> {
    let span = Span::current();
    thread::Builder::new().name(name.to_owned()).spawn(move || span.in_scope(|| watch(name, work)))
}

fn watch<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        report(name, panic.as_ref());
        resume_unwind(panic)
    })
}

fn report(name: &str, panic: &(dyn Any + Send)) {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    error!(work = name, panic = message, "a part of the coordinator panicked");
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[tokio::test]
    async fn a_panic_is_told_with_the_name_and_the_span_of_its_work() {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let span = info_span!("session", node = "n-17");
        let task = span.in_scope(|| spawn("sweep", async { panic!("lost the {}", "thread") }));
        assert!(task.await.unwrap_err().is_panic());
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        for part in ["ERROR", "lost the thread", "sweep", "n-17"] {
            assert!(text.contains(part), "{part:?} is missing in {text:?}");
        }
    }

    #[tokio::test]
    async fn work_that_somebody_owns_ends_with_its_owner() {
        let (alive, ended) = tokio::sync::oneshot::channel::<()>();
        let owned = spawn_owned("follow", async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        drop(owned);
        assert!(ended.await.is_err());
    }
}

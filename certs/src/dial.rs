//! One connection to a coordinator: which address answers, TLS, and the reason when it fails.
//!
//! A TLS 1.3 client counts its handshake as done before the server has looked at its
//! certificate. A connection is therefore only handed on after the server's first bytes
//! (HTTP/2 servers speak first), so that a refusal is an error of the connecting, with its
//! reason, and not a bare "transport error" of the first call.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use rustls::{ClientConfig, Error};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{alert, route::Route};

/// After this long without an answer from one address, the next is tried beside it.
const STAGGER: Duration = Duration::from_millis(300);
/// The server's first bytes that are kept for the reader.
const FIRST: usize = 1024;

/// Why no connection came about, or why one ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("no coordinator address is known")]
    NoEndpoint,
    #[error("cannot reach the coordinator at {endpoint}: {problem}")]
    Unreachable { endpoint: String, problem: String },
    #[error("the coordinator at {endpoint} did not answer within {after:?}")]
    Timeout { endpoint: String, after: Duration },
    #[error("what answers at {endpoint} is refused: {problem}")]
    Server { endpoint: String, problem: String },
    #[error("the coordinator at {endpoint} refused the connection: {reason}")]
    Rejected { endpoint: String, reason: String },
    #[error("the coordinator at {endpoint} closed the connection")]
    Closed { endpoint: String },
    #[error("the connection to the coordinator at {endpoint} was lost: {problem}")]
    Lost { endpoint: String, problem: String },
}

impl ConnectError {
    /// The coordinator itself said no: trying again with the same certificate does not help.
    pub fn is_rejection(&self) -> bool {
        matches!(self, Self::Rejected { .. })
    }

    /// How much this tells; of several failures the most telling is reported.
    fn weight(&self) -> u8 {
        match self {
            Self::Rejected { .. } => 5,
            Self::Server { .. } => 4,
            Self::Closed { .. } | Self::Lost { .. } => 3,
            Self::Timeout { .. } => 2,
            Self::Unreachable { .. } => 1,
            Self::NoEndpoint => 0,
        }
    }

    /// What to report of two failures: the more telling one, and every address that nobody answers at.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (
                Self::Unreachable { endpoint, problem },
                Self::Unreachable { endpoint: another, problem: as_well },
            ) => Self::Unreachable { endpoint, problem: format!("{problem}; nor at {another}: {as_well}") },
            (first, other) if other.weight() > first.weight() => other,
            (first, _) => first,
        }
    }

    fn of(endpoint: &str, error: &io::Error, after: impl FnOnce(String) -> Self) -> Self {
        let endpoint = endpoint.to_owned();
        match alert::tls_error(error) {
            Some(Error::AlertReceived(alert)) => Self::Rejected { endpoint, reason: alert::refusal(*alert) },
            Some(problem) => Self::Server { endpoint, problem: alert::verdict(problem) },
            // The library adds a link for programmers.
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                after("the other side ended it without a word".to_owned())
            }
            None => after(error.to_string()),
        }
    }
}

/// The reason of the last failed connect; empty again once one succeeds.
#[derive(Clone, Default)]
pub struct LastError(Arc<ArcSwapOption<ConnectError>>);

impl LastError {
    pub fn get(&self) -> Option<Arc<ConnectError>> {
        self.0.load_full()
    }

    /// The reason for people.
    pub fn reason(&self) -> Option<String> {
        self.get().map(|error| error.to_string())
    }

    fn set(&self, error: &ConnectError) {
        self.0.store(Some(Arc::new(error.clone())));
    }

    fn clear(&self) {
        self.0.store(None);
    }
}

impl fmt::Debug for LastError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LastError").field(&self.get()).finish()
    }
}

/// Connects to the first endpoint of the route that answers.
pub(crate) struct Dialer {
    route: Route,
    config: Arc<ClientConfig>,
    connect_timeout: Duration,
    last: LastError,
}

impl Dialer {
    pub(crate) fn new(
        route: Route,
        config: Arc<ClientConfig>,
        connect_timeout: Duration,
        last: LastError,
    ) -> Self {
        Self { route, config, connect_timeout, last }
    }

    pub(crate) async fn dial(&self) -> Result<Dialed, ConnectError> {
        let outcome = self.race().await;
        match &outcome {
            Ok(_) => self.last.clear(),
            Err(error) => self.last.set(error),
        }
        outcome
    }

    /// In order, but without waiting long for an address that does not answer at all.
    async fn race(&self) -> Result<Dialed, ConnectError> {
        let endpoints = self.route.endpoints();
        let mut order = endpoints.iter();
        let mut running = FuturesUnordered::new();
        let mut worst = ConnectError::NoEndpoint;
        let mut waiting = endpoints.len();
        let mut next_at = Instant::now();
        loop {
            tokio::select! {
                biased;
                Some(outcome) = running.next() => match outcome {
                    Ok(stream) => {
                        let stream: Dialed = stream;
                        self.route.connected(&stream.endpoint);
                        return Ok(stream);
                    }
                    Err(error) => {
                        worst = worst.or(error);
                        next_at = Instant::now();
                    }
                },
                () = sleep_until(next_at), if waiting > 0 => {
                    if let Some(endpoint) = order.next() {
                        running.push(self.attempt(endpoint));
                    }
                    waiting -= 1;
                    next_at = Instant::now() + STAGGER;
                },
                else => return Err(worst),
            }
        }
    }

    async fn attempt(&self, endpoint: &str) -> Result<Dialed, ConnectError> {
        let after = self.connect_timeout;
        timeout(after, self.connect(endpoint))
            .await
            .unwrap_or_else(|_| Err(ConnectError::Timeout { endpoint: endpoint.to_owned(), after }))
    }

    async fn connect(&self, endpoint: &str) -> Result<Dialed, ConnectError> {
        let unreachable = |problem| ConnectError::Unreachable { endpoint: endpoint.to_owned(), problem };
        let lost = |problem| ConnectError::Lost { endpoint: endpoint.to_owned(), problem };
        let tcp = TcpStream::connect(endpoint).await.map_err(|error| unreachable(error.to_string()))?;
        // Small messages wait for nobody; a failure here only costs latency.
        let _ = tcp.set_nodelay(true);
        let over = Box::pin(self.route.over(endpoint));
        // The verifier judges by URI, so the name serves the protocol only.
        let name = ServerName::try_from("mesh").map_err(|error| unreachable(error.to_string()))?;
        let mut stream = TlsConnector::from(Arc::clone(&self.config))
            .connect(name, tcp)
            .await
            .map_err(|error| ConnectError::of(endpoint, &error, lost))?;
        let mut first = vec![0; FIRST];
        let read = stream.read(&mut first).await.map_err(|error| ConnectError::of(endpoint, &error, lost))?;
        if read == 0 {
            return Err(ConnectError::Closed { endpoint: endpoint.to_owned() });
        }
        first.truncate(read);
        Ok(Dialed { stream, first, given: 0, endpoint: endpoint.to_owned(), over, last: self.last.clone() })
    }
}

/// A connection; the bytes that the server said first are given to the reader first.
pub(crate) struct Dialed {
    stream: TlsStream<TcpStream>,
    first: Vec<u8>,
    given: usize,
    endpoint: String,
    /// The route goes on to somebody else.
    over: Pin<Box<dyn Future<Output = ()> + Send>>,
    last: LastError,
}

impl Dialed {
    fn note(&self, error: &io::Error) {
        let lost = |problem| ConnectError::Lost { endpoint: self.endpoint.clone(), problem };
        self.last.set(&ConnectError::of(&self.endpoint, error, lost));
    }
}

impl AsyncRead for Dialed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.given < self.first.len() {
            let count = buf.remaining().min(self.first.len() - self.given);
            let given = self.given;
            buf.put_slice(&self.first[given..given + count]);
            self.given += count;
            if self.given == self.first.len() {
                self.first = Vec::new();
                self.given = 0;
            }
            return Poll::Ready(Ok(()));
        }
        // As if the other side had ended it: the next call connects anew.
        if self.over.as_mut().poll(cx).is_ready() {
            self.over = Box::pin(std::future::ready(()));
            return Poll::Ready(Ok(()));
        }
        let outcome = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if let Err(error) = &outcome {
            self.note(error);
        }
        Poll::Ready(outcome)
    }
}

impl AsyncWrite for Dialed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable(endpoint: &str, problem: &str) -> ConnectError {
        ConnectError::Unreachable { endpoint: endpoint.to_owned(), problem: problem.to_owned() }
    }

    #[test]
    fn every_address_that_nobody_answers_at_is_named_with_its_reason() {
        let both = unreachable("attic:7443", "no such name").or(unreachable("10.0.0.1:7443", "refused"));
        assert_eq!(
            both.to_string(),
            "cannot reach the coordinator at attic:7443: no such name; nor at 10.0.0.1:7443: refused"
        );
        // Who answers and says no tells more.
        let rejected = ConnectError::Rejected { endpoint: "b:1".to_owned(), reason: "expired".to_owned() };
        for outcome in [both.clone().or(rejected.clone()), rejected.or(both)] {
            assert_eq!(outcome.to_string(), "the coordinator at b:1 refused the connection: expired");
        }
    }
}

//! The accept loop: TCP in, judged connections out.
//!
//! Every handshake runs in a task of its own with a deadline, so that nobody waits for
//! somebody else's. Half-open handshakes and open connections are both bounded (`crowd`): when
//! a bound is reached the most crowded address, or member, loses its oldest. A refused client
//! is told why: the alert is sent, and the connection is kept until it was read.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, stream};
use mesh_proto::ids::MeshId;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    alert,
    conn::{Closer, Conn, Peer, PeerInfo},
    crowd::{Crowd, Place},
    identity::Identity,
    spawn::spawn,
};

/// Accepted connections that wait to be served. When full, handshakes wait with theirs.
const READY: usize = 64;
/// How long, and for how many bytes, a refused client is listened to so that it reads the reason.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 * 1024;
/// Wait after a failed accept, doubled up to the second while it goes on failing.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Bounds of one listener.
#[derive(Clone, Copy, Debug)]
pub struct AcceptLimits {
    /// From accept to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Open connections.
    pub max_connections: usize,
    /// Handshakes under way.
    pub max_handshakes: usize,
}

impl Default for AcceptLimits {
    fn default() -> Self {
        Self { handshake_timeout: Duration::from_secs(5), max_connections: 4096, max_handshakes: 512 }
    }
}

/// Why a connection was not let in, or was ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the handshake took longer than {0:?}")]
    Slow(Duration),
    #[error("the handshake failed: {0}")]
    Handshake(String),
    #[error("its handshake gave way to a newer one: too many are under way")]
    HandshakeCrowd,
    #[error("its connection gave way to a newer one: too many are open")]
    ConnectionCrowd,
    #[error("connections cannot be accepted: {0}")]
    Listener(String),
}

/// One party of the open connections: a member, or an address on the join port.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Party {
    Member(Identity),
    Address(IpAddr),
}

/// An open connection, as the crowd knows it.
struct Open {
    addr: SocketAddr,
    closer: Closer,
}

/// A handshake under way, as the crowd knows it.
struct HalfOpen {
    addr: SocketAddr,
    task: AbortHandle,
}

struct Shared<F> {
    acceptor: TlsAcceptor,
    mesh: MeshId,
    limits: AcceptLimits,
    on_refused: F,
    open: Crowd<Party, Open>,
    ready: mpsc::Sender<io::Result<Conn>>,
}

/// Accepts connections for tonic's `serve_with_incoming`. `on_refused` is told of every
/// connection that was turned away, for logs and the audit; it must not block. The address
/// is `None` when the listener itself failed. Dropping the stream closes the listener.
pub fn incoming<F>(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    mesh: MeshId,
    limits: AcceptLimits,
    on_refused: F,
) -> impl Stream<Item = io::Result<Conn>> + Send + 'static
where
    F: Fn(Option<SocketAddr>, &Refusal) + Send + Sync + 'static,
{
    let (ready, mut connections) = mpsc::channel(READY);
    let shared = Arc::new(Shared {
        acceptor: TlsAcceptor::from(config),
        mesh,
        limits,
        on_refused,
        open: Crowd::new(limits.max_connections),
        ready,
    });
    spawn("accept", accept(listener, shared));
    stream::poll_fn(move |cx| connections.poll_recv(cx))
}

async fn accept<F>(listener: TcpListener, shared: Arc<Shared<F>>)
where
    F: Fn(Option<SocketAddr>, &Refusal) + Send + Sync + 'static,
{
    let half_open: Crowd<IpAddr, HalfOpen> = Crowd::new(shared.limits.max_handshakes);
    let refuse = |addr, refusal: &Refusal| (shared.on_refused)(addr, refusal);
    let mut backoff = BACKOFF.0;
    let mut opened = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.ready.closed() => break,
        };
        match accepted {
            Ok((tcp, addr)) => {
                backoff = BACKOFF.0;
                opened += 1;
                let shared = Arc::clone(&shared);
                let evicted = half_open.enter(addr.ip(), move |place| {
                    let task = spawn("handshake", async move {
                        let _place = place;
                        handshake(tcp, addr, opened, &shared).await;
                    });
                    HalfOpen { addr, task }
                });
                if let Some(HalfOpen { addr, task }) = evicted {
                    task.abort();
                    refuse(Some(addr), &Refusal::HandshakeCrowd);
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                // Most likely out of descriptors: give one back, and do not spin.
                refuse(None, &Refusal::Listener(error.to_string()));
                if let Some(HalfOpen { task, .. }) = half_open.evict() {
                    task.abort();
                }
                sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            }
        }
    }
    while let Some(HalfOpen { task, .. }) = half_open.evict() {
        task.abort();
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

async fn handshake<F>(tcp: TcpStream, addr: SocketAddr, opened: u64, shared: &Shared<F>)
where
    F: Fn(Option<SocketAddr>, &Refusal) + Send + Sync + 'static,
{
    // Small messages wait for nobody; a failure here only costs latency.
    let _ = tcp.set_nodelay(true);
    let limit = shared.limits.handshake_timeout;
    let outcome = timeout(limit, shared.acceptor.accept(tcp).into_fallible()).await;
    let stream = match outcome {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, tcp))) => {
            let reason = alert::tls_error(&error).map_or_else(|| error.to_string(), alert::verdict);
            (shared.on_refused)(Some(addr), &Refusal::Handshake(reason));
            let _ = timeout(LINGER, linger(tcp)).await;
            return;
        }
        Err(_) => {
            (shared.on_refused)(Some(addr), &Refusal::Slow(limit));
            return;
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = match certificate.map(|cert| Peer::of(cert, shared.mesh)).transpose() {
        Ok(peer) => peer,
        Err(error) => {
            (shared.on_refused)(Some(addr), &Refusal::Handshake(error.to_string()));
            return;
        }
    };
    // Waits for room before the connection counts as open; the handshake's place is held on to.
    let Ok(permit) = shared.ready.reserve().await else {
        return;
    };
    let party = match &peer {
        Some(peer) => Party::Member(peer.identity.clone()),
        None => Party::Address(addr.ip()),
    };
    let closer = Closer::default();
    let info = PeerInfo { addr, opened, peer, closer: closer.clone() };
    let mut place: Option<Place> = None;
    let evicted = shared.open.enter(party, |taken| {
        place = Some(taken);
        Open { addr, closer }
    });
    if let Some(Open { addr, closer }) = evicted {
        closer.close();
        (shared.on_refused)(Some(addr), &Refusal::ConnectionCrowd);
    }
    if let Some(place) = place {
        permit.send(Ok(Conn::new(stream, info, place)));
    }
}

/// Closes towards the client and reads on: a close with unread bytes would reset the
/// connection, and the client would lose the alert that says why.
async fn linger(mut tcp: TcpStream) {
    if tcp.shutdown().await.is_ok() {
        let mut sink = tokio::io::sink();
        let _ = tokio::io::copy(&mut tcp.take(LINGER_BYTES), &mut sink).await;
    }
}

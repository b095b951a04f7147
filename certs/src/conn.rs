//! One accepted connection and who is at its other end. A request finds `PeerInfo` among its
//! extensions; the connection can be closed from outside, streams and all.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use chrono::{DateTime, Utc};
use futures_util::task::AtomicWaker;
use mesh_proto::ids::MeshId;
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::{
    crowd::Place,
    error::CertError,
    identity::{Identity, identity_of},
    x509,
};

/// Bytes that a connection reads before others have their turn. Small frames are read faster than
/// they are worked on: whoever never stops sending them would keep a thread for a tenth of a second.
const TURN: usize = 16 * 1024;

/// The member whose certificate was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub identity: Identity,
    /// When the certificate of this connection ends; a renewed one shows on newer connections.
    pub not_after: DateTime<Utc>,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
    /// SHA-256 of its public key's SPKI.
    pub key_fingerprint: [u8; 32],
}

impl Peer {
    pub(crate) fn of(cert: &CertificateDer<'_>, mesh: MeshId) -> Result<Self, CertError> {
        Ok(Self {
            identity: identity_of(cert, mesh)?,
            not_after: x509::not_after(cert)?,
            fingerprint: x509::cert_fingerprint(cert),
            key_fingerprint: x509::key_fingerprint(cert)?,
        })
    }
}

/// What every request's extensions carry.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    pub addr: SocketAddr,
    /// Its place among the connections of this process, in the order in which they were accepted.
    pub opened: u64,
    /// `None` on the join port only.
    pub peer: Option<Peer>,
    /// Ends the connection that the request came on.
    pub closer: Closer,
}

/// Ends one connection with everything on it, at once.
#[derive(Clone, Default)]
pub struct Closer(Arc<Shut>);

#[derive(Default)]
struct Shut {
    closed: AtomicBool,
    reader: AtomicWaker,
}

impl Closer {
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        // hyper always waits to read, so waking the reader ends the connection.
        self.0.reader.wake();
    }

    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    /// Whether this is the last trace of its connection, which has ended by itself.
    pub fn is_orphan(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Closer(closed: {})", self.is_closed())
    }
}

/// An accepted connection after its handshake.
pub struct Conn {
    stream: TlsStream<TcpStream>,
    info: PeerInfo,
    /// Bytes read since it last had nothing to read, or let others go first.
    read: usize,
    /// Its place among the open connections; freed when the connection is dropped.
    _place: Place,
}

impl Conn {
    pub(crate) fn new(stream: TlsStream<TcpStream>, info: PeerInfo, place: Place) -> Self {
        Self { stream, info, read: 0, _place: place }
    }

    pub fn info(&self) -> &PeerInfo {
        &self.info
    }

    fn check_open(&self) -> io::Result<()> {
        if self.info.closer.is_closed() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "closed by this side"));
        }
        Ok(())
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Connected for Conn {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Registered before the look, so that a close between the two is not missed.
        self.info.closer.0.reader.register(cx.waker());
        self.check_open()?;
        if self.read >= TURN {
            self.read = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.read = if outcome.is_pending() { 0 } else { self.read + buf.filled().len() - before };
        outcome
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check_open()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_open()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_open()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

//! Accepting HTTP connections, few at a time and for a short time each.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    error::HttpError,
    routes::{Watched, router},
};
use crate::spawn;

/// Where it listens and what bounds it.
#[derive(Clone, Debug)]
pub struct Options {
    pub listen: SocketAddr,
    /// Connections at a time; further ones wait to be accepted.
    pub max_connections: usize,
    /// For the head of each request, also the longest that an idle connection is kept.
    pub head_timeout: Duration,
    /// The life of a connection, whatever it does.
    pub connection_timeout: Duration,
}

impl Options {
    /// The usual bounds: 64 connections, 30 s for a head, 5 minutes for a connection.
    pub fn listening(listen: SocketAddr) -> Self {
        Self {
            listen,
            max_connections: 64,
            head_timeout: Duration::from_secs(30),
            connection_timeout: Duration::from_mins(5),
        }
    }
}

/// A bound server, which does not serve yet.
pub struct HttpServer {
    options: Options,
    listener: TcpListener,
    addr: SocketAddr,
}

impl HttpServer {
    /// Binds, so that the port is known, and taken, before anything is announced.
    pub async fn bind(options: Options) -> Result<Self, HttpError> {
        let addr = options.listen;
        let failed = |source| HttpError::Listen { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        Ok(Self { options, listener, addr })
    }

    /// Where it is bound: the port that was found, when 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `shutdown`; then open connections are dropped.
    pub async fn serve(self, watched: Watched, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(self.options.max_connections));
        let service = TowerToHyperService::new(router(watched));
        let accept = async {
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                match self.listener.accept().await {
                    Ok((stream, _)) => {
                        let served = connection(stream, service.clone(), self.options.clone());
                        let served = shutdown.clone().run_until_cancelled_owned(served);
                        spawn::spawn("http connection", async move {
                            served.await;
                            drop(place);
                        });
                    }
                    Err(error) => {
                        // Out of descriptors, mostly: others have to close first.
                        tracing::warn!(%error, "an HTTP connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        };
        shutdown.run_until_cancelled(accept).await;
    }
}

async fn connection(stream: TcpStream, service: TowerToHyperService<axum::Router>, options: Options) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.head_timeout)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(options.connection_timeout, served).await {
        tracing::debug!(%error, "an HTTP connection broke");
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::watch,
    };

    use super::*;
    use crate::{http::Readiness, metrics::Metrics, spawn::AbortOnDrop};

    struct Rig {
        addr: SocketAddr,
        readiness: watch::Sender<Readiness>,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
        server: AbortOnDrop<()>,
    }

    async fn rig(head_timeout: Duration, max_connections: usize) -> Rig {
        let options =
            Options { max_connections, head_timeout, ..Options::listening("127.0.0.1:0".parse().unwrap()) };
        let server = HttpServer::bind(options).await.unwrap();
        let addr = server.addr();
        let (readiness, receiver) = watch::channel(Readiness::Starting);
        let metrics = Arc::new(Metrics::new("7.7").unwrap());
        let watched = Watched { metrics: Arc::clone(&metrics), readiness: receiver };
        let shutdown = CancellationToken::new();
        let server = spawn::spawn_owned("http", server.serve(watched, shutdown.clone()));
        Rig { addr, readiness, metrics, shutdown, server }
    }

    async fn get(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn it_is_ready_only_while_it_leads_and_alive_all_the_time() {
        let rig = rig(Duration::from_secs(30), 8).await;
        for (readiness, status, text) in [
            (Readiness::Starting, "503", "starting"),
            (Readiness::Ready, "200", "ready"),
            (Readiness::NoDatabase, "503", "database"),
            (Readiness::Standby, "503", "standby"),
            (Readiness::Ready, "200", "ready"),
            (Readiness::Stopping, "503", "stopping"),
        ] {
            rig.readiness.send(readiness).unwrap();
            let answer = get(rig.addr, "/readyz").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{readiness:?}: {answer}");
            assert!(answer.contains(text), "{readiness:?}: {answer}");
            assert!(get(rig.addr, "/healthz").await.starts_with("HTTP/1.1 200"), "{readiness:?}");
        }
        assert!(get(rig.addr, "/etc/passwd").await.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test]
    async fn prometheus_can_scrape() {
        let rig = rig(Duration::from_secs(30), 8).await;
        rig.metrics.set_leader(true);
        let answer = get(rig.addr, "/metrics").await;
        assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
        assert!(answer.lines().any(|line| line == "mesh_leader 1"), "{answer}");
        assert!(answer.lines().any(|line| line == "mesh_build_info{version=\"7.7\"} 1"), "{answer}");
    }

    #[tokio::test]
    async fn connections_that_say_nothing_make_room_again() {
        let rig = rig(Duration::from_millis(50), 2).await;
        let mut silent = Vec::new();
        for _ in 0..6 {
            let mut stream = TcpStream::connect(rig.addr).await.unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nx-slow: ").await.unwrap();
            silent.push(stream);
        }
        assert!(get(rig.addr, "/healthz").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_shutdown_drops_idle_connections() {
        let rig = rig(Duration::from_secs(30), 8).await;
        let mut idle = TcpStream::connect(rig.addr).await.unwrap();
        idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        idle.read_exact(&mut first).await.unwrap();
        rig.shutdown.cancel();
        idle.read_to_end(&mut Vec::new()).await.unwrap();
        rig.server.await.unwrap();
    }
}

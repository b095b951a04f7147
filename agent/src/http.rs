//! `/metrics` and `/healthz`, when the operator asks for them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::Metrics;
use crate::spawn::spawn;

/// Serves from now on; returns the address that was bound.
pub async fn serve(listen: SocketAddr, metrics: Arc<Metrics>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await?;
    let bound = listener.local_addr()?;
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/metrics", get(text))
        .with_state(metrics);
    spawn("http", async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the http listener ended");
        }
    });
    Ok(bound)
}

async fn text(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.text())
}

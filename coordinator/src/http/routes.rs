//! What each path answers.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::watch;

use crate::metrics::{self, Metrics};

/// Whether this coordinator serves the mesh now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It reads what there is, and does not lead yet.
    Starting,
    /// It leads, and the database answers.
    Ready,
    /// Another coordinator leads.
    Standby,
    /// It leads, but the database went back in time.
    Halted,
    /// The database does not answer.
    NoDatabase,
    Stopping,
}

impl Readiness {
    fn text(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Standby => "standby: another coordinator leads",
            Self::Halted => "halted: the database went back in time; `meshctl status` says more",
            Self::NoDatabase => "the database does not answer",
            Self::Stopping => "stopping",
        }
    }
}

/// What the routes show.
#[derive(Clone)]
pub struct Watched {
    pub metrics: Arc<Metrics>,
    pub readiness: watch::Receiver<Readiness>,
}

pub(super) fn router(watched: Watched) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(|| std::future::ready("alive\n")))
        .route("/readyz", get(ready))
        .with_state(watched)
}

async fn show_metrics(State(watched): State<Watched>) -> Response {
    match watched.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn ready(State(watched): State<Watched>) -> Response {
    let readiness = *watched.readiness.borrow();
    let status = match readiness {
        Readiness::Ready => StatusCode::OK,
        Readiness::Starting
        | Readiness::Standby
        | Readiness::Halted
        | Readiness::NoDatabase
        | Readiness::Stopping => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, format!("{}\n", readiness.text())).into_response()
}

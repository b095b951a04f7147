//! The one layer before every service: it finds the RPC in the table, judges the caller, puts
//! the [`Caller`] into the request, ends streams whose identity ended, bounds how long a unary
//! call may take, counts, and carries the span.
//!
//! May enter: what holds for every RPC alike.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use chrono::Utc;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use mesh_certs::{Identity, PeerInfo};
use mesh_proto::{code::Code, version::Spoken};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span, field, info_span};

use super::{
    auth::{self, Caller, Port, Rpc, Shape, UserRoles},
    gate::Gate,
    identities::{Identities, IdentityGuard},
};
use crate::{
    metrics::Metrics,
    refusals::{Action, Refusals, Refused},
};

/// What the layer needs to know.
pub struct Edge {
    pub port: Port,
    pub identities: Arc<Identities>,
    pub users: Arc<dyn UserRoles>,
    pub gate: Arc<dyn Gate>,
    pub metrics: Arc<Metrics>,
    pub refusals: Refusals,
    /// The longest that a call without a stream from the client may take to its answer.
    pub deadline: Duration,
}

/// Puts an [`Edge`] before a service.
#[derive(Clone)]
pub struct EdgeLayer(Arc<Edge>);

impl EdgeLayer {
    pub fn new(edge: Edge) -> Self {
        Self(Arc::new(edge))
    }
}

impl<S> Layer<S> for EdgeLayer {
    type Service = EdgeService<S>;

    fn layer(&self, inner: S) -> EdgeService<S> {
        EdgeService { inner, edge: Arc::clone(&self.0) }
    }
}

/// A service behind an [`Edge`].
#[derive(Clone)]
pub struct EdgeService<S> {
    inner: S,
    edge: Arc<Edge>,
}

impl<S> Service<Request<Body>> for EdgeService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The one that is ready serves; its clone takes the next call.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let edge = Arc::clone(&self.edge);
        let rpc = auth::find(request.uri().path());
        let tally = Tally::begin(&edge, rpc, request.extensions().get::<PeerInfo>());
        let span = info_span!("rpc", method = rpc.map_or("unknown", |rpc| rpc.method), peer = field::Empty);
        let admitted = edge.admit(&mut request, rpc, &span);
        let answer = async move {
            let (rpc, hold) = match admitted {
                Ok(admitted) => admitted,
                Err(status) => {
                    tracing::info!(code = %Code::of(&status), reason = status.message(), "refused");
                    return Ok(tally.refuse(&status));
                }
            };
            // A stream is watched on both ways, so that neither side's half outlives the identity
            // or the coordinator's lead.
            let hold = (rpc.shape != Shape::Unary).then_some(hold);
            if matches!(rpc.shape, Shape::ClientStream | Shape::Both)
                && let Some(hold) = &hold
            {
                request = request.map(|body| Body::new(Watched::new(body, Some(hold.clone()), None)));
            }
            let ended = async {
                match &hold {
                    Some(hold) => hold.ended().await,
                    None => std::future::pending().await,
                }
            };
            let late = async {
                match rpc.shape {
                    Shape::Unary | Shape::ServerStream => tokio::time::sleep(edge.deadline).await,
                    Shape::ClientStream | Shape::Both => std::future::pending().await,
                }
                Code::Timeout.status(format!("the coordinator took longer than {:?}", edge.deadline))
            };
            let response = tokio::select! {
                biased;
                response = inner.call(request) => response?,
                status = ended => return Ok(tally.refuse(&status)),
                status = late => return Ok(tally.refuse(&status)),
            };
            Ok(tally.follow(response, hold))
        };
        Box::pin(answer.instrument(span))
    }
}

impl Edge {
    fn admit(
        &self,
        request: &mut Request<Body>,
        rpc: Option<&'static Rpc>,
        span: &Span,
    ) -> Result<(&'static Rpc, Hold), Status> {
        let info = request.extensions().get::<PeerInfo>().cloned();
        let peer = info.as_ref().and_then(|info| info.peer.clone());
        match (&peer, &info) {
            (Some(peer), _) => span.record("peer", field::display(&peer.identity)),
            (None, Some(info)) => span.record("peer", field::display(info.addr)),
            (None, None) => span,
        };
        let rpc = rpc.filter(|rpc| rpc.port == self.port);
        let rpc = rpc.ok_or_else(|| Status::unimplemented("no such call is served on this port"))?;
        let hold = |guard, reign| Hold { guard, reign, gate: Arc::clone(&self.gate), port: self.port };
        if rpc.port == Port::Join {
            return Ok((rpc, hold(None, self.gate.admit(rpc)?)));
        }
        if let Some(theirs) = spoken(request.headers())
            && let Some(refusal) = Spoken::OURS.refusal("this coordinator", "the caller", theirs)
        {
            return Err(Code::Version.status(refusal));
        }
        let (Some(info), Some(peer)) = (info, peer) else {
            return Err(Code::Unauthenticated.status("no certificate of this mesh"));
        };
        let guard = self
            .identities
            .guard(&peer.identity, peer.not_after, Utc::now())
            .map_err(super::identities::Ended::status)?;
        let role = auth::role_of(&peer.identity, self.users.as_ref())
            .filter(|role| rpc.roles.contains(role))
            .ok_or_else(|| {
                let Rpc { service, method, .. } = rpc;
                Code::Denied.status(format!("{} may not call {service}/{method}", peer.identity))
            })?;
        let reign = self.gate.admit(rpc)?;
        request.extensions_mut().insert(Caller { peer, role, addr: info.addr, opened: info.opened });
        Ok((rpc, hold(Some(guard), reign)))
    }
}

/// What a stream stands on: its caller's identity (none on the join port) and this coordinator's
/// lead. It ends with either.
#[derive(Clone)]
struct Hold {
    guard: Option<IdentityGuard>,
    reign: CancellationToken,
    gate: Arc<dyn Gate>,
    port: Port,
}

impl Hold {
    fn has_ended(&self) -> Option<Status> {
        let ended =
            self.guard.as_ref().and_then(IdentityGuard::has_ended).map(super::identities::Ended::status);
        ended.or_else(|| self.reign.is_cancelled().then(|| self.gate.ended(self.port)))
    }

    async fn ended(&self) -> Status {
        let identity = async {
            match &self.guard {
                Some(guard) => guard.ended().await.status(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            status = identity => status,
            () = self.reign.cancelled() => self.gate.ended(self.port),
        }
    }
}

/// The versions that a caller says it speaks; those who do not say are taken at their calls.
fn spoken(headers: &HeaderMap) -> Option<Spoken> {
    headers.get(http::header::USER_AGENT)?.to_str().ok().and_then(Spoken::of_user_agent)
}

/// Counts one RPC, once, whatever becomes of it.
struct Tally {
    edge: Arc<Edge>,
    rpc: Option<&'static Rpc>,
    /// Who calls: an identity, or where a stranger is.
    peer: Option<Identity>,
    addr: Option<IpAddr>,
    began: Instant,
    done: bool,
}

impl Tally {
    fn begin(edge: &Arc<Edge>, rpc: Option<&'static Rpc>, info: Option<&PeerInfo>) -> Self {
        let peer = info.and_then(|info| info.peer.as_ref()).map(|peer| peer.identity.clone());
        let addr = info.map(|info| info.addr.ip());
        Self { edge: Arc::clone(edge), rpc, peer, addr, began: Instant::now(), done: false }
    }

    fn end(&mut self, code: tonic::Code) {
        if !std::mem::replace(&mut self.done, true) {
            let rpc = self.rpc.map(|rpc| (rpc.service, rpc.method));
            self.edge.metrics.rpc_ended(rpc, code, self.began.elapsed());
            if let Some(rpc) = self.rpc
                && let tonic::Code::PermissionDenied | tonic::Code::Unauthenticated = code
            {
                self.refused(rpc, code);
            }
        }
    }

    /// For the audit. What is refused on the port for joining stands there with its reason already.
    fn refused(&self, rpc: &Rpc, code: tonic::Code) {
        if self.edge.port == Port::Join {
            return;
        }
        let actor = self.peer.as_ref().map(ToString::to_string);
        self.edge.refusals.note(Refused {
            stranger: actor.is_none(),
            actor: actor.or_else(|| self.addr.map(|addr| addr.to_string())).unwrap_or_default(),
            action: Action::Call,
            subject: format!("{}/{}", rpc.service, rpc.method),
            detail: if code == tonic::Code::PermissionDenied { "denied" } else { "unauthenticated" }
                .to_owned(),
        });
    }

    fn refuse(mut self, status: &Status) -> Response<Body> {
        self.end(status.code());
        status.clone().into_http()
    }

    /// Watches the response to its end, where its code is, or takes it from the head.
    fn follow(mut self, response: Response<Body>, hold: Option<Hold>) -> Response<Body> {
        if let Some(code) = code_in(response.headers()) {
            self.end(code);
            return response;
        }
        response.map(|body| Body::new(Watched::new(body, hold, Some(self))))
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.end(tonic::Code::Cancelled);
    }
}

fn code_in(headers: &HeaderMap) -> Option<tonic::Code> {
    Some(tonic::Code::from_bytes(headers.get("grpc-status")?.as_bytes()))
}

/// Waits for the end of a [`Hold`], and says it.
type Ending = Pin<Box<dyn Future<Output = Status> + Send>>;

/// A body that ends with what it stands on: a response's by a status in its trailers, a request's
/// by an error for whoever reads it.
struct Watched {
    inner: Body,
    hold: Option<(Hold, Ending)>,
    /// Of a response.
    tally: Option<Tally>,
    span: Span,
    done: bool,
}

impl Watched {
    fn new(inner: Body, hold: Option<Hold>, tally: Option<Tally>) -> Self {
        let hold = hold.map(|hold| {
            let waiting = hold.clone();
            let ended: Ending = Box::pin(async move { waiting.ended().await });
            (hold, ended)
        });
        Self { inner, hold, tally, span: Span::current(), done: false }
    }

    fn ended(&mut self, cx: &mut Context<'_>) -> Option<Status> {
        let (hold, ended) = self.hold.as_mut()?;
        // Polled once more after its end, the future would panic.
        if let Some(status) = hold.has_ended() {
            return Some(status);
        }
        match ended.as_mut().poll(cx) {
            Poll::Ready(status) => Some(status),
            Poll::Pending => None,
        }
    }

    fn end_with(&mut self, status: Status) -> Result<Frame<Bytes>, Status> {
        self.done = true;
        self.inner = Body::empty();
        let Some(tally) = &mut self.tally else { return Err(status) };
        tally.end(status.code());
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers)?;
        Ok(Frame::trailers(trailers))
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let span = this.span.clone();
        let _entered = span.enter();
        if this.done {
            return Poll::Ready(None);
        }
        if let Some(status) = this.ended(cx) {
            return Poll::Ready(Some(this.end_with(status)));
        }
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(tally) = &mut this.tally {
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(code) = frame.trailers_ref().and_then(code_in) {
                        tally.end(code);
                    }
                }
                Some(Err(status)) => tally.end(status.code()),
                None => tally.end(tonic::Code::Unknown),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.done || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;

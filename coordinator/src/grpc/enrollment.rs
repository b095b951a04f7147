//! The Enrollment service: the one RPC of the join port.

use std::{sync::Arc, time::Instant};

use mesh_certs::{Ca, CertError, Identity, PeerInfo};
use mesh_proto::{
    code::Code,
    ids::{MeshId, NodeId},
    names::check_name,
    v1::{JoinRequest, JoinResponse, enrollment_server::Enrollment},
};
use std::net::IpAddr;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::{
    identities::Identities,
    rate::{RateLimiter, origin},
};
use crate::{
    commit::{Core, CoreError},
    directory::Directory,
    engine::{effect::Reply, event::Event, types::NodeState},
    refusals::{Action, Refusals, Refused},
    store::{
        Store, StoreError,
        access::{Admission, Joining},
    },
};

/// Serves joins.
pub struct EnrollmentService {
    pub core: Core,
    pub store: Store,
    pub ca: Arc<Ca>,
    pub mesh: MeshId,
    pub identities: Arc<Identities>,
    pub lifetime: std::time::Duration,
    pub directory: Directory,
    pub joins: RateLimiter<IpAddr>,
    pub refusals: Refusals,
}

/// A join failed on the way.
#[derive(Debug, thiserror::Error)]
enum JoinError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Cert(#[from] CertError),
}

impl From<JoinError> for Status {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Store(error) => error.into(),
            JoinError::Cert(error) => Code::Invalid.status(error.to_string()),
        }
    }
}

impl EnrollmentService {
    /// Whether a node was silent for so long that nothing of it can still run under a lease.
    async fn is_offline(&self, node: NodeId) -> Result<bool, Status> {
        match self.core.ask(|reply| Event::NodesAsked { reply }).await? {
            Reply::Nodes(views) => Ok(views
                .iter()
                .find(|view| view.record.id == node)
                .is_none_or(|view| view.state == NodeState::Offline)),
            _ => Err(CoreError::Mismatch.into()),
        }
    }
}

#[tonic::async_trait]
impl Enrollment for EnrollmentService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let addr = request
            .extensions()
            .get::<PeerInfo>()
            .map(|peer| peer.addr.ip())
            .ok_or_else(|| Code::Internal.status("the connection has no address"))?;
        self.joins.admit(origin(addr), Instant::now())?;
        self.core.ready()?;
        let request = request.into_inner();
        check_name(&request.name)
            .map_err(|error| Code::Invalid.status(format!("the node name {:?} {error}", request.name)))?;
        // Only the key counts; issuing checks the proof that the caller holds it.
        let probe = self
            .ca
            .issue_node(&request.csr_der, NodeId::generate(), self.lifetime)
            .map_err(|error| Code::Invalid.status(error.to_string()))?;
        let mut joining = Joining {
            token_id: request.token_id,
            secret: request.secret,
            key_fingerprint: probe.key_fingerprint,
            name: request.name,
            vacant: None,
        };
        let csr = request.csr_der;
        let issue =
            |node: NodeId| Ok::<_, JoinError>(self.ca.issue_node(&csr, node, self.lifetime)?.der.to_vec());
        let epoch = self.core.standing().epoch();
        let (mut admission, mut certificate) = self.store.admit(epoch, &joining, issue).await?;
        if let Admission::NameTaken(Some(holder)) = admission
            && self.is_offline(holder).await?
        {
            joining.vacant = Some(holder);
            (admission, certificate) = self.store.admit(epoch, &joining, issue).await?;
        }
        let (node, name, certificate) = match admission {
            Admission::Admitted { node, name, returning } => {
                info!(node = %name, %addr, returning, "joined");
                (node, name, certificate)
            }
            Admission::Again { node, name, certificate } => {
                info!(node = %name, %addr, "joined before; the same certificate again");
                (node, name, certificate)
            }
            Admission::Refused(why) => {
                warn!(%addr, why, "join refused");
                self.refusals.note(Refused {
                    stranger: true,
                    actor: addr.to_string(),
                    action: Action::Join,
                    subject: joining.token_id,
                    detail: why.to_owned(),
                });
                return Err(Code::Denied.status(
                    "the token is not valid: unknown, expired, used up, revoked or for another node; \
                     make a new one with `meshctl token create`",
                ));
            }
            Admission::NameTaken(Some(_)) => {
                let name = joining.name;
                return Err(Code::Conflict.status(format!(
                    "another node is called {name:?}; its place can be taken once it is OFFLINE"
                )));
            }
            Admission::NameTaken(None) => {
                let name = joining.name;
                return Err(Code::Conflict.status(format!(
                    "another node is called {name:?}; if it is gone, a token made with \
                     `meshctl token create --node {name}` gives its place to this machine"
                )));
            }
        };
        let not_after = mesh_certs::not_after(&certificate.clone().into())
            .map_err(|error| Code::Internal.status(error.to_string()))?;
        self.identities.renewed(&Identity::Node(node), not_after);
        Ok(Response::new(JoinResponse {
            mesh_id: self.mesh.to_string(),
            node_id: node.to_string(),
            name,
            ca_der: self.ca.cert_der().to_vec(),
            certificate_der: certificate,
            endpoints: self.directory.members(),
        }))
    }
}

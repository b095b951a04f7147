//! Becoming and staying a member: join with a token, renew the certificate at half of its life.
//!
//! May enter: the two RPCs that bring certificates. Files are `identity.rs`.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use mesh_certs::{
    CertError, ClientCert, Identity as Holder, JoinToken, NodeKey, identity_of, leader_in, pinned_channel,
    to_front,
};
use mesh_proto::code::Code;
use mesh_proto::ids::{MeshId, NodeId};
use mesh_proto::names;
use mesh_proto::v1::enrollment_client::EnrollmentClient;
use mesh_proto::v1::{JoinRequest, RenewCertificateRequest};
use rustls::pki_types::CertificateDer;
use tonic::Status;
use tracing::{debug, error, info, warn};

use crate::backoff::Backoff;
use crate::clock::unix_ms;
use crate::identity::{Identity, IdentityDir, IdentityError, Node};
use crate::node::NodeRpc;

/// Tries when an answer is lost; the same key is answered again.
const TRIES: u32 = 4;
/// Tries while stand-bys answer: for longer than it takes one to take over.
const TRIES_FAILOVER: u32 = 40;
const STANDBY: Duration = Duration::from_millis(300);
/// How long the coordinator may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest sleep before the clock is looked at again: machines are suspended, clocks are set.
const NAP: Duration = Duration::from_mins(1);

/// Why this machine did not become a member.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error("the join token cannot be used: {0}")]
    Token(CertError),
    #[error("cannot join: {0}")]
    Connect(CertError),
    #[error("the coordinator refuses the token: {0}")]
    Refused(String),
    #[error("the node name `{name}` is refused: {message}; choose another with --name")]
    Name { name: String, message: String },
    #[error("the coordinator cannot enrol this node now: {0}; try again")]
    Later(String),
    #[error("the coordinator answered with a certificate that is not for this node: {0}")]
    Answer(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Joins the mesh that a token names. The key is made here and kept: when an answer is lost, the
/// same key gets the same certificate again.
pub async fn join(dir: &IdentityDir, token: &str, name: &str) -> Result<Node, EnrollError> {
    let mut token = JoinToken::parse(token).map_err(EnrollError::Token)?;
    let key = dir.key()?;
    let csr_der = key.csr_der().map_err(IdentityError::from)?;
    let mut backoff = Backoff::new(Duration::from_millis(300), Duration::from_secs(3));
    let mut tries = 0;
    let answer = loop {
        tries += 1;
        // Nothing of the token leaves before the server has proved itself by the pin.
        let channel = pinned_channel(&token).await.map_err(EnrollError::Connect)?;
        let request = JoinRequest {
            token_id: token.id.clone(),
            secret: token.secret.to_vec(),
            csr_der: csr_der.clone(),
            name: name.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let mut client = EnrollmentClient::new(channel);
        let late = |_| Code::Timeout.status("no answer in time");
        let call = tokio::time::timeout(PATIENCE, client.join(request)).await;
        match call.map_err(late).and_then(|answer| answer) {
            Ok(answer) => break answer.into_inner(),
            Err(status) => match join_error(&status, name) {
                // A stand-by answered: the leader is elsewhere, or about to be there.
                EnrollError::Later(why) if tries < TRIES_FAILOVER && leader_in(&status).is_some() => {
                    let leader = leader_in(&status).unwrap_or_default();
                    if leader.is_empty() {
                        token.endpoints.rotate_left(1);
                    }
                    to_front(&mut token.endpoints, &leader);
                    debug!(%why, ?leader, "going on to the leader");
                    tokio::time::sleep(STANDBY).await;
                }
                EnrollError::Later(why) if tries < TRIES => {
                    warn!(%why, "the join was not answered; asking again");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
                error => return Err(error),
            },
        }
    };
    let wrong = |why: &str| EnrollError::Answer(why.to_owned());
    let mesh: MeshId = answer.mesh_id.parse().map_err(|_| wrong("its mesh id is none"))?;
    if mesh != token.mesh {
        return Err(wrong("it names another mesh than the token"));
    }
    let node_id: NodeId = answer.node_id.parse().map_err(|_| wrong("its node id is none"))?;
    let cert = CertificateDer::from(answer.certificate_der);
    check(&cert, mesh, node_id, &key).map_err(EnrollError::Answer)?;
    if answer.endpoints.is_empty() {
        return Err(wrong("it names no address of the coordinator"));
    }
    let node =
        Node { mesh, node: node_id, name: answer.name, endpoints: answer.endpoints, issued_at_ms: unix_ms() };
    dir.save(&node, &cert, &CertificateDer::from(answer.ca_der))?;
    info!(node = %node.node, name = %node.name, mesh = %node.mesh, "joined");
    Ok(node)
}

fn join_error(status: &Status, name: &str) -> EnrollError {
    let message = names::escape(status.message());
    match Code::of(status) {
        Code::Conflict => EnrollError::Name { name: name.to_owned(), message },
        Code::Invalid | Code::NotFound | Code::Unauthenticated | Code::Denied | Code::Version => {
            EnrollError::Refused(message)
        }
        Code::Exhausted | Code::Stale | Code::Unavailable | Code::Timeout | Code::Internal => {
            EnrollError::Later(message)
        }
    }
}

/// Checks that a certificate is for this node and this key.
fn check(cert: &CertificateDer<'static>, mesh: MeshId, node: NodeId, key: &NodeKey) -> Result<(), String> {
    let holder = identity_of(cert, mesh).map_err(|error| error.to_string())?;
    if holder != Holder::Node(node) {
        return Err(format!("it names {holder}"));
    }
    let of_key = mesh_certs::key_fingerprint(cert).map_err(|error| error.to_string())?;
    if of_key == key.fingerprint() { Ok(()) } else { Err("it is for another key".to_owned()) }
}

/// Renews the certificate at half of its life, with jitter, for as long as the daemon runs. The
/// open connection stays; the next one shows the new certificate.
pub async fn keep_renewed(dir: IdentityDir, mut identity: Identity, cert: Arc<ClientCert>, rpc: NodeRpc) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    let mut at = due(&identity);
    loop {
        let left = (at - Utc::now()).to_std().unwrap_or_default();
        if !left.is_zero() {
            tokio::time::sleep(left.min(NAP)).await;
            continue;
        }
        match renew(&dir, &mut identity, &cert, &rpc).await {
            Ok(()) => {
                let until = identity.not_after().map(|end| end.to_rfc3339()).unwrap_or_default();
                info!(not_after = until, "certificate renewed");
                backoff.reset();
                at = due(&identity);
            }
            Err(why) => {
                let wait = backoff.next_wait();
                match identity.not_after() {
                    Ok(end) if end < Utc::now() => error!(
                        %why,
                        "the certificate has expired and cannot be renewed; join again with a new token: \
                         agent run --join TOKEN"
                    ),
                    Ok(_) | Err(_) => warn!(%why, ?wait, "the certificate is not renewed yet"),
                }
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// Half of the certificate's life, less up to a tenth, so that many nodes do not ask at once.
fn due(identity: &Identity) -> DateTime<Utc> {
    let issued = DateTime::from_timestamp_millis(identity.node.issued_at_ms as i64).unwrap_or_default();
    let end = identity.not_after().unwrap_or(issued);
    let half = (end - issued) / 2;
    let jitter = half.num_milliseconds().max(0) / 10;
    issued + half - chrono::Duration::milliseconds(rand::random_range(0..=jitter))
}

async fn renew(
    dir: &IdentityDir,
    identity: &mut Identity,
    cert: &ClientCert,
    rpc: &NodeRpc,
) -> Result<(), String> {
    let csr_der = identity.key.csr_der().map_err(|error| error.to_string())?;
    let mut client = rpc.client();
    let call = client.renew_certificate(RenewCertificateRequest { csr_der });
    let answer = tokio::time::timeout(PATIENCE, call).await.map_err(|_| "no answer in time")?;
    let answer = answer.map_err(|status| names::escape(status.message()))?.into_inner();
    let renewed = CertificateDer::from(answer.certificate_der);
    check(&renewed, identity.node.mesh, identity.node.node, &identity.key)?;
    let mut node = identity.node.clone();
    node.issued_at_ms = unix_ms();
    if !answer.endpoints.is_empty() {
        node.endpoints = answer.endpoints;
    }
    dir.renewed(&node, &renewed).map_err(|error| error.to_string())?;
    cert.replace(renewed.clone(), identity.key.private_key()).map_err(|error| error.to_string())?;
    identity.node = node;
    identity.cert = renewed;
    Ok(())
}

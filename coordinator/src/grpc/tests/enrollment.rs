//! Nodes join.

use std::time::Duration;

use mesh_certs::{Closer, Identity, JoinToken, NodeKey, PeerInfo, identity_of};
use mesh_proto::{
    code::Code,
    v1::{CreateTokenRequest, JoinRequest, JoinResponse, enrollment_server::Enrollment as _},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use super::{Mesh, key, until};
use crate::{
    grpc::{
        enrollment::EnrollmentService,
        identities::Identities,
        rate::{Rate, RateLimiter},
    },
    refusals::Refusals,
    spawn::spawn,
};

impl Mesh {
    fn enrollment(&self, burst: f64) -> EnrollmentService {
        let (refusals, audit) = Refusals::new();
        // It ends with the last who could note one.
        let _written = spawn("audit", audit.run(self.store.clone(), CancellationToken::new()));
        EnrollmentService {
            core: self.core.clone(),
            store: self.store.clone(),
            ca: self.ca.clone(),
            mesh: self.ca.mesh(),
            identities: Identities::new(CancellationToken::new()),
            lifetime: Duration::from_hours(1),
            directory: super::directory(),
            joins: RateLimiter::new(Rate { per_second: 0.001, burst, max_callers: 10 }),
            refusals,
        }
    }

    async fn token(&self, uses: u32) -> JoinToken {
        let request = CreateTokenRequest { uses, ..CreateTokenRequest::default() };
        let made = self.access().create_token(request).await.unwrap().into_inner();
        JoinToken::parse(&made.token).unwrap()
    }
}

async fn join(
    service: &EnrollmentService,
    token: &JoinToken,
    key: &NodeKey,
    name: &str,
) -> Result<JoinResponse, Status> {
    let mut request = Request::new(JoinRequest {
        token_id: token.id.clone(),
        secret: token.secret.to_vec(),
        csr_der: key.csr_der().unwrap(),
        version: String::new(),
        name: name.to_owned(),
    });
    let addr = "192.0.2.7:1234".parse().unwrap();
    request.extensions_mut().insert(PeerInfo { addr, opened: 0, peer: None, closer: Closer::default() });
    Ok(service.join(request).await?.into_inner())
}

#[tokio::test]
async fn a_node_joins_with_its_token_and_a_lost_reply_is_given_again() {
    let mesh = Mesh::new().await;
    let (service, token, key) = (mesh.enrollment(100.0), mesh.token(1).await, key());
    let first = join(&service, &token, &key, "amber").await.unwrap();
    let certificate = first.certificate_der.clone().into();
    let node = first.node_id.parse().unwrap();
    assert_eq!(identity_of(&certificate, mesh.ca.mesh()).unwrap(), Identity::Node(node));
    assert_eq!(mesh_certs::key_fingerprint(&certificate).unwrap(), key.fingerprint());
    assert_eq!((first.name.as_str(), &first.endpoints[..]), ("amber", &["mesh.example:7443".to_owned()][..]));
    let again = join(&service, &token, &key, "amber").await.unwrap();
    assert_eq!((again.node_id, again.certificate_der), (first.node_id, first.certificate_der));
    let other = join(&service, &token, &super::key(), "birch").await.unwrap_err();
    assert_eq!(Code::of(&other), Code::Denied, "the token was for one");
    assert_eq!(mesh.audited("node.join").await, 1);
    until(async || mesh.audited("node.join.refused").await == 1).await;
}

#[tokio::test]
async fn every_refusal_of_a_token_looks_alike() {
    let mesh = Mesh::new().await;
    let (service, good) = (mesh.enrollment(100.0), mesh.token(1).await);
    let unknown = JoinToken { id: "unknown".to_owned(), ..mesh.token(1).await };
    let wrong = JoinToken { secret: [0; 32], ..mesh.token(1).await };
    join(&service, &good, &key(), "amber").await.unwrap();
    let mut told = Vec::new();
    for token in [unknown, wrong, good] {
        let status = join(&service, &token, &key(), "birch").await.unwrap_err();
        assert_eq!(Code::of(&status), Code::Denied);
        told.push(status.message().to_owned());
    }
    assert!(told.iter().all(|text| *text == told[0]), "{told:?}");
    // The audit tells them apart.
    until(async || mesh.audited("node.join.refused").await == 3).await;
}

#[tokio::test]
async fn a_name_in_use_or_out_of_form_is_told() {
    let mesh = Mesh::new().await;
    let (service, token) = (mesh.enrollment(100.0), mesh.token(5).await);
    join(&service, &token, &key(), "amber").await.unwrap();
    let again = join(&service, &token, &key(), "amber").await.unwrap_err();
    assert_eq!(Code::of(&again), Code::Conflict);
    assert!(again.message().contains("another node is called \"amber\""), "{}", again.message());
    let bad = join(&service, &token, &key(), "Amber!").await.unwrap_err();
    assert_eq!(Code::of(&bad), Code::Invalid);
}

#[tokio::test]
async fn joins_are_counted_by_address() {
    let mesh = Mesh::new().await;
    let (service, token) = (mesh.enrollment(2.0), mesh.token(5).await);
    for name in ["amber", "birch"] {
        join(&service, &token, &key(), name).await.unwrap();
    }
    let status = join(&service, &token, &key(), "cedar").await.unwrap_err();
    assert_eq!(Code::of(&status), Code::Exhausted, "{status}");
}

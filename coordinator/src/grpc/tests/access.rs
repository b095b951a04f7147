//! Join tokens as an admin sees them.

use mesh_certs::JoinToken;
use mesh_proto::{
    code::Code,
    v1::{CreateTokenRequest, ListTokensRequest, Page, RevokeTokenRequest},
};

use super::Mesh;

#[tokio::test]
async fn a_token_names_this_mesh_and_is_listed_without_its_secret() {
    let mesh = Mesh::new().await;
    let request = CreateTokenRequest { uses: 0, ttl_ms: 60_000, node: "amber".to_owned() };
    let made = mesh.access().create_token(request).await.unwrap().into_inner();
    let token = JoinToken::parse(&made.token).unwrap();
    assert_eq!((token.mesh, token.pin, &token.id), (mesh.ca.mesh(), mesh.ca.pin(), &made.id));
    assert_eq!(token.endpoints, ["mesh.example:7444"]);
    assert_eq!(made.uses, 1, "one use unless more are asked for");
    for _ in 0..3 {
        mesh.access().create_token(CreateTokenRequest::default()).await.unwrap();
    }
    let (mut after, mut all) = (String::new(), Vec::new());
    loop {
        let page = Some(Page { limit: 3, after });
        let answer = mesh.access().list_tokens(ListTokensRequest { page }).await.unwrap().into_inner();
        all.extend(answer.tokens);
        after = answer.next;
        if after.is_empty() {
            break;
        }
    }
    assert_eq!(all.len(), 4);
    let first = all.last().unwrap();
    assert_eq!((&first.id, first.node.as_str(), first.created_by.as_str()), (&made.id, "amber", "ada"));
    assert_eq!(first.expires_at_ms - first.created_at_ms, 60_000);
    assert_eq!(all[0].expires_at_ms - all[0].created_at_ms, 600_000, "ten minutes unless said otherwise");
    mesh.access().revoke_token(RevokeTokenRequest { id: made.id.clone() }).await.unwrap();
    let answer = mesh.access().list_tokens(ListTokensRequest::default()).await.unwrap().into_inner();
    assert!(answer.tokens.last().unwrap().revoked);
}

#[tokio::test]
async fn a_token_out_of_bounds_is_not_made() {
    let mesh = Mesh::new().await;
    let day = 24 * 3600 * 1000;
    for request in [
        CreateTokenRequest { uses: 10_001, ..CreateTokenRequest::default() },
        CreateTokenRequest { ttl_ms: 30 * day + 1, ..CreateTokenRequest::default() },
        CreateTokenRequest { ttl_ms: u64::MAX, ..CreateTokenRequest::default() },
        CreateTokenRequest { node: "A b".to_owned(), ..CreateTokenRequest::default() },
    ] {
        let status = mesh.access().create_token(request).await.unwrap_err();
        assert_eq!(Code::of(&status), Code::Invalid, "{status}");
    }
    let status = mesh.access().revoke_token(RevokeTokenRequest { id: "none".to_owned() }).await.unwrap_err();
    assert_eq!(Code::of(&status), Code::NotFound);
    assert_eq!(mesh.audited("token.create").await, 0);
}

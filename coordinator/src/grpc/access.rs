//! The Access service: join tokens.

use std::time::Duration;

use mesh_certs::{JoinToken, Pin, hash_secret};
use mesh_proto::{
    code::Code,
    ids::MeshId,
    names::check_name,
    v1::{
        CreateTokenRequest, CreateTokenResponse, ListTokensRequest, ListTokensResponse, RevokeTokenRequest,
        RevokeTokenResponse, TokenInfo, access_server::Access,
    },
};
use tonic::{Request, Response, Status};

use super::{auth::Caller, convert};
use crate::{
    commit::Core,
    directory::Directory,
    store::{Store, access::NewToken},
};

/// Most uses of one token.
const MAX_USES: u32 = 10_000;
/// Longest life of a token.
const MAX_TTL: Duration = Duration::from_hours(30 * 24);

/// Serves tokens.
pub struct AccessService {
    pub core: Core,
    pub store: Store,
    pub mesh: MeshId,
    pub pin: Pin,
    /// Its ports for joining are put into tokens.
    pub directory: Directory,
    pub default_ttl: Duration,
}

#[tonic::async_trait]
impl Access for AccessService {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let created_by = Caller::of(&request)?.user()?.to_owned();
        let request = request.into_inner();
        self.core.ready()?;
        let node = (!request.node.is_empty()).then_some(request.node);
        if let Some(name) = &node {
            check_name(name)
                .map_err(|error| Code::Invalid.status(format!("the node name {name:?} {error}")))?;
        }
        let uses = request.uses.max(1);
        if uses > MAX_USES {
            return Err(Code::Invalid.status(format!("a token has at most {MAX_USES} uses")));
        }
        let ttl = if request.ttl_ms == 0 { self.default_ttl } else { Duration::from_millis(request.ttl_ms) };
        if ttl > MAX_TTL {
            return Err(Code::Invalid.status("a token lives at most 30 days"));
        }
        let secret = JoinToken::new_secret();
        let id = uuid::Uuid::now_v7().simple().to_string();
        let token = JoinToken {
            endpoints: self.directory.joining(),
            mesh: self.mesh,
            pin: self.pin,
            id: id.clone(),
            secret,
        };
        let text = token.to_text().map_err(|error| Code::Internal.status(error.to_string()))?;
        let new = NewToken {
            id: id.clone(),
            secret_hash: hash_secret(&secret),
            node: node.clone(),
            uses,
            created_by,
            ttl_ms: ttl.as_millis() as u64,
        };
        let epoch = self.core.standing().epoch();
        let expires_at = self.store.create_token(epoch, &new).await?;
        Ok(Response::new(CreateTokenResponse {
            id,
            token: text,
            expires_at_ms: expires_at.timestamp_millis(),
            uses,
            node: node.unwrap_or_default(),
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        self.core.readable()?;
        let page = request.into_inner().page.unwrap_or_default();
        let limit = convert::limit(&page);
        let rows = self.store.tokens(&page.after, limit).await?;
        let next = if rows.len() < limit as usize { None } else { rows.last() };
        let next = next.map(|last| last.id.clone()).unwrap_or_default();
        let tokens = rows
            .into_iter()
            .map(|row| TokenInfo {
                id: row.id,
                created_at_ms: row.created_at.timestamp_millis(),
                expires_at_ms: row.expires_at.timestamp_millis(),
                uses: row.uses,
                used: row.used,
                node: row.node.unwrap_or_default(),
                created_by: row.created_by,
                revoked: row.revoked,
            })
            .collect();
        Ok(Response::new(ListTokensResponse { tokens, next }))
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let actor = Caller::of(&request)?.user()?.to_owned();
        self.core.ready()?;
        let epoch = self.core.standing().epoch();
        let id = &request.get_ref().id;
        if self.store.revoke_token(epoch, id, &actor).await? {
            Ok(Response::new(RevokeTokenResponse {}))
        } else {
            Err(Code::NotFound.status("there is no such token"))
        }
    }
}

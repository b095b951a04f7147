//! Join tokens, enrolments and the audit. Ordinary transactions, but under the leader's
//! fence like every write.

use chrono::{DateTime, Utc};
use mesh_proto::ids::NodeId;

use super::{Store, StoreError, leader};

/// The audit's words for refusals; the last one counts those that are not there one by one.
pub const REFUSALS: [&str; 4] = ["connection.refused", "call.refused", "node.join.refused", "refused.more"];

/// A token's row, without its secret.
#[derive(Clone, Debug)]
pub struct TokenRecord {
    pub id: String,
    pub node: Option<String>,
    pub uses: u32,
    pub used: u32,
    pub created_by: String,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    pub revoked: bool,
}

/// A token as it is made.
#[derive(Clone, Debug)]
pub struct NewToken {
    pub id: String,
    pub secret_hash: [u8; 32],
    pub node: Option<String>,
    pub uses: u32,
    pub created_by: String,
    pub ttl_ms: u64,
}

/// What a joining node presents.
#[derive(Clone, Debug)]
pub struct Joining {
    pub token_id: String,
    pub secret: Vec<u8>,
    pub key_fingerprint: [u8; 32],
    pub name: String,
    /// The node that has this name and is gone: a token for the name gives its place to this key.
    pub vacant: Option<NodeId>,
}

/// The answer to a join, before a certificate is made.
#[derive(Clone, Debug)]
pub enum Admission {
    /// Make a certificate for this node. `returning`: its key was known.
    Admitted { node: NodeId, name: String, returning: bool },
    /// This key had this token's certificate already: the reply was lost.
    Again { node: NodeId, name: String, certificate: Vec<u8> },
    /// Unknown, wrong secret, expired, used up, revoked, or for another node: said alike.
    Refused(&'static str),
    /// Another node has this name; known when the token is for just this name.
    NameTaken(Option<NodeId>),
}

impl Store {
    pub async fn create_token(&self, epoch: i64, token: &NewToken) -> Result<DateTime<Utc>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        leader::fence(&mut transaction, epoch).await?;
        let expires_at = sqlx::query_scalar!(
            "INSERT INTO join_tokens (id, secret_hash, node_name, uses, created_by, expires_at)
             VALUES ($1, $2, $3, $4, $5, now() + $6 * interval '1 millisecond') RETURNING expires_at",
            token.id,
            &token.secret_hash[..],
            token.node,
            token.uses as i32,
            token.created_by,
            token.ttl_ms as f64,
        )
        .fetch_one(&mut *transaction)
        .await?;
        audit(&mut transaction, &token.created_by, "token.create", &token.id, "").await?;
        transaction.commit().await?;
        Ok(expires_at)
    }

    /// Newest first, below `before`.
    pub async fn tokens(&self, before: &str, limit: u32) -> Result<Vec<TokenRecord>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT id, node_name, uses, used, created_by, created_at, expires_at, revoked_at IS NOT NULL AS "revoked!"
               FROM join_tokens
               WHERE $1 = '' OR (created_at, id) < (SELECT created_at, id FROM join_tokens WHERE id = $1)
               ORDER BY created_at DESC, id DESC LIMIT $2"#,
            before,
            i64::from(limit),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| TokenRecord {
                id: row.id,
                node: row.node_name,
                uses: row.uses as u32,
                used: row.used as u32,
                created_by: row.created_by,
                created_at: row.created_at,
                expires_at: row.expires_at,
                revoked: row.revoked,
            })
            .collect())
    }

    /// Whether there was such a token.
    pub async fn revoke_token(&self, epoch: i64, id: &str, actor: &str) -> Result<bool, StoreError> {
        let mut transaction = self.pool.begin().await?;
        leader::fence(&mut transaction, epoch).await?;
        let hit = sqlx::query!(
            "UPDATE join_tokens SET revoked_at = COALESCE(revoked_at, now()) WHERE id = $1",
            id,
        )
        .execute(&mut *transaction)
        .await?
        .rows_affected();
        audit(&mut transaction, actor, "token.revoke", id, "").await?;
        transaction.commit().await?;
        Ok(hit > 0)
    }

    /// Admits a node by its token: one use is counted, the node's row stands, the certificate
    /// that `issue` makes is kept, all in one transaction.
    pub async fn admit<E: From<StoreError>>(
        &self,
        epoch: i64,
        joining: &Joining,
        issue: impl FnOnce(NodeId) -> Result<Vec<u8>, E>,
    ) -> Result<(Admission, Vec<u8>), E> {
        let mut transaction = self.pool.begin().await.map_err(StoreError::from)?;
        leader::fence(&mut transaction, epoch).await?;
        let fingerprint = &joining.key_fingerprint[..];
        let token = sqlx::query!(
            r#"SELECT secret_hash, node_name, uses - used AS "left!", expires_at < now() AS "expired!",
                revoked_at IS NOT NULL AS "revoked!"
               FROM join_tokens WHERE id = $1 FOR UPDATE"#,
            joining.token_id,
        )
        .fetch_optional(&mut *transaction)
        .await
        .map_err(StoreError::from)?;
        let refused = |why| Ok((Admission::Refused(why), Vec::new()));
        let Some(token) = token else { return refused("unknown token") };
        let hash: [u8; 32] =
            token.secret_hash.as_slice().try_into().map_err(|_| StoreError::Corrupt("token hash"))?;
        if !mesh_certs::same_secret(&joining.secret, &hash) {
            return refused("wrong secret");
        }
        if token.revoked {
            return refused("revoked");
        }
        // A reply that was lost: the same key gets the same certificate, whatever became of the token since.
        let before = sqlx::query!(
            "SELECT e.node_id, e.certificate, n.name FROM enrolments e JOIN nodes n ON n.id = e.node_id
             WHERE e.token_id = $1 AND e.key_fingerprint = $2",
            joining.token_id,
            fingerprint,
        )
        .fetch_optional(&mut *transaction)
        .await
        .map_err(StoreError::from)?;
        if let Some(before) = before {
            let node = NodeId(before.node_id);
            return Ok((
                Admission::Again { node, name: before.name, certificate: before.certificate },
                Vec::new(),
            ));
        }
        if token.expired {
            return refused("expired");
        }
        if token.left < 1 {
            return refused("used up");
        }
        if token.node_name.as_ref().is_some_and(|name| *name != joining.name) {
            return refused("for another node");
        }
        let known = sqlx::query!("SELECT id, name FROM nodes WHERE key_fingerprint = $1", fingerprint)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(StoreError::from)?;
        let (node, name, returning) = if let Some(known) = known {
            (NodeId(known.id), known.name, true)
        } else {
            let node = NodeId::generate();
            let made = sqlx::query!(
                "INSERT INTO nodes (id, name, key_fingerprint) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING",
                node.0,
                joining.name,
                fingerprint,
            )
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::from)?
            .rows_affected();
            if made == 0 {
                let holder =
                    sqlx::query_scalar!("SELECT id FROM nodes WHERE name = $1 FOR UPDATE", joining.name,)
                        .fetch_one(&mut *transaction)
                        .await
                        .map_err(StoreError::from)?;
                let holder = token.node_name.is_some().then_some(NodeId(holder));
                let Some(node) = holder.filter(|_| holder == joining.vacant) else {
                    return Ok((Admission::NameTaken(holder), Vec::new()));
                };
                sqlx::query!("UPDATE nodes SET key_fingerprint = $2 WHERE id = $1", node.0, fingerprint)
                    .execute(&mut *transaction)
                    .await
                    .map_err(StoreError::from)?;
                (node, joining.name.clone(), true)
            } else {
                (node, joining.name.clone(), false)
            }
        };
        let certificate = issue(node)?;
        sqlx::query!("UPDATE join_tokens SET used = used + 1 WHERE id = $1", joining.token_id)
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::from)?;
        sqlx::query!(
            "INSERT INTO enrolments (token_id, key_fingerprint, node_id, certificate) VALUES ($1, $2, $3, $4)",
            joining.token_id,
            fingerprint,
            node.0,
            certificate,
        )
        .execute(&mut *transaction)
        .await
        .map_err(StoreError::from)?;
        audit(
            &mut transaction,
            &format!("token/{}", joining.token_id),
            "node.join",
            &name,
            &node.to_string(),
        )
        .await?;
        transaction.commit().await.map_err(StoreError::from)?;
        Ok((Admission::Admitted { node, name, returning }, certificate))
    }

    /// Notes a security event.
    pub async fn note(
        &self,
        actor: &str,
        action: &str,
        subject: &str,
        detail: &str,
    ) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await?;
        audit(&mut connection, actor, action, subject, detail).await
    }

    /// Keeps the latest refusals of the audit only; all else that stands there stays.
    pub async fn forget_refusals(&self, keep: u32) -> Result<(), StoreError> {
        let refusals = REFUSALS.map(str::to_owned);
        sqlx::query!(
            "DELETE FROM audit WHERE action = ANY ($1) AND id <=
               (SELECT id FROM audit WHERE action = ANY ($1) ORDER BY id DESC OFFSET $2 LIMIT 1)",
            &refusals[..],
            i64::from(keep),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

pub(super) async fn audit(
    connection: &mut sqlx::PgConnection,
    actor: &str,
    action: &str,
    subject: &str,
    detail: &str,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO audit (actor, action, subject, detail) VALUES ($1, $2, $3, $4)",
        actor,
        action,
        subject,
        detail,
    )
    .execute(connection)
    .await?;
    Ok(())
}

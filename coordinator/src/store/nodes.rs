//! Nodes' rows.

use chrono::{DateTime, Utc};
use mesh_proto::{
    ids::{BootId, NodeId},
    v1::NodeFacts,
};
use prost::Message as _;

use super::{Store, StoreError};
use crate::engine::event::NodeRecord;

/// A node's row with what readers want beside the record.
#[derive(Clone, Debug)]
pub struct StoredNode {
    pub record: NodeRecord,
    pub facts: Option<NodeFacts>,
    pub joined_at: DateTime<Utc>,
}

impl Store {
    pub async fn node(&self, id: NodeId) -> Result<Option<StoredNode>, StoreError> {
        sqlx::query!(
            "SELECT id, name, boot_id, cordoned, draining, tags, facts, joined_at FROM nodes WHERE id = $1",
            id.0,
        )
        .fetch_optional(&self.pool)
        .await?
        .map(|row| {
            let record = record(row.id, row.name, row.boot_id, (row.cordoned, row.draining), row.tags)?;
            Ok(StoredNode { record, facts: facts(row.facts.as_deref())?, joined_at: row.joined_at })
        })
        .transpose()
    }

    /// The fingerprint of the key that is the node's now.
    pub async fn node_key(&self, id: NodeId) -> Result<Option<Vec<u8>>, StoreError> {
        let key = sqlx::query_scalar!("SELECT key_fingerprint FROM nodes WHERE id = $1", id.0)
            .fetch_optional(&self.pool)
            .await?;
        Ok(key)
    }

    /// The id behind a node's name or the text of its id. A node may be called like the id of
    /// another: the id counts.
    pub async fn node_id(&self, name: &str) -> Result<Option<NodeId>, StoreError> {
        let id = sqlx::query_scalar!(
            "SELECT id FROM nodes WHERE name = $1 OR id::text = $1 ORDER BY id::text = $1 DESC LIMIT 1",
            name
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(id.map(NodeId))
    }

    /// By name, after `after`.
    pub async fn nodes(&self, after: &str, limit: u32) -> Result<Vec<StoredNode>, StoreError> {
        sqlx::query!(
            r#"SELECT id, name, boot_id, cordoned, draining, tags, facts, joined_at FROM nodes
               WHERE name COLLATE "C" > $1 ORDER BY name COLLATE "C" LIMIT $2"#,
            after,
            i64::from(limit),
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(|row| {
            let record = record(row.id, row.name, row.boot_id, (row.cordoned, row.draining), row.tags)?;
            Ok(StoredNode { record, facts: facts(row.facts.as_deref())?, joined_at: row.joined_at })
        })
        .collect()
    }
}

pub(super) fn record(
    id: uuid::Uuid,
    name: String,
    boot: Option<uuid::Uuid>,
    (cordoned, draining): (bool, bool),
    tags: serde_json::Value,
) -> Result<NodeRecord, StoreError> {
    Ok(NodeRecord {
        id: NodeId(id),
        name,
        boot: boot.map(BootId),
        cordoned,
        draining,
        tags: serde_json::from_value(tags).map_err(|_| StoreError::Corrupt("node tags"))?,
    })
}

fn facts(bytes: Option<&[u8]>) -> Result<Option<NodeFacts>, StoreError> {
    bytes.map(|bytes| NodeFacts::decode(bytes).map_err(|_| StoreError::Corrupt("node facts"))).transpose()
}

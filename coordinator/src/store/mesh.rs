//! The mesh's identity.

use mesh_proto::ids::MeshId;

use super::{Store, StoreError};

impl Store {
    /// The mesh's id; made now if the database is new.
    pub async fn mesh_id(&self) -> Result<MeshId, StoreError> {
        let id = sqlx::query_scalar!(
            "WITH made AS (INSERT INTO mesh (id) VALUES ($1) ON CONFLICT DO NOTHING RETURNING id)
             SELECT id AS \"id!\" FROM made UNION ALL SELECT id FROM mesh LIMIT 1",
            MeshId::generate().0,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(MeshId(id))
    }
}

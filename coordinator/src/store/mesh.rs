//! The mesh's identity.

use mesh_proto::ids::MeshId;
use uuid::Uuid;

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

    /// The id in the marker file of the shared store, once there is one.
    pub async fn store_id(&self) -> Result<Option<Uuid>, StoreError> {
        Ok(sqlx::query_scalar!("SELECT store FROM mesh").fetch_one(&self.pool).await?)
    }

    /// Names the shared store, unless it has a name; says which it has.
    pub async fn name_store(&self, id: Uuid) -> Result<Uuid, StoreError> {
        let id = sqlx::query_scalar!(
            r#"UPDATE mesh SET store = COALESCE(store, $1) RETURNING store AS "store!""#,
            id
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(id)
    }
}

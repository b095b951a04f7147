//! The coordinators of the mesh and where they are reached.

use mesh_proto::ids::CoordinatorId;
use sqlx::PgConnection;

use super::{Store, StoreError};

/// One that was not seen for so long is not told to anybody any more, in hours.
const FORGOTTEN_HOURS: f64 = 24.0 * 7.0;

/// Where a coordinator is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// `host:port` of the members' port.
    pub members: Vec<String>,
    /// `host:port` of the port for joining.
    pub joining: Vec<String>,
}

/// Those of the leader, if there is one and it is known.
pub async fn of_leader(connection: &mut PgConnection) -> Result<Addresses, StoreError> {
    let row = sqlx::query!(
        "SELECT c.endpoints, c.join_endpoints FROM coordinators c JOIN leader l ON l.holder = c.id"
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map_or_else(Addresses::default, |row| Addresses {
        members: row.endpoints,
        joining: row.join_endpoints,
    }))
}

/// A coordinator says where it is reached. It says nothing of the mesh, so it needs no lead.
pub async fn announce(
    connection: &mut PgConnection,
    id: CoordinatorId,
    addresses: &Addresses,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO coordinators (id, endpoints, join_endpoints, seen_at) VALUES ($1, $2, $3, now())
         ON CONFLICT (id) DO UPDATE SET endpoints = $2, join_endpoints = $3, seen_at = now()",
        id.0,
        &addresses.members,
        &addresses.joining,
    )
    .execute(connection)
    .await?;
    Ok(())
}

impl Store {
    /// Those of every coordinator that was seen lately, the leader's first.
    pub async fn addresses(&self) -> Result<Addresses, StoreError> {
        let rows = sqlx::query!(
            "SELECT c.endpoints, c.join_endpoints FROM coordinators c, leader l
             WHERE c.id = l.holder OR c.seen_at > now() - $1 * interval '1 hour'
             ORDER BY (c.id = l.holder) DESC NULLS LAST, c.seen_at DESC, c.id",
            FORGOTTEN_HOURS,
        )
        .fetch_all(self.pool())
        .await?;
        let mut all = Addresses::default();
        for row in rows {
            all.members.extend(row.endpoints);
            all.joining.extend(row.join_endpoints);
        }
        Ok(all)
    }

    /// A coordinator says where it is reached, and that it is there.
    pub async fn announce(&self, id: CoordinatorId, addresses: &Addresses) -> Result<(), StoreError> {
        let mut connection = self.pool().acquire().await?;
        announce(&mut connection, id, addresses).await
    }
}

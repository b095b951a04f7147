//! The mesh's CA as stand-bys get it: its certificate, and its key under a seal.

use super::{Store, StoreError};
use crate::seal::Sealed;

/// The CA in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    pub certificate_pem: String,
    pub key: Sealed,
}

impl Store {
    /// None: the mesh has one coordinator, which keeps its CA to itself.
    pub async fn authority(&self) -> Result<Option<Authority>, StoreError> {
        let row = sqlx::query!("SELECT certificate, salt, rounds, nonce, sealed_key FROM authority")
            .fetch_optional(self.pool())
            .await?;
        Ok(row.map(|row| Authority {
            certificate_pem: row.certificate,
            key: Sealed {
                salt: row.salt,
                rounds: row.rounds.cast_unsigned(),
                nonce: row.nonce,
                text: row.sealed_key,
            },
        }))
    }

    /// Puts the CA into the database, unless there is one.
    pub async fn share_authority(&self, authority: &Authority) -> Result<(), StoreError> {
        sqlx::query!(
            "INSERT INTO authority (certificate, salt, rounds, nonce, sealed_key)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            authority.certificate_pem,
            authority.key.salt,
            authority.key.rounds.cast_signed(),
            authority.key.nonce,
            authority.key.text,
        )
        .execute(self.pool())
        .await?;
        Ok(())
    }
}

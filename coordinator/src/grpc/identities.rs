//! Who is let in, for as long as they are: one token for each identity, cancelled when it is
//! revoked, when the newest certificate seen of it has expired, or when the process shuts down.
//!
//! TLS looks at a certificate once, at the handshake. So every RPC asks here, and every stream
//! holds a guard and ends with it. A renewed certificate carries the identity's streams on,
//! though their connection still shows the old one.
//!
//! May enter: the life of identities. What they may do is `auth`'s business.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use mesh_certs::Identity;
use mesh_proto::code::Code;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

/// So often expired certificates are looked for; revocations act at once.
const SWEEP: Duration = Duration::from_millis(500);

/// Why an identity is no longer served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Revoked,
    Expired,
    ShuttingDown,
}

impl Ended {
    pub fn status(self) -> Status {
        match self {
            Self::Revoked => Code::Unauthenticated
                .status("this certificate was revoked: join or log in again with a new token or credential"),
            Self::Expired => Code::Unauthenticated
                .status("this certificate has expired: join again with a new token, or get a new credential"),
            Self::ShuttingDown => Code::Unavailable.status("the coordinator is shutting down"),
        }
    }
}

/// The identities seen. Bounded by the certificates that the mesh's CA issued and that have
/// not expired, and the revoked ones.
pub struct Identities {
    shutdown: CancellationToken,
    entries: Mutex<HashMap<Identity, Entry>>,
}

struct Entry {
    life: Arc<Life>,
    /// The newest expiry of a certificate seen.
    not_after: DateTime<Utc>,
    revoked: bool,
}

struct Life {
    token: CancellationToken,
    /// Set before the token is cancelled; unset when it was the process that ended.
    ended: OnceLock<Ended>,
}

impl Life {
    fn end(&self, why: Ended) {
        // Only the first reason counts.
        let _ = self.ended.set(why);
        self.token.cancel();
    }
}

/// Held by a stream: it ends when this does.
#[derive(Clone)]
pub struct IdentityGuard(Arc<Life>);

impl IdentityGuard {
    /// Why it has ended, if it has.
    pub fn has_ended(&self) -> Option<Ended> {
        self.0.token.is_cancelled().then(|| self.reason())
    }

    /// Waits for the end.
    pub async fn ended(&self) -> Ended {
        self.0.token.cancelled().await;
        self.reason()
    }

    /// The same, as a future that can be kept.
    pub fn token(&self) -> WaitForCancellationFutureOwned {
        self.0.token.clone().cancelled_owned()
    }

    fn reason(&self) -> Ended {
        self.0.ended.get().copied().unwrap_or(Ended::ShuttingDown)
    }
}

impl Identities {
    /// An empty registry; every guard ends with `shutdown`.
    pub fn new(shutdown: CancellationToken) -> Arc<Self> {
        Arc::new(Self { shutdown, entries: Mutex::default() })
    }

    /// Nothing that runs under the lock can leave the map half changed.
    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry<'a>(
        &self,
        entries: &'a mut HashMap<Identity, Entry>,
        identity: &Identity,
        not_after: DateTime<Utc>,
    ) -> &'a mut Entry {
        entries.entry(identity.clone()).or_insert_with(|| Entry {
            life: Arc::new(Life { token: self.shutdown.child_token(), ended: OnceLock::new() }),
            not_after,
            revoked: false,
        })
    }

    /// Whether a request on a connection whose certificate ends at `not_after` is served.
    pub fn guard(
        &self,
        identity: &Identity,
        not_after: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<IdentityGuard, Ended> {
        if self.shutdown.is_cancelled() {
            return Err(Ended::ShuttingDown);
        }
        let mut entries = self.lock();
        let newest = entries.get(identity).map_or(not_after, |entry| entry.not_after.max(not_after));
        if entries.get(identity).is_some_and(|entry| entry.revoked) {
            return Err(Ended::Revoked);
        }
        if newest <= now {
            return Err(Ended::Expired);
        }
        let entry = self.entry(&mut entries, identity, newest);
        entry.not_after = newest;
        Ok(IdentityGuard(Arc::clone(&entry.life)))
    }

    /// A new certificate was issued to the identity: what it has open goes on.
    pub fn renewed(&self, identity: &Identity, not_after: DateTime<Utc>) {
        let mut entries = self.lock();
        let entry = self.entry(&mut entries, identity, not_after);
        entry.not_after = entry.not_after.max(not_after);
    }

    /// Ends everything that the identity has open and lets nothing new in. For those known from
    /// before, call it at the start.
    pub fn revoke(&self, identity: &Identity) {
        let mut entries = self.lock();
        let entry = self.entry(&mut entries, identity, DateTime::<Utc>::MIN_UTC);
        entry.revoked = true;
        entry.life.end(Ended::Revoked);
    }

    /// For the handshake: a revoked identity gets no connection.
    pub fn is_revoked(&self, identity: &Identity) -> bool {
        self.lock().get(identity).is_some_and(|entry| entry.revoked)
    }

    /// Ends what has expired.
    pub fn sweep(&self, now: DateTime<Utc>) {
        self.lock().retain(|_, entry| {
            let expired = entry.not_after <= now;
            if expired {
                entry.life.end(Ended::Expired);
            }
            entry.revoked || !expired
        });
    }

    /// Sweeps until the process shuts down.
    pub async fn run(self: Arc<Self>) {
        while self.shutdown.run_until_cancelled(tokio::time::sleep(SWEEP)).await.is_some() {
            self.sweep(Utc::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    fn user(name: &str) -> Identity {
        Identity::User(name.into())
    }

    #[tokio::test]
    async fn a_revoked_identity_loses_its_streams_at_once_and_stays_out() {
        let identities = Identities::new(CancellationToken::new());
        let guard = identities.guard(&user("a"), at(100), at(0)).unwrap();
        let other = identities.guard(&user("b"), at(100), at(0)).unwrap();
        identities.revoke(&user("a"));
        assert_eq!(guard.ended().await, Ended::Revoked);
        assert_eq!(other.has_ended(), None);
        assert_eq!(identities.guard(&user("a"), at(900), at(0)).err(), Some(Ended::Revoked));
        identities.sweep(at(5000));
        assert!(identities.is_revoked(&user("a")), "a revocation was forgotten");
        assert!(!identities.is_revoked(&user("b")));
    }

    #[tokio::test]
    async fn a_renewal_carries_streams_past_the_first_certificate() {
        let identities = Identities::new(CancellationToken::new());
        let guard = identities.guard(&user("a"), at(10), at(0)).unwrap();
        identities.renewed(&user("a"), at(20));
        identities.sweep(at(15));
        assert_eq!(guard.has_ended(), None);
        // The old connection still shows the first certificate.
        assert!(identities.guard(&user("a"), at(10), at(15)).is_ok());
        identities.sweep(at(20));
        assert_eq!(guard.ended().await, Ended::Expired);
        assert_eq!(identities.guard(&user("a"), at(10), at(21)).err(), Some(Ended::Expired));
        // It joined again.
        let fresh = identities.guard(&user("a"), at(40), at(22)).unwrap();
        identities.sweep(at(30));
        assert_eq!((fresh.has_ended(), guard.has_ended()), (None, Some(Ended::Expired)));
    }

    #[tokio::test]
    async fn a_shutdown_ends_every_stream_and_lets_nothing_new_in() {
        let shutdown = CancellationToken::new();
        let identities = Identities::new(shutdown.clone());
        let guard = identities.guard(&user("a"), at(10), at(0)).unwrap();
        shutdown.cancel();
        assert_eq!(guard.ended().await, Ended::ShuttingDown);
        assert_eq!(identities.guard(&user("a"), at(10), at(0)).err(), Some(Ended::ShuttingDown));
        identities.run().await;
    }
}

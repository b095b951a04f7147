//! Who is let in, for as long as they are: one token for each identity, cancelled when it is
//! revoked, when the newest certificate seen of it has expired, or when the process shuts down.
//!
//! TLS looks at a certificate once, at the handshake. So every RPC asks here, every stream
//! holds a guard and ends with it, and connections are closed once their streams were told. A
//! renewed certificate carries the identity's streams on, though their connection still shows
//! the old one.
//!
//! May enter: the life of identities. What they may do is `auth`'s business.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use mesh_certs::{Closer, Identity, PeerInfo};
use mesh_proto::code::Code;
use tokio_util::sync::CancellationToken;
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
    connections: Vec<Closer>,
    /// A sweep saw the end: the next one closes the connections.
    told: bool,
}

struct Life {
    token: CancellationToken,
    /// Set before the token is cancelled; unset when it was the process that ended.
    ended: OnceLock<Ended>,
}

impl Life {
    fn new(shutdown: &CancellationToken) -> Arc<Self> {
        Arc::new(Self { token: shutdown.child_token(), ended: OnceLock::new() })
    }

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
        let entry = entries.entry(identity.clone()).or_insert_with(|| Entry {
            life: Life::new(&self.shutdown),
            not_after,
            revoked: false,
            connections: Vec::new(),
            told: false,
        });
        if not_after > entry.not_after {
            entry.not_after = not_after;
            self.revive(entry);
        }
        entry
    }

    /// One that had expired came back with a newer certificate.
    fn revive(&self, entry: &mut Entry) {
        if entry.life.ended.get() == Some(&Ended::Expired) && !entry.revoked {
            entry.life = Life::new(&self.shutdown);
            entry.told = false;
        }
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
        // The clock may have been set back since.
        self.revive(entry);
        Ok(IdentityGuard(Arc::clone(&entry.life)))
    }

    /// A connection was accepted: it is closed when its identity ends.
    pub fn connected(&self, info: &PeerInfo) {
        let Some(peer) = &info.peer else { return };
        let mut entries = self.lock();
        let connections = &mut self.entry(&mut entries, &peer.identity, peer.not_after).connections;
        if connections.len() == connections.capacity() {
            connections.retain(|closer| !closer.is_orphan());
        }
        connections.push(info.closer.clone());
    }

    /// A new certificate was issued to the identity: what it has open goes on.
    pub fn renewed(&self, identity: &Identity, not_after: DateTime<Utc>) {
        self.entry(&mut self.lock(), identity, not_after);
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

    /// Ends what has expired, and closes the connections of what ended before the last sweep,
    /// so that a stream's end has time to arrive.
    pub fn sweep(&self, now: DateTime<Utc>) {
        self.lock().retain(|_, entry| {
            if entry.not_after <= now {
                entry.life.end(Ended::Expired);
            }
            if !entry.life.token.is_cancelled() || !std::mem::replace(&mut entry.told, true) {
                return true;
            }
            for connection in entry.connections.drain(..) {
                connection.close();
            }
            entry.revoked
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
    use mesh_certs::Peer;

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

    fn connection(name: &str, not_after: DateTime<Utc>) -> PeerInfo {
        let identity = user(name);
        let peer = Peer { identity, not_after, fingerprint: [0; 32], key_fingerprint: [0; 32] };
        PeerInfo { addr: ([127, 0, 0, 1], 1).into(), opened: 0, peer: Some(peer), closer: Closer::default() }
    }

    #[test]
    fn the_connections_of_who_is_out_are_closed_and_no_others() {
        let identities = Identities::new(CancellationToken::new());
        let (revoked, expired, valid) =
            (connection("a", at(100)), connection("b", at(10)), connection("c", at(100)));
        for info in [&revoked, &expired, &valid] {
            identities.connected(info);
        }
        identities.revoke(&user("a"));
        identities.sweep(at(10));
        assert!(!revoked.closer.is_closed(), "closed before its streams could tell why");
        identities.sweep(at(11));
        let closed = [&revoked, &expired, &valid].map(|info| info.closer.is_closed());
        assert_eq!(closed, [true, true, false]);
        // One that joined again keeps its new connection, though the old certificate had expired.
        identities.connected(&connection("d", at(5)));
        identities.sweep(at(12));
        let again = connection("d", at(50));
        identities.connected(&again);
        identities.sweep(at(13));
        identities.sweep(at(14));
        assert!(!again.closer.is_closed());
        // A revoked one that slipped through its handshake meanwhile does not stay either.
        let late = connection("a", at(100));
        identities.connected(&late);
        identities.sweep(at(12));
        assert!(late.closer.is_closed());
    }

    #[test]
    fn connections_that_come_and_go_leave_nothing() {
        let identities = Identities::new(CancellationToken::new());
        let kept = connection("a", at(100));
        identities.connected(&kept);
        for _ in 0..1000 {
            identities.connected(&connection("a", at(100)));
        }
        let held = identities.lock()[&user("a")].connections.len();
        assert!(held < 10, "{held} connections are remembered, one is open");
        identities.revoke(&user("a"));
        identities.sweep(at(0));
        identities.sweep(at(0));
        assert!(kept.closer.is_closed());
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

//! The mesh's PKI: its CA and what it issues, identities (one SPIFFE URI a certificate),
//! join tokens, credentials, and both ends of the mutually authenticated connection.
//!
//! Invariants: a certificate names its holder in exactly one way (`identity`); what a
//! certificate says comes from the CA, never from the request for it (`ca`); an agent shows
//! its token to nobody whose CA it has not checked against the token's pin (`pinned`); a
//! TLS session is never resumed, so that every connection is judged anew (`server`).
//!
//! May enter: what at least two of coordinator, agent and meshctl need about keys,
//! certificates and TLS. Who may do what is decided elsewhere.

#![forbid(unsafe_code)]

mod accept;
mod alert;
pub mod ca;
pub mod client;
mod conn;
pub mod credential;
mod crowd;
mod dial;
mod error;
mod files;
pub mod identity;
pub mod key;
mod pinned;
mod route;
pub mod server;
mod spawn;
pub mod token;
mod trust;
mod x509;

pub use accept::{AcceptLimits, Refusal, incoming};
pub use ca::{Ca, Issued, KeyedCert, Pin};
pub use client::{ChannelOptions, ClientCert, ClientTls, channel, channel_on};
pub use conn::{Closer, Conn, Peer, PeerInfo};
pub use credential::Credential;
pub use dial::{ConnectError, LastError};
pub use error::CertError;
pub use files::write_private;
pub use identity::{Identity, identity_of};
pub use key::NodeKey;
pub use pinned::pinned_channel;
pub use route::{Route, leader_in, to_front};
pub use server::{ServerCert, join_config, mtls_config, mtls_config_with};
pub use token::{JoinToken, hash_secret, same_secret};
pub use trust::{Trust, check_member, install_provider};
pub use x509::{cert_fingerprint, key_fingerprint, not_after, pem_of};

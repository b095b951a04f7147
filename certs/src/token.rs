//! Join tokens: what an operator copies to a new machine. The text carries a checksum, so
//! that a token that was cut or altered on its way is told apart from one that is refused.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mesh_proto::{ids::MeshId, names};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use crate::{ca::Pin, error::CertError};

const PREFIX: &str = "mesh1.";
/// Bytes of the checksum at the end.
const CHECKSUM: usize = 6;
/// Longest text that is looked at.
const MAX_TEXT: usize = 8 * 1024;
const MAX_ENDPOINTS: usize = 16;
/// Its length is kept in one byte.
const MAX_ENDPOINT: usize = 255;

/// What a node needs to join: where, which mesh, and the secret that admits it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// `host:port` of the join port; 1 to 16.
    pub endpoints: Vec<String>,
    pub mesh: MeshId,
    /// Of the mesh's CA; checked before the secret is sent.
    pub pin: Pin,
    /// Names the token in lists and in the audit; no secret.
    pub id: String,
    pub secret: [u8; 32],
}

impl JoinToken {
    /// A new random secret.
    pub fn new_secret() -> [u8; 32] {
        rand::random()
    }

    /// The text to copy: `mesh1.` and one word of letters, digits, `-` and `_`.
    pub fn to_text(&self) -> Result<String, CertError> {
        names::check_name(&self.id).map_err(|_| CertError::TokenContent("its id is no name"))?;
        if self.endpoints.is_empty() || self.endpoints.len() > MAX_ENDPOINTS {
            return Err(CertError::TokenContent("it needs 1 to 16 endpoints"));
        }
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(self.mesh.0.as_bytes());
        bytes.extend_from_slice(&self.pin.0);
        bytes.extend_from_slice(&self.secret);
        put_short(&mut bytes, &self.id)?;
        for endpoint in &self.endpoints {
            if !is_endpoint(endpoint) {
                return Err(CertError::TokenContent("an endpoint is not of the form HOST:PORT"));
            }
            put_short(&mut bytes, endpoint)?;
        }
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes)))
    }

    /// Reads the text. White space, which a terminal may have put in, does not count.
    pub fn parse(text: &str) -> Result<Self, CertError> {
        if text.len() > MAX_TEXT {
            return Err(CertError::NotAToken);
        }
        let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let body = text.strip_prefix(PREFIX).ok_or(CertError::NotAToken)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| CertError::TokenDamaged)?;
        Self::from_bytes(&bytes).ok_or(CertError::TokenDamaged)
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (content, sum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM)?)?;
        if checksum(content) != sum {
            return None;
        }
        let (mesh, rest) = content.split_first_chunk::<16>()?;
        let (pin, rest) = rest.split_first_chunk::<32>()?;
        let (secret, rest) = rest.split_first_chunk::<32>()?;
        let (id, mut rest) = take_short(rest)?;
        names::check_name(id).ok()?;
        let mut endpoints = Vec::new();
        while !rest.is_empty() {
            let (endpoint, after) = take_short(rest)?;
            if endpoints.len() == MAX_ENDPOINTS || !is_endpoint(endpoint) {
                return None;
            }
            endpoints.push(endpoint.to_owned());
            rest = after;
        }
        if endpoints.is_empty() {
            return None;
        }
        Some(Self {
            endpoints,
            mesh: MeshId(Uuid::from_bytes(*mesh)),
            pin: Pin(*pin),
            id: id.to_owned(),
            secret: *secret,
        })
    }
}

impl std::str::FromStr for JoinToken {
    type Err = CertError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .field("mesh", &self.mesh)
            .field("pin", &self.pin)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// What is stored of a secret: its SHA-256. The secret is 256 random bits, so no slow hash is needed.
pub fn hash_secret(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// Whether a presented secret is the one whose hash was stored, in constant time.
pub fn same_secret(presented: &[u8], stored_hash: &[u8; 32]) -> bool {
    hash_secret(presented).ct_eq(stored_hash).into()
}

/// `host:port`, where the host is a name, an IPv4 address or an IPv6 address in brackets.
pub(crate) fn is_endpoint(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let host_fits = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok()),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        }
    };
    let port_fits =
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    text.len() <= MAX_ENDPOINT && host_fits && port_fits
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut hash = Sha256::new();
    hash.update(PREFIX);
    hash.update(bytes);
    let digest: [u8; 32] = hash.finalize().into();
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&digest[..CHECKSUM]);
    sum
}

fn put_short(bytes: &mut Vec<u8>, text: &str) -> Result<(), CertError> {
    let length = u8::try_from(text.len()).map_err(|_| CertError::TokenContent("an endpoint is too long"))?;
    bytes.push(length);
    bytes.extend_from_slice(text.as_bytes());
    Ok(())
}

fn take_short(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (text, rest) = rest.split_at_checked(usize::from(*length))?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

//! Reading certificates: fingerprints, lifetimes, PEM. The only room that takes DER apart.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use crate::error::CertError;

/// Parses exactly one certificate.
pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertError> {
    let bad = |problem: String| CertError::Malformed { what: "the certificate", problem };
    let (rest, cert) = X509Certificate::from_der(der).map_err(|error| bad(error.to_string()))?;
    if rest.is_empty() { Ok(cert) } else { Err(bad("bytes follow it".to_owned())) }
}

/// SHA-256 of the whole certificate.
pub fn cert_fingerprint(der: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(der).into()
}

/// SHA-256 of the certificate's public key (its SPKI): the same for every certificate of one key.
pub fn key_fingerprint(der: &CertificateDer<'_>) -> Result<[u8; 32], CertError> {
    Ok(Sha256::digest(parse(der)?.tbs_certificate.subject_pki.raw).into())
}

/// When the certificate ends.
pub fn not_after(der: &CertificateDer<'_>) -> Result<DateTime<Utc>, CertError> {
    let seconds = parse(der)?.validity().not_after.timestamp();
    DateTime::from_timestamp(seconds, 0).ok_or_else(|| CertError::Malformed {
        what: "the certificate",
        problem: "its end lies out of range".to_owned(),
    })
}

/// The PEM form of a certificate.
pub fn pem_of(der: &CertificateDer<'_>) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let body = STANDARD.encode(der);
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 60);
    text.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// The certificates of a PEM text, at least one.
pub(crate) fn certs_from_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, CertError> {
    let bad = |problem: String| CertError::Malformed { what: "the certificate", problem };
    let certs = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(error.to_string()))?;
    if certs.is_empty() { Err(bad("it holds no PEM certificate".to_owned())) } else { Ok(certs) }
}

/// The private key of a PEM text.
pub(crate) fn key_from_pem(pem: &str) -> Result<PrivateKeyDer<'static>, CertError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| CertError::Malformed { what: "the private key", problem: error.to_string() })
}

/// Seconds since 1970, now.
pub(crate) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

//! TLS errors in people's words: what happened and what to do about it.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// The TLS error inside an I/O error, if that is what it is.
pub(crate) fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// What the other side's alert means for the one whose certificate it refused.
pub(crate) fn refusal(alert: AlertDescription) -> String {
    let text = match alert {
        AlertDescription::CertificateExpired => {
            "this certificate has expired or is not valid yet (a node joins again with a new token, a person \
             gets a new credential; check this machine's clock)"
        }
        AlertDescription::CertificateRevoked => "this certificate was revoked",
        AlertDescription::UnknownCA => {
            "this certificate is not of that mesh's CA (is this the credential of another mesh?)"
        }
        AlertDescription::DecryptError => {
            "this certificate's signature is not of that mesh's CA (is this the credential of another mesh?)"
        }
        AlertDescription::CertificateRequired => {
            "a certificate is required (a person needs a credential, a node joins first)"
        }
        AlertDescription::UnsupportedCertificate => "this certificate is not meant for clients",
        AlertDescription::AccessDenied => "this certificate names no member of that mesh",
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
            "this certificate is not acceptable"
        }
        AlertDescription::ProtocolVersion => "TLS 1.3 is needed",
        AlertDescription::NoApplicationProtocol => "HTTP/2 is needed",
        other => return format!("TLS alert {other:?}"),
    };
    text.to_owned()
}

/// What is wrong with a peer, from this side's own check of it.
pub(crate) fn verdict(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(problem) => match problem {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet (check the clocks)".to_owned()
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is not of this mesh's CA".to_owned()
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "its certificate is not meant for this use".to_owned()
            }
            CertificateError::Revoked => "its certificate was revoked".to_owned(),
            CertificateError::Other(other) => other.0.to_string(),
            other => format!("its certificate is not acceptable: {other}"),
        },
        Error::NoCertificatesPresented => "it presented no certificate".to_owned(),
        Error::InvalidMessage(_) => "it does not speak TLS here (is this the right port?)".to_owned(),
        Error::PeerIncompatible(_) => "it does not speak TLS 1.3 and HTTP/2".to_owned(),
        Error::NoApplicationProtocol => "it does not speak HTTP/2".to_owned(),
        other => other.to_string(),
    }
}

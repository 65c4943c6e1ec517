//! Why TLS with a peer failed, in words.

use rustls::{AlertDescription, CertificateError, Error};

/// The reason in words; `error` is what TLS reading or writing gave.
pub(crate) fn reason(error: &std::io::Error) -> String {
    match tls_error(error) {
        Some(error) => words(error),
        None => error.to_string(),
    }
}

/// True when the other side refused what this node showed.
pub(crate) fn is_refusal(error: &std::io::Error) -> bool {
    matches!(tls_error(error), Some(Error::AlertReceived(_)))
}

fn tls_error(error: &std::io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn words(error: &Error) -> String {
    let known = match error {
        Error::NoCertificatesPresented => "it showed no certificate; peers show one of the cluster's CA",
        Error::InvalidCertificate(error) => return certificate(error),
        Error::InvalidMessage(_) => "it does not speak TLS; this port is for peers alone",
        Error::PeerIncompatible(_) => "its TLS is too old; peers speak TLS 1.3",
        Error::AlertReceived(alert) => return refusal(*alert),
        other => return format!("TLS failed: {other}"),
    };
    known.to_owned()
}

fn certificate(error: &CertificateError) -> String {
    let known = match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is not signed by a CA in this node's ca.pem; both need certificates of one CA"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired; issue a new one, or see whether a clock is wrong"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; see whether a clock is wrong"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate does not name the address it was reached at"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not meant for this; peers need client and server authentication"
        }
        other => return format!("its certificate cannot be accepted: {other}"),
    };
    known.to_owned()
}

fn refusal(alert: AlertDescription) -> String {
    let known = match alert {
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "it refuses this node's certificate: it is not signed by a CA in its ca.pem"
        }
        AlertDescription::CertificateRequired => "it misses this node's certificate",
        AlertDescription::CertificateExpired => {
            "it refuses this node's certificate as expired or not valid yet; see whether a clock is wrong"
        }
        other => return format!("it ended TLS: {other:?}"),
    };
    known.to_owned()
}

//! Whom a refused connection said it was: the verifier notes the certificate it was shown, also when it refuses it.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The subject of the certificate one connection showed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shown(Arc<Mutex<Option<String>>>);

impl Shown {
    /// `none` before a certificate came.
    pub(crate) fn subject(&self) -> String {
        let subject = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        subject.clone().unwrap_or_else(|| "none".to_owned())
    }
}

/// Verifies as `inner` does, for one connection.
#[derive(Debug)]
pub(super) struct Noting {
    pub(super) inner: Arc<dyn ClientCertVerifier>,
    pub(super) shown: Shown,
}

impl ClientCertVerifier for Noting {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        *self.shown.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(subject(end_entity));
        self.inner.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Longest subject that is logged, characters: a stranger chose it.
const MAX_SUBJECT: usize = 128;

fn subject(cert: &CertificateDer<'_>) -> String {
    match X509Certificate::from_der(cert) {
        Ok((_, cert)) => cert.subject().to_string().chars().take(MAX_SUBJECT).collect(),
        Err(_) => "not readable".to_owned(),
    }
}

/// When a certificate ends, Unix seconds.
pub(super) fn expires_at_s(cert: &CertificateDer<'_>) -> Option<i64> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    Some(cert.validity().not_after.timestamp())
}

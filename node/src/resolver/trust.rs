//! Whose certificates encrypted upstreams may show.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// How upstreams are checked: rustls' settings for connections to them.
#[derive(Debug, Clone)]
pub struct Trust(Arc<ClientConfig>);

/// Nobody could be trusted with what there is.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read, or is not PEM.
    #[error("resolver.ca_file: read {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// The file holds something that is no CA.
    #[error("resolver.ca_file: {path} holds no certificate of a CA that can be used{detail}")]
    Empty {
        /// Which.
        path: PathBuf,
        /// What rustls says, with a colon before it; empty when there is no certificate at all.
        detail: String,
    },
    /// The system has none.
    #[error(
        "this system has no CA certificates to check encrypted DNS servers with{detail}; name a PEM file in \
         resolver.ca_file"
    )]
    System {
        /// What went wrong while looking, with a colon before it.
        detail: String,
    },
    /// rustls cannot be set up.
    #[error("set up TLS for DNS: {0}")]
    Tls(#[from] rustls::Error),
}

impl Trust {
    /// Trusts the CAs in `ca_file` (PEM) and no others; without one, those of the system.
    ///
    /// # Errors
    /// [`TrustError`] when that leaves nobody.
    pub fn load(ca_file: Option<&Path>) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        match ca_file {
            Some(path) => {
                let fail = |source| TrustError::File { path: path.to_owned(), source };
                let mut detail = String::new();
                for certificate in CertificateDer::pem_file_iter(path).map_err(fail)? {
                    if let Err(error) = roots.add(certificate.map_err(fail)?) {
                        detail = format!(": {error}");
                    }
                }
                if roots.is_empty() {
                    return Err(TrustError::Empty { path: path.to_owned(), detail });
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    let first = found.errors.first();
                    let detail = first.map_or_else(String::new, |error| format!(": {error}"));
                    return Err(TrustError::System { detail });
                }
            }
        }
        Ok(Self::in_roots(roots)?)
    }

    /// Trusts no certificate at all: for upstreams that are not encrypted.
    ///
    /// # Errors
    /// Never in practice: rustls knows its own protocol versions.
    pub fn nobody() -> Result<Self, TrustError> {
        Ok(Self::in_roots(RootCertStore::empty())?)
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0)
    }

    fn in_roots(roots: RootCertStore) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_usable_ca_is_refused_by_its_key_and_name() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("ca.pem");
        let load = || Trust::load(Some(&path)).map(|_| ()).expect_err("nobody to trust").to_string();
        let missing = load();
        assert!(missing.contains("resolver.ca_file") && missing.contains("ca.pem"), "{missing}");
        for text in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, text).expect("write the file");
            let error = load();
            assert!(error.contains("resolver.ca_file") && error.contains("no certificate"), "{error}");
        }
    }
}

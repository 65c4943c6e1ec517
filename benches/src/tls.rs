//! TLS towards both sides: the cluster's CA is trusted, nothing else.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What is spoken inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Opens connections whose other end shows a certificate of the CA in a file.
#[derive(Clone)]
pub(crate) struct Connector {
    tls: TlsConnector,
}

impl Connector {
    pub(crate) fn new(ca: &Path, protocol: Protocol) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        let pem = std::fs::read(ca).with_context(|| format!("read {}", ca.display()))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            roots.add(certificate.with_context(|| format!("read {}", ca.display()))?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![match protocol {
            Protocol::Http1 => b"http/1.1".to_vec(),
            Protocol::Http2 => b"h2".to_vec(),
        }];
        Ok(Self { tls: TlsConnector::from(Arc::new(config)) })
    }

    pub(crate) async fn connect(&self, address: IpAddr, port: u16) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect((address, port))
            .await
            .with_context(|| format!("connect to {address}:{port}"))?;
        stream.set_nodelay(true)?;
        self.tls
            .connect(ServerName::from(address), stream)
            .await
            .with_context(|| format!("TLS with {address}:{port}"))
    }
}

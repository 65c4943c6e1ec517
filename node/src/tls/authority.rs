//! The development CA and the certificates it issues.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use time::{Duration, OffsetDateTime};

use super::files::{Access, Staged, create};
use super::{CA_CERT_FILE, CA_KEY_FILE, CertState, TlsError, certificates, examine, judge};

/// A node renews its certificate when less than this is left, seconds.
const RENEW_BEFORE_S: u64 = 30 * 24 * 3600;
/// Validity of the development CA, days.
const CA_DAYS: i64 = 3_650;
/// Validity of a node's certificate, days.
const NODE_DAYS: i64 = 825;
/// Clocks of nodes may differ by this much.
const CLOCK_SKEW: Duration = Duration::hours(1);
const CA_NAME: &str = "OutputGuard development CA";

/// Makes sure that `dir` holds a CA and a certificate of `name` that names `hosts`.
pub(super) fn ensure(dir: &Path, name: &str, hosts: &[&str]) -> Result<(), TlsError> {
    std::fs::create_dir_all(dir).map_err(|source| TlsError::Io {
        action: "create directory",
        path: dir.to_owned(),
        source,
    })?;
    ensure_ca(dir)?;
    let cert = dir.join(format!("{name}.pem"));
    let key = dir.join(format!("{name}.key"));
    if !cert.exists() || !key.exists() {
        return issue(dir, name, hosts);
    }
    match examine(dir, name, hosts, UnixTime::now())? {
        CertState::Good => {
            // It serves for now: that it cannot be renewed must not keep the node from starting.
            if let Err(error) = renew_when_due(dir, name, hosts) {
                tracing::warn!(certificate = %cert.display(), %error, "the node's certificate ends soon and cannot be renewed");
            }
            Ok(())
        }
        CertState::Renew(reason) if dir.join(CA_KEY_FILE).exists() => {
            tracing::info!(certificate = %cert.display(), reason, "issuing the node's certificate anew");
            issue(dir, name, hosts)
        }
        CertState::Renew(reason) => Err(TlsError::Unusable {
            path: cert,
            problem: format!("cannot be used any longer ({reason})"),
            remedy: "issue a new one with the cluster's CA, or put ca.key beside it so that the server can",
        }),
        CertState::NotYet(reason) => Err(TlsError::Unusable {
            path: cert,
            problem: format!("cannot be used yet ({reason})"),
            remedy: "set this host's clock right, or bring a certificate that is valid now",
        }),
        CertState::Foreign(reason) => Err(TlsError::Unusable {
            path: cert,
            problem: format!("is not signed by {CA_CERT_FILE} beside it ({reason})"),
            remedy: "use the CA that signed it, or remove the certificate and its key so that new ones are issued",
        }),
    }
}

/// Issues the certificate of `name` anew when it ends soon (or names another address) and the CA's key is there. Makes
/// nothing that is missing: while a node runs, a missing file is one that somebody is about to put there.
pub(super) fn renew_when_due(dir: &Path, name: &str, hosts: &[&str]) -> Result<(), TlsError> {
    if !dir.join(CA_KEY_FILE).exists() {
        return Ok(());
    }
    let now_s = UnixTime::now().as_secs();
    let soon = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now_s + RENEW_BEFORE_S));
    let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    if let Some(path) = [&dir.join(CA_CERT_FILE), &cert, &key].into_iter().find(|path| !path.exists()) {
        return Err(TlsError::Unusable {
            path: path.clone(),
            problem: "is missing".to_owned(),
            remedy: "put it back, or start the node anew to have it made",
        });
    }
    // One of another CA, or for later, is looked at when it is loaded.
    let CertState::Renew(reason) = examine(dir, name, hosts, soon)? else { return Ok(()) };
    tracing::info!(certificate = %cert.display(), reason, "issuing the node's certificate anew");
    issue(dir, name, hosts)
}

/// The key comes first and decides: whoever finds a key without a certificate makes the certificate from it. All such
/// certificates have one name and one key, so they are the same trust anchor, and nodes that race agree.
fn ensure_ca(dir: &Path) -> Result<(), TlsError> {
    let (cert, key) = (dir.join(CA_CERT_FILE), dir.join(CA_KEY_FILE));
    if cert.exists() {
        return Ok(());
    }
    let made = |source| TlsError::Create { subject: CA_NAME.to_owned(), source };
    if !key.exists() {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
        create(&key, &pair.serialize_pem(), Access::Owner)?;
    }
    let pair = read_ca_key(&key)?;
    let params = ca_params();
    let certificate = params.self_signed(&pair).map_err(made)?;
    if create(&cert, &certificate.pem(), Access::Everyone)? {
        tracing::info!(directory = %dir.display(), "created a development CA");
    }
    Ok(())
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, CA_DAYS);
    params
}

fn issue(dir: &Path, name: &str, hosts: &[&str]) -> Result<(), TlsError> {
    let (ca_cert, ca_key) = (dir.join(CA_CERT_FILE), dir.join(CA_KEY_FILE));
    if !ca_key.exists() {
        return Err(TlsError::Unusable {
            path: dir.join(format!("{name}.pem")),
            problem: format!("is missing, and so is {CA_KEY_FILE} to issue it with"),
            remedy: "bring the node's certificate and key, or the CA's key",
        });
    }
    let ca_pair = read_ca_key(&ca_key)?;
    let cas = certificates(&ca_cert)?;
    let Some(ca) = cas.iter().find(|ca| has_key(ca, &ca_pair)) else {
        return Err(TlsError::Unusable {
            path: ca_key,
            problem: format!("does not belong to {CA_CERT_FILE} beside it"),
            remedy: "put the key of that CA there, or remove it and bring the node's certificate and key",
        });
    };
    let issuer = Issuer::from_ca_cert_der(ca, ca_pair).map_err(|error| TlsError::Unusable {
        path: ca_cert,
        problem: format!("is not a CA certificate ({error})"),
        remedy: "put the PEM of the cluster's CA there",
    })?;
    let made = |source| TlsError::Create { subject: name.to_owned(), source };
    let mut names = vec![name.to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend(hosts.iter().map(|host| (*host).to_owned()));
    names.sort();
    names.dedup();
    let mut params = CertificateParams::new(names).map_err(made)?;
    params.distinguished_name = named(name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, NODE_DAYS);
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
    let certificate = params.signed_by(&pair, &issuer).map_err(made)?;
    // Nothing that serves is given up for something that does not.
    let cert_path = dir.join(format!("{name}.pem"));
    let verdict = judge(dir, &cert_path, &[certificate.der().clone()], (name, hosts), UnixTime::now())?;
    if let CertState::Renew(reason) | CertState::NotYet(reason) | CertState::Foreign(reason) = verdict {
        return Err(TlsError::Unusable {
            path: dir.join(CA_CERT_FILE),
            problem: format!("does not vouch for what it issues ({reason})"),
            remedy: "put a CA certificate there that is valid and belongs to ca.key",
        });
    }
    let key = Staged::write(&dir.join(format!("{name}.key")), &pair.serialize_pem(), Access::Owner)?;
    let certificate = Staged::write(&cert_path, &certificate.pem(), Access::Everyone)?;
    // A crash between the two would leave a pair that does not match: the old certificate goes first, so that a missing
    // one is noticed at the next start and both are made anew.
    let _ = std::fs::remove_file(&cert_path);
    key.put()?;
    certificate.put()
}

fn has_key(ca: &CertificateDer<'_>, pair: &KeyPair) -> bool {
    x509_parser::parse_x509_certificate(ca)
        .is_ok_and(|(_, parsed)| parsed.public_key().raw == pair.subject_public_key_info())
}

fn read_ca_key(path: &Path) -> Result<KeyPair, TlsError> {
    let pem = String::from_utf8_lossy(&super::read(path)?).into_owned();
    KeyPair::from_pem(&pem).map_err(|error| TlsError::Unusable {
        path: path.to_owned(),
        problem: format!("holds no private key ({error})"),
        remedy: "put the PEM key of ca.pem there",
    })
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn valid_for(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + Duration::days(days);
}

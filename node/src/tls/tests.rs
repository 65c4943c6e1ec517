use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn prepare(dir: &Path, name: &str) -> Result<NodeTls, String> {
    NodeTls::prepare(dir, name, &["10.1.0.1"]).map_err(|error| error.to_string())
}

#[test]
fn nodes_that_start_at_once_in_one_directory_agree_on_one_ca() {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..8)
            .map(|node| {
                let dir = dir.path();
                scope.spawn(move || prepare(dir, &format!("server-{node}")))
            })
            .collect();
        for start in starts {
            start.join().unwrap().unwrap();
        }
    });
    for node in 0..8 {
        assert!(
            matches!(
                examine(
                    dir.path(),
                    &format!("server-{node}"),
                    &["10.1.0.1", "localhost", "127.0.0.1"],
                    UnixTime::now()
                ),
                Ok(CertState::Good)
            ),
            "server-{node}"
        );
    }
    let leftovers: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("tmp"))
        .collect();
    assert_eq!(leftovers, Vec::<String>::new());
}

#[test]
fn keys_are_readable_by_their_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path(), "a").unwrap();
    for file in ["ca.key", "a.key"] {
        let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn starting_again_keeps_the_certificates() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path(), "a").unwrap();
    let before = std::fs::read(dir.path().join("a.pem")).unwrap();
    prepare(dir.path(), "a").unwrap();
    assert_eq!(std::fs::read(dir.path().join("a.pem")).unwrap(), before);
}

#[test]
fn a_new_address_gets_a_new_certificate_of_the_same_ca() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path(), "a").unwrap();
    let ca = std::fs::read(dir.path().join("ca.pem")).unwrap();
    NodeTls::prepare(dir.path(), "a", &["10.9.9.9"]).unwrap();
    assert!(matches!(examine(dir.path(), "a", &["10.9.9.9"], UnixTime::now()), Ok(CertState::Good)));
    assert_eq!(std::fs::read(dir.path().join("ca.pem")).unwrap(), ca);
}

#[test]
fn a_ca_without_its_key_and_without_a_node_certificate_says_what_to_bring() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path(), "a").unwrap();
    std::fs::remove_file(dir.path().join("ca.key")).unwrap();
    prepare(dir.path(), "a").unwrap();
    let error = prepare(dir.path(), "b").unwrap_err();
    assert!(error.contains("b.pem") && error.contains("ca.key"), "{error}");
}

#[test]
fn a_certificate_of_another_ca_is_refused_and_named() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    prepare(ours.path(), "a").unwrap();
    prepare(theirs.path(), "a").unwrap();
    for file in ["a.pem", "a.key"] {
        std::fs::copy(theirs.path().join(file), ours.path().join(file)).unwrap();
    }
    let error = prepare(ours.path(), "a").unwrap_err();
    assert!(error.contains("a.pem") && error.contains("ca.pem"), "{error}");
}

#[test]
fn garbage_in_a_file_names_the_file() {
    for file in ["ca.pem", "ca.key", "a.pem", "a.key"] {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path(), "a").unwrap();
        std::fs::write(dir.path().join(file), "garbage").unwrap();
        // The CA's key is only read where something is issued.
        let name = if file == "ca.key" { "b" } else { "a" };
        let error = prepare(dir.path(), name).unwrap_err();
        assert!(error.contains(file), "{file}: {error}");
    }
}

/// Signs a certificate of `a` with the CA in `dir` that is over in `days`.
fn issue_for(dir: &Path, days: i64) {
    let ca = std::fs::read_to_string(dir.join(CA_CERT_FILE)).unwrap();
    let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(dir.join(CA_KEY_FILE)).unwrap()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&ca, key).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["a".to_owned(), "10.1.0.1".to_owned()]).unwrap();
    let now = time::OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - time::Duration::days(9), now + time::Duration::days(days));
    let pair = rcgen::KeyPair::generate().unwrap();
    std::fs::write(dir.join("a.pem"), params.signed_by(&pair, &issuer).unwrap().pem()).unwrap();
    std::fs::write(dir.join("a.key"), pair.serialize_pem()).unwrap();
}

#[test]
fn a_certificate_that_ends_soon_is_renewed_with_the_cas_key_and_serves_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let tls = prepare(dir.path(), "a").unwrap();
    issue_for(dir.path(), 3);
    let short = std::fs::read(dir.path().join("a.pem")).unwrap();
    let ca_key = std::fs::read(dir.path().join(CA_KEY_FILE)).unwrap();
    let now = || std::fs::read(dir.path().join("a.pem")).unwrap();
    std::fs::remove_file(dir.path().join(CA_KEY_FILE)).unwrap();
    prepare(dir.path(), "a").unwrap();
    tls.renew().unwrap();
    assert_eq!(now(), short);
    // A key of some other CA renews nothing and spoils nothing.
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    std::fs::write(dir.path().join(CA_KEY_FILE), other).unwrap();
    prepare(dir.path(), "a").unwrap();
    let error = tls.renew().unwrap_err().to_string();
    assert!(error.contains("ca.key does not belong to ca.pem"), "{error}");
    assert_eq!(now(), short);
    std::fs::write(dir.path().join(CA_KEY_FILE), ca_key).unwrap();
    tls.renew().unwrap();
    assert_ne!(now(), short);
    prepare(dir.path(), "a").unwrap();
}

#[test]
fn what_is_over_is_refused_without_the_cas_key() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path(), "a").unwrap();
    issue_for(dir.path(), -1);
    std::fs::remove_file(dir.path().join(CA_KEY_FILE)).unwrap();
    let error = prepare(dir.path(), "a").unwrap_err();
    assert!(error.contains("cannot be used any longer"), "{error}");
}

#[test]
fn a_running_node_makes_no_file_that_is_missing() {
    for file in [CA_CERT_FILE, "a.pem", "a.key"] {
        let dir = tempfile::tempdir().unwrap();
        let tls = prepare(dir.path(), "a").unwrap();
        std::fs::remove_file(dir.path().join(file)).unwrap();
        let error = tls.renew().unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("missing"), "{error}");
        assert!(!dir.path().join(file).exists(), "{file}");
    }
}

#[test]
fn a_node_is_issued_a_certificate_by_the_ca_of_several_whose_key_is_there() {
    let (dir, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    prepare(dir.path(), "a").unwrap();
    prepare(old.path(), "a").unwrap();
    let both = [old.path(), dir.path()].map(|dir| std::fs::read(dir.join(CA_CERT_FILE)).unwrap()).concat();
    std::fs::write(dir.path().join(CA_CERT_FILE), both).unwrap();
    prepare(dir.path(), "b").unwrap();
}

#[test]
fn a_half_made_ca_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path(), "a").unwrap();
    std::fs::remove_file(dir.path().join("ca.pem")).unwrap();
    prepare(dir.path(), "a").unwrap();
    prepare(dir.path(), "b").unwrap();
}

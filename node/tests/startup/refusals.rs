//! Each thing that keeps a node from starting has one clear message and an exit code.

use std::path::{Path, PathBuf};

use crate::harness::{Process, config, occupy, own_address, refused, server};

struct Case {
    dir: tempfile::TempDir,
    address: String,
    config: PathBuf,
}

fn case() -> Case {
    let dir = tempfile::tempdir().unwrap();
    let address = own_address();
    let config = config(dir.path(), &address, "server-1", &[]);
    Case { dir, address, config }
}

#[track_caller]
fn says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in\n{said}");
    }
}

fn with_text(text: &str) -> String {
    let case = case();
    std::fs::write(&case.config, text).unwrap();
    refused(&case.config, case.dir.path())
}

#[test]
fn a_missing_configuration_file_is_named() {
    let case = case();
    let missing = case.dir.path().join("missing.yaml");
    says(&refused(&missing, case.dir.path()), &["read configuration", "missing.yaml", "No such file"]);
}

#[test]
fn a_malformed_configuration_is_named_with_its_line() {
    says(&with_text("node:\n  name: [\n"), &["server-1.yaml", "line"]);
}

#[test]
fn an_unknown_key_is_named() {
    says(&with_text("node: { name: a }\nlisten:\n  apis: \"127.0.0.1:1\"\n"), &["apis", "line 3", "api"]);
}

#[test]
fn a_wrong_value_is_named_with_what_would_be_right() {
    says(&with_text("listen: { api: \"8080\" }\n"), &["listen.api", "IP:port"]);
}

#[test]
fn a_port_in_use_is_named_with_its_key() {
    for (key, port) in [("listen.api", 8080), ("listen.feed", 8443), ("listen.raft", 8081)] {
        let case = case();
        let _taken = occupy(&format!("{}:{port}", case.address));
        says(
            &refused(&case.config, case.dir.path()),
            &[key, &format!("{}:{port}", case.address), "another port"],
        );
        assert!(
            !case.dir.path().join("server-1").exists(),
            "nothing is touched before the sockets are there"
        );
    }
}

#[test]
fn a_data_directory_that_cannot_be_used_is_named() {
    let case = case();
    std::fs::write(case.dir.path().join("server-1"), "a file").unwrap();
    says(&refused(&case.config, case.dir.path()), &["node.data_dir", "server-1", "name a directory"]);
}

#[test]
fn a_data_directory_in_use_is_named() {
    let case = case();
    let data = case.dir.path().join("server-1");
    std::fs::create_dir_all(&data).unwrap();
    let lock = std::fs::File::options().create(true).append(true).open(data.join("lock")).unwrap();
    lock.try_lock().unwrap();
    says(&refused(&case.config, case.dir.path()), &["server-1", "in use by another process"]);
}

#[test]
fn bad_certificate_files_are_named_with_what_would_be_right() {
    let spoil = |file: &str, with: &dyn Fn(&Path)| {
        let case = case();
        // A first start makes the files.
        let tls = case.dir.path().join("tls");
        node::tls::NodeTls::prepare(&tls, "server-1", &[&case.address]).unwrap();
        with(&tls.join(file));
        refused(&case.config, case.dir.path())
    };
    let garbage = |path: &Path| std::fs::write(path, "garbage").unwrap();
    says(&spoil("ca.pem", &garbage), &["ca.pem", "put the PEM of the cluster's CA there"]);
    says(&spoil("server-1.pem", &garbage), &["server-1.pem", "so that new ones are issued"]);
    says(&spoil("server-1.key", &garbage), &["server-1.key", "private key"]);
    let remove = |path: &Path| {
        std::fs::remove_file(path).unwrap();
        std::fs::remove_file(path.with_file_name("ca.key")).unwrap();
    };
    says(&spoil("server-1.pem", &remove), &["server-1.pem", "ca.key", "bring"]);
}

#[test]
fn an_unknown_flag_is_named_and_help_and_version_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    for (flag, code, part) in [("--nonsense", 2, "--nonsense"), ("--help", 0, ""), ("--version", 0, "")] {
        let mut command = server();
        command.arg(flag);
        let mut process = Process::start(command, &dir.path().join("stderr"));
        assert_eq!(process.end().code(), Some(code), "{flag}");
        assert!(process.said().contains(part), "{flag}: {}", process.said());
    }
}

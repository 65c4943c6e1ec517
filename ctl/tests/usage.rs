//! What a person meets when something is wrong: one clear line and a stable exit code.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::{Command, Output};

fn ctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_outputguardctl"))
        .args(args)
        .env_remove("OUTPUTGUARD_TOKEN_FILE")
        .env_remove("OUTPUTGUARD_ADDR")
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_private_address_is_refused_before_any_server_is_asked() {
    let output = ctl(&["--addr", "http://127.0.0.1:1", "add", "10.0.0.1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("10.0.0.0/8"), "{}", stderr(&output));
}

#[test]
fn a_malformed_port_says_how_to_write_it() {
    let output = ctl(&["add", "api.example.test", "--port", "443"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("tcp/443"), "{}", stderr(&output));
}

#[test]
fn no_answer_is_exit_code_3_and_names_the_address() {
    let output = ctl(&["--addr", "http://127.0.0.1:1", "status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("http://127.0.0.1:1"), "{}", stderr(&output));
}

#[test]
fn an_https_address_without_the_ca_says_what_is_missing() {
    let output = ctl(&["--addr", "https://127.0.0.1:1", "status"]);
    assert!(stderr(&output).contains("--ca-file"), "{}", stderr(&output));
}

#[test]
fn an_unreadable_token_file_is_named() {
    let output = ctl(&["--token-file", "/nowhere/token", "status"]);
    assert!(stderr(&output).contains("/nowhere/token"), "{}", stderr(&output));
}

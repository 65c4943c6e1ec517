//! Why was I blocked? With the real binaries.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy knows only the test functions")]

use std::time::Duration;

use lab::{Lab, LabOptions, NewEntry, wait};
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(30);
const BLOCKED: &str = "93.184.15.9";

#[test]
fn e2e_a_blocked_connection_is_explained_by_a_server_that_its_gateway_has_no_session_with() {
    let mut lab = Lab::start(&LabOptions { servers: 3, gateways: 1, port: 0 }).unwrap();
    let session = wait::until("the gateway has a session", TIMEOUT, || {
        let statuses = lab.statuses();
        let lines = statuses.into_iter().flat_map(|status| status.gateways);
        lines.map(|line| line.node).next().ok_or("none")
    })
    .unwrap();
    let other = lab.servers.iter().find(|server| server.name() != session).unwrap().api().unwrap();
    let client = lab.client().with_patience(Duration::from_millis(300));
    let explained = || -> Result<Value, String> {
        let blocked = client.tcp_echo((BLOCKED.parse::<std::net::IpAddr>().unwrap(), 443).into());
        if blocked.answered() {
            return Err("it was not blocked".to_owned());
        }
        let path = format!("/api/v1/denied?destination={BLOCKED}");
        let answer = other.get_text(&path).map_err(|error| error.to_string())?;
        let answer: Value = serde_json::from_str(&answer).map_err(|error| error.to_string())?;
        if answer["complete"] == json!(true) && answer["denied"][0]["packets"].as_u64() > Some(0) {
            return Ok(answer["denied"][0].clone());
        }
        Err(format!("not yet explained: {answer}"))
    };
    let row = wait::until("the connection is explained", TIMEOUT, explained).unwrap();
    let said = (&row["destination"], &row["protocol"], &row["port"], &row["listed"]);
    assert_eq!(said, (&json!(BLOCKED), &json!("tcp"), &json!(443), &json!(false)), "{row}");
    assert_eq!(row["gateway"], json!(lab.gateways[0].name()));
    assert!(row["source"].as_str().unwrap().starts_with("10."), "{row}");

    let entry = NewEntry::to(BLOCKED).port("tcp/443");
    let entry = wait::until("it is allowed", TIMEOUT, || lab.api().unwrap().add(&entry)).unwrap();
    wait::until("the list says so", TIMEOUT, || {
        let answer = other.get_text(&format!("/api/v1/denied?destination={BLOCKED}")).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let row = &answer["denied"][0];
        let allowed = row["listed"] == json!(true) && row["entries"][0]["id"] == json!(entry.id);
        if allowed { Ok(()) } else { Err(row.to_string()) }
    })
    .unwrap();
}

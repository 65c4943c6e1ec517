//! What gateways denied, asked of a node that none of them has a session with.

use std::net::IpAddr;

use allowlist::feed::DeniedFlow;
use node::cluster::Tuning;
use node::feed::denied::{DeniedLog, DeniedQuery};

use crate::harness::{Nodes, PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_holds_what_every_node_heard_and_names_those_that_are_silent() {
    let mut nodes = Nodes::start(3, Tuning::default()).await;
    for index in 0..3_u8 {
        let log = DeniedLog::default();
        let source = IpAddr::from([10, 0, 0, index]);
        let destination = IpAddr::from([9, 9, 9, 9]);
        let last_ms = 1_000 + u64::from(index);
        let flow =
            DeniedFlow { source, destination, protocol: 6, port: 443, packets: 1, first_ms: 1, last_ms };
        log.add(&format!("gw-{index}"), &[flow], u64::MAX);
        nodes.node(index.into()).set_denied_log(log);
    }
    let query = DeniedQuery { limit: 10, ..DeniedQuery::default() };
    let answer = nodes.node(0).denied(&query, PATIENCE).await;
    let gateways: Vec<_> = answer.page.rows.iter().map(|row| row.key.gateway.as_str()).collect();
    assert_eq!(gateways, ["gw-2", "gw-1", "gw-0"]);
    let asked = |silent: &[&str]| {
        let names = ["server-1", "server-2", "server-3"];
        names.map(|name| (name.to_owned(), !silent.contains(&name))).to_vec()
    };
    assert_eq!(answer.asked, asked(&[]));

    nodes.kill(2).await;
    let answer = nodes.node(0).denied(&query, std::time::Duration::from_secs(2)).await;
    assert_eq!(answer.page.rows.len(), 2);
    assert_eq!(answer.asked, asked(&["server-3"]));
}

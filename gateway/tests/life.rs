//! What a gateway does when its kernel, its state files or its servers fail it, and what its pages say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use allowlist::feed::{CutCause, CutElement, CutReport};
use common::{Cluster, Setup, added, element, held, until};
use gateway::firewall::fake::{Call, FakeFirewall};
use gateway::firewall::{Denied, ElementCounters};

#[tokio::test]
async fn a_gateway_that_boots_without_servers_enforces_its_last_stored_state() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
    let mut session = servers[0].accept().await;
    session.bring_to(&held(5, &[1, 2])).await;
    session.change(added(6, 3)).await;
    session.applied(6).await;
    gateway.stop().await;
    drop((session, servers));

    // A reboot: the kernel holds nothing, and nobody answers.
    let gone = [cluster.server().await];
    let setup = Setup::new(&cluster, &gone, dir.path());
    drop(gone);
    let gateway = setup.start().await;
    gateway.holds(&[1, 2, 3]).await;
    let page = gateway.ready_page_with("\"ready\":true").await;
    assert!(page.contains("revision 6"), "{page}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_gateway_without_any_state_passes_nothing_and_is_not_ready() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
    let page = gateway.ready_page_with("no stored state").await;
    assert!(page.starts_with("HTTP/1.0 503"), "{page}");
    assert!(gateway.page("/livez").await.starts_with("HTTP/1.0 200"));
    assert!(gateway.kernel.held().is_empty());
    gateway.stop().await;
}

#[tokio::test]
async fn a_corrupt_state_is_set_aside_and_the_kernel_keeps_what_it_holds_until_a_snapshot() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("state"), b"OGSTATE\nnot a state at all").unwrap();
    let servers = cluster.servers(1).await;
    let mut setup = Setup::new(&cluster, &servers, dir.path());
    setup.kernel = FakeFirewall::holding([element(1), element(9)].into());
    let gateway = setup.start().await;
    let mut session = servers[0].accept().await;
    assert_eq!(session.hello().await.state, None);
    gateway.holds(&[1, 9]).await;
    let aside = std::fs::read_dir(dir.path()).unwrap().filter_map(Result::ok);
    assert!(
        aside.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with("state.version-")
            || name.to_string_lossy().starts_with("state.corrupt-"))
    );

    session.welcome(5, allowlist::feed::SessionStart::Snapshot).await;
    session.snapshot(&held(5, &[1])).await;
    session.applied(5).await;
    gateway.holds(&[1]).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_kernel_that_refuses_is_asked_again_with_the_whole_set_and_the_session_goes_on() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
    let mut session = servers[0].accept().await;
    session.bring_to(&held(5, &[1])).await;
    gateway.kernel.fail_next("no memory");
    session.change(added(6, 2)).await;
    session.applied(6).await;
    gateway.holds(&[1, 2]).await;
    let whole = Call::Replace([element(1), element(2)].into());
    assert!(gateway.kernel.calls().contains(&whole), "{:?}", gateway.kernel.calls());
    assert!(gateway.page("/metrics").await.contains("outputguard_kernel_errors_total 1"));
    gateway.ready_page_with("\"ready\":true").await;
    gateway.stop().await;
}

#[tokio::test]
async fn elements_that_do_not_pass_are_reported_with_reasons_until_they_are_gone() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let setup = Setup::new(&cluster, &servers, dir.path());
    setup.kernel.refuse(element(2), "set is full");
    let gateway = setup.start().await;
    let mut session = servers[0].accept().await;
    session.bring_to(&held(5, &[1])).await;
    session.change(added(6, 2)).await;
    let applied = session.applied(6).await;
    assert_eq!(applied.refused.len(), 1);
    assert_eq!(applied.refused[0].reason, "set is full");
    session.change(added(7, 3)).await;
    assert_eq!(session.applied(7).await.refused.len(), 1, "still refused");
    let gone = allowlist::Change { revision: 8, revoked: vec![element(2)], ..Default::default() };
    session.change(gone).await;
    assert!(session.applied(8).await.refused.is_empty());
    gateway.stop().await;
}

#[tokio::test]
async fn a_firewall_that_cannot_be_repaired_is_not_ready_although_changes_succeed() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
    let mut session = servers[0].accept().await;
    session.bring_to(&held(5, &[1])).await;
    gateway.kernel.break_repair(Some("no iptables"));
    gateway.ready_page_with("no iptables").await;
    session.change(added(6, 2)).await;
    session.applied(6).await;
    let page = gateway.page("/readyz").await;
    assert!(page.starts_with("HTTP/1.0 503") && page.contains("no iptables"), "{page}");
    gateway.kernel.break_repair(None);
    gateway.ready_page_with("\"ready\":true").await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_dry_run_reports_nothing_as_applied_and_stores_nothing() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let mut setup = Setup::new(&cluster, &servers, dir.path());
    setup.config.firewall = gateway::config::FirewallKind::DryRun;
    let gateway = setup.start().await;
    let mut session = servers[0].accept().await;
    assert_eq!(session.hello().await.state, None);
    session.welcome(5, allowlist::feed::SessionStart::Snapshot).await;
    session.snapshot(&held(5, &[1])).await;
    gateway.holds(&[1]).await;
    session.change(added(6, 2)).await;
    gateway.holds(&[1, 2]).await;
    let (_, said) = tokio::join!(gateway.stop(), session.rest());
    assert_eq!(said, []);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn drift_is_repaired_within_seconds_and_counted() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
    gateway.kernel.drift("filter FORWARD (v4): jump to OG-FORWARD was missing");
    let counted = "outputguard_drift_repairs_total 1";
    until(counted, async || gateway.page("/metrics").await.contains(counted).then_some(())).await;
    gateway.stop().await;
}

#[tokio::test]
async fn the_metrics_page_has_the_seeds_families_and_clean_ones_of_our_own() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
    let mut session = servers[0].accept().await;
    session.bring_to(&held(5, &[1])).await;
    gateway.kernel.count(ElementCounters {
        packets_out: 1,
        bytes_out: 60,
        packets_in: 2,
        bytes_in: 3_000,
        ..ElementCounters::zero(element(1))
    });
    gateway.ready_page_with("in_sync").await;
    let answer = gateway.page("/metrics").await;
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    for line in [
        "iptables_bytes_count{chain=\"FORWARD\",direction=\"bytes_count\",hostname=\"gw-1\",ip=\"1.1.1.1/32\",type=\"INPUT\"} 3000",
        "iptables_bytes_count{chain=\"POSTROUTING\",direction=\"bytes_count\",hostname=\"gw-1\",ip=\"1.1.1.1/32\",type=\"OUTPUT\"} 60",
        "iptables_packets_count{chain=\"FORWARD\",direction=\"packets_count\",hostname=\"gw-1\",ip=\"1.1.1.1/32\",type=\"INPUT\"} 2",
        "outputguard_applied_revision 5",
        "outputguard_cluster_revision 5",
        "outputguard_revision_lag 0",
        "outputguard_elements 1",
        "outputguard_refused_elements 0",
        "outputguard_feed_state{state=\"in_sync\"} 1",
        "outputguard_apply_duration_seconds_count{kind=\"whole\"} 1",
    ] {
        assert!(page.lines().any(|found| found == line), "missing {line} in\n{page}");
    }
    let node = format!("outputguard_feed_connected{{node=\"{}\"}} 1", servers[0].address);
    assert!(page.contains(&node), "missing {node}");
    lint(page);
    gateway.stop().await;
}

fn cut(revision: u64) -> CutReport {
    CutReport {
        revision,
        cause: CutCause::Revoked,
        flows: 2,
        uncounted: 0,
        bytes_out: 100,
        bytes_in: 7_000,
        at_ms: 1,
        took_us: 900,
        elements: vec![CutElement { element: element(1), flows: 2, bytes_out: 100, bytes_in: 7_000 }],
    }
}

#[tokio::test]
async fn reports_of_cut_flows_reach_a_server_also_those_made_without_a_session() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let gateway = Setup::new(&cluster, &servers, dir.path()).start().await;
    let mut session = servers[0].accept().await;
    session.bring_to(&held(5, &[1])).await;
    gateway.kernel.cut(cut(4));
    assert_eq!(session.cut().await, cut(4));
    drop(session);
    let mut session = servers[0].accept().await;
    session.hello().await;
    gateway.kernel.cut(cut(6));
    // One that the kernel driver could not date is about what is applied.
    gateway.kernel.cut(cut(0));
    session.welcome(5, allowlist::feed::SessionStart::Resume).await;
    assert_eq!(session.cut().await, cut(6));
    assert_eq!(session.cut().await, cut(5));
    let page = gateway.page("/metrics").await;
    for line in [
        "outputguard_cut_flows_total{cause=\"revoked\"} 6",
        "outputguard_cut_flow_bytes_total{cause=\"revoked\",direction=\"in\"} 21000",
        "outputguard_cut_reports_lost_total 0",
        "outputguard_gateway_mode{mode=\"enforce\"} 1",
    ] {
        assert!(page.lines().any(|found| found == line), "missing {line} in\n{page}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn what_was_denied_is_counted_and_goes_on_where_the_kernel_was() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let servers = cluster.servers(1).await;
    let setup = Setup::new(&cluster, &servers, dir.path());
    setup.kernel.deny(Denied { packets_v4: 3, bytes_v4: 180, packets_v6: 1, bytes_v6: 80 });
    let gateway = setup.start().await;
    let counted = "outputguard_unlisted_bytes_total{family=\"ipv4\"} 180";
    until(counted, async || gateway.page("/metrics").await.contains(counted).then_some(())).await;
    gateway.stop().await;
}

/// promtool's judgement of all families but the seed's two, which it rejects for their names.
fn lint(page: &str) {
    let ours: String =
        page.lines().filter(|line| !line.contains("iptables_")).map(|line| format!("{line}\n")).collect();
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = started else {
        // `make test` installs it; a bare `cargo test` does without.
        return;
    };
    promtool.stdin.take().unwrap().write_all(ours.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

//! The main job with the real binaries: each of the demo's ten steps on a lab of its own, so that a failure names its
//! step and steps cannot lean on each other.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy knows only the test functions")]

use lab::check::Step;
use lab::{Lab, LabOptions, demo};

fn prove(number: usize) {
    let mut lab = Lab::start(&LabOptions::default()).unwrap();
    demo::seed_dns(&lab).unwrap();
    Step::of(number).unwrap().prove(&mut lab).unwrap();
    lab.stop().unwrap();
}

#[test]
fn e2e_nothing_passes_a_gateway_with_an_empty_list() {
    prove(1);
}

#[test]
fn e2e_a_domain_added_on_a_follower_passes_and_nothing_else() {
    prove(2);
}

#[test]
fn e2e_exactly_the_added_addresses_ports_and_networks_pass() {
    prove(3);
}

#[test]
fn e2e_a_changed_record_passes_without_human_action() {
    prove(4);
}

#[test]
fn e2e_a_deletion_cuts_open_connections_and_protection_refuses_it() {
    prove(5);
}

#[test]
fn e2e_bad_targets_are_refused_with_a_reason() {
    prove(6);
}

#[test]
fn e2e_traffic_and_writes_survive_the_death_of_the_leader() {
    prove(7);
}

#[test]
fn e2e_no_packet_is_lost_while_all_servers_are_dead_and_gateways_restart() {
    prove(8);
}

#[test]
fn e2e_metrics_equal_what_was_sent() {
    prove(9);
}

#[test]
fn e2e_the_client_moves_when_a_gateway_goes_dark() {
    prove(10);
}

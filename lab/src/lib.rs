//! A small internet in network namespaces: three servers, two gateways, a client with the route agent, DNS, and an
//! "internet" that answers on many public addresses. The demo, the end-to-end tests, the chaos run and the benches
//! stand on it.
//!
//! ```text
//!   host 127.0.0.1:8080 ──fd──▶ lb (HAProxy)        dns (knot + unbound)
//!                                │ .100              │ .53          │ .53
//!   ── management 10.1.0.0/24 ───┼──┬──────┬──────┬──┴──┬─────┐     │
//!                                 srv1   srv2   srv3   gw1   gw2    │
//!   ── client LAN 10.2.0.0/24 ──────────────────────────┼─────┼─────┴── client (.100, route agent)
//!   ── public 203.0.114.0/24 ───────────────────────────┴─────┴──────── inet (93.184/16, 1.1.1/24, 2606:4700::/32 …)
//! ```
//!
//! All three networks are bridges in a namespace of their own, `core`; nothing is made in the host's namespace, so the
//! host's rules, routes and interfaces stay as they are and runs side by side cannot collide.
//!
//! - [`Lab`] starts everything, or step by step; dropping it removes everything.
//! - [`Run`] names a run and removes what crashed runs left; [`Namespace`], [`Network`], [`Process`] and [`Forward`]
//!   are the ground it stands on.
//! - [`Dns`], [`Internet`], [`Server`], [`Gateway`], [`RouteAgent`], [`Balancer`] are the machines; [`Client`] and
//!   [`Api`] are the people in front of them.
//! - [`check`] proves the main job with packets.
//!
//! Errors are `anyhow` chains, since their only reader is a person in front of a failed run.

pub mod addresses;
pub mod chaos;
pub mod check;
pub mod demo;
pub mod internet;
pub mod wait;

mod api;
mod balancer;
mod binaries;
mod client;
mod dns;
mod forward;
mod gateway;
mod lab;
mod metrics;
mod namespace;
mod network;
mod process;
mod route_agent;
mod run;
mod server;
mod udp_stream;

pub use api::{Api, ApiError, Entry, GatewayLine, NewEntry, NodeLine, Problem, Status};
pub use balancer::{Balancer, HostPort};
pub use binaries::Binaries;
pub use client::{Client, Download, Outcome, Seen};
pub use dns::{Dns, RecordType, ZONE};
pub use forward::Forward;
pub use gateway::Gateway;
pub use internet::Internet;
pub use lab::{Lab, LabOptions};
pub use metrics::Metrics;
pub use namespace::Namespace;
pub use network::{Leg, Network};
pub use process::{Process, Program};
pub use route_agent::RouteAgent;
pub use run::Run;
pub use server::{Server, SharedFiles};
pub use udp_stream::{StreamReport, UdpStream};

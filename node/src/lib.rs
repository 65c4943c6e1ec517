//! The OutputGuard server.
//!
//! Map: [`config`] and [`tls`] say how a node runs, [`run`] wires it and stops it in order. [`cluster`] is what the
//! other parts see of replication, [`raft`] is how it works; [`api`] and [`feed`] are what people and gateways see,
//! [`auth`] decides who may; [`resolver`] looks the domains up while this node leads.

pub mod api;
pub mod auth;
pub mod cluster;
pub mod config;
pub mod expiry;
pub mod feed;
mod raft;
pub mod resolver;
pub mod run;
pub mod tls;
mod web;

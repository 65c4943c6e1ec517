//! The route agent: sends all public address space of a host to an OutputGuard gateway, and nothing past it.
//!
//! Map, in the order things happen: [`cli`] and [`settings`] say what is wanted, [`probe`] finds out which gateway
//! hosts are alive, [`choice`] picks one, [`desired`] computes the routes and rules the kernel should hold,
//! [`plan`] compares them with what it holds, [`netlink`] reads and changes the kernel (nothing else touches routes),
//! [`agent`] keeps that going.
//!
//! Traffic fails closed: under the route to the gateway lies an `unreachable` one that takes over whenever the
//! kernel drops the first, the agent's end included. A stopped agent removes nothing, so a restart or an upgrade
//! moves no packet; `--cleanup` (or `cleanup_on_exit: true`) removes every trace.

pub mod agent;
pub mod choice;
pub mod cli;
pub mod desired;
pub mod netlink;
pub mod plan;
pub mod probe;
pub mod settings;

//! The real binary: what it says when it cannot start, and three of them together.

mod harness;
mod processes;
mod refusals;

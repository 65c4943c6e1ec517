//! Doors to private parsers for the fuzz targets (crate `fuzz`). Each takes whatever bytes, panics when what is to be
//! true of the parser is not, and returns otherwise.

pub use crate::firewall::fuzzing::{
    conntrack, denials, denials_question, ipset, iptables, netlink, questions,
};
pub use crate::state::fuzzing::{state, state_file, state_steps};

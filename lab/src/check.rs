//! The main job in ten steps, each proven with packets. The steps use addresses of their own, but stand on the same
//! lab one after the other; each leaves it with everything running.

mod access;
mod counters;
mod dns_change;
mod failover;
mod faults;
mod probe;
mod refusals;
mod revoke;

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::lab::Lab;

pub use probe::{Probe, Way};

/// One step of the main job.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Its number in the list, from 1.
    pub number: usize,
    /// What it proves.
    pub title: &'static str,
    prove: fn(&mut Lab) -> Result<()>,
}

/// All steps, in order.
pub const STEPS: [Step; 10] = [
    Step { number: 1, title: "nothing passes: v4, v6, TCP, UDP, ICMP", prove: access::nothing_passes },
    Step {
        number: 2,
        title: "a domain added on a follower passes, NATed; nothing else",
        prove: access::a_domain_passes,
    },
    Step {
        number: 3,
        title: "address with port, CIDR, v6 address: exactly those pass",
        prove: access::exactly_those_pass,
    },
    Step {
        number: 4,
        title: "a changed record passes by itself",
        prove: dns_change::a_changed_record_passes,
    },
    Step {
        number: 5,
        title: "delete cuts open connections; protected refuses and passes",
        prove: revoke::delete_cuts,
    },
    Step {
        number: 6,
        title: "private, overlapping and garbage targets: 422 and why",
        prove: refusals::bad_targets,
    },
    Step {
        number: 7,
        title: "leader killed: transfer completes, writes go on, it returns",
        prove: faults::leader_killed,
    },
    Step {
        number: 8,
        title: "all servers killed, gateways restarted: not one packet lost",
        prove: faults::all_killed,
    },
    Step {
        number: 9,
        title: "metrics equal what was sent, both directions",
        prove: counters::metrics_are_exact,
    },
    Step {
        number: 10,
        title: "a gateway goes dark: the client moves to the other",
        prove: failover::client_moves,
    },
];

impl Step {
    /// The step with this number.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(number: usize) -> Result<Self> {
        STEPS
            .into_iter()
            .find(|step| step.number == number)
            .with_context(|| format!("there is no step {number}"))
    }

    /// Proves it on `lab`, and that until now no packet with a private source has left.
    ///
    /// # Errors
    /// What does not hold.
    pub fn prove(&self, lab: &mut Lab) -> Result<()> {
        (self.prove)(lab)?;
        let leaked = lab.internet.private_source_packets()?;
        ensure!(leaked == 0, "{leaked} packets with a private source address arrived in the internet");
        Ok(())
    }
}

/// Proves all steps, a line each with its time; stops at the first that does not hold.
///
/// # Errors
/// Which step failed, and why.
pub fn run(lab: &mut Lab, out: &mut impl Write) -> Result<()> {
    let all = Instant::now();
    for step in STEPS {
        let start = Instant::now();
        let result = step.prove(lab);
        let word = if result.is_ok() { "ok    " } else { "FAILED" };
        let seconds = start.elapsed().as_secs_f32();
        writeln!(out, "{word} {:>2}  {:<62} {seconds:>6.1} s", step.number, step.title)?;
        out.flush()?;
        if let Err(error) = result {
            writeln!(out, "           {error:#}")?;
            return Err(error.context(format!("step {} ({}) does not hold", step.number, step.title)));
        }
    }
    writeln!(
        out,
        "all {} hold, and no packet left with a private source; {:.1} s",
        STEPS.len(),
        all.elapsed().as_secs_f32()
    )?;
    Ok(())
}

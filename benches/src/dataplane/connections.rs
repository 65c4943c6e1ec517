//! New TCP connections a second, one after the other, to addresses all over the list. One thread works both ends.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::{Extent, PROCESSOR, alone_on, compare, rounds};
use crate::layout::Row;
use crate::path::listed;
use crate::report::{Line, Report};

const PORT: u16 = 5_002;
/// Connections between two looks at the clock.
const BATCH: usize = 50;

pub(super) fn run(pair: &[Row; 2], extent: Extent, report: &mut Report) -> Result<()> {
    let addresses: Vec<Vec<Ipv4Addr>> = pair.iter().map(|row| listed(row.layout.listed())).collect();
    let mut listeners = Vec::new();
    for row in pair {
        let bind = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("listen");
        listeners.push(row.path.outside.enter(bind)?);
    }
    let rows: Vec<&Row> = pair.iter().collect();
    let mut next = [0; 2];
    let samples = rounds(&rows, extent.rounds, |row, _| {
        let at = usize::from(row.layout == pair[1].layout);
        connect_for(row, &listeners[at], &addresses[at], &mut next[at], extent)
    })?;
    let line = compare(&samples[1], &samples[0]);
    let what = "connections/s, 100k elements / plain NAT".into();
    report.result("connections_vs_plain_100k", Line { what, aim: "≥ 0.9", ..line });
    Ok(())
}

/// Connections a second; `next` is the address whose turn it is.
fn connect_for(
    row: &Row,
    listener: &TcpListener,
    addresses: &[Ipv4Addr],
    next: &mut usize,
    extent: Extent,
) -> Result<f64> {
    alone_on(PROCESSOR, || {
        row.path.inside.enter_this_thread()?;
        let start = Instant::now();
        let mut connections = 0;
        while start.elapsed() < extent.sample {
            for _ in 0..BATCH {
                let client = TcpStream::connect((addresses[*next], PORT)).context("connect")?;
                let (server, _) = listener.accept().context("accept")?;
                // Ends with a reset, which leaves nothing behind on either side.
                let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
                setsockopt(&client, sockopt::Linger, &at_once).context("set how it ends")?;
                drop(client);
                drop(server);
                // As the list is in no order, its neighbours lie far from each other.
                *next = (*next + 1) % addresses.len();
            }
            connections += BATCH;
        }
        Ok(connections as f64 / start.elapsed().as_secs_f64())
    })
}

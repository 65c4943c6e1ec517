//! Round trips of small datagrams. One thread works both ends, so that no wake-up is in them.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Extent, PROCESSOR, alone_on, rounds};
use crate::layout::Row;
use crate::load::{median, quantile};
use crate::path::listed;
use crate::report::{Line, Report};

const PORT: u16 = 5_003;
const DATAGRAM_BYTES: usize = 64;
/// Not measured: the flow begins.
const WARM_UP: usize = 100;
/// A datagram that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// Of one sample, µs.
#[derive(Debug, Clone, Copy)]
struct RoundTrips {
    p50: f64,
    p99: f64,
}

pub(super) fn run(pair: &[Row; 2], extent: Extent, report: &mut Report) -> Result<()> {
    let addresses: Vec<Vec<Ipv4Addr>> = pair.iter().map(|row| listed(row.layout.listed())).collect();
    let rows: Vec<&Row> = pair.iter().collect();
    let samples = rounds(&rows, extent.rounds, |row, round| {
        let addresses = &addresses[usize::from(row.layout == pair[1].layout)];
        ping(row, addresses[round * addresses.len() / extent.rounds], extent.sample)
    })?;
    let of =
        |row: usize, value: fn(&RoundTrips) -> f64| -> Vec<f64> { samples[row].iter().map(value).collect() };
    for (key, value) in
        [("p50", (|trips: &RoundTrips| trips.p50) as fn(&RoundTrips) -> f64), ("p99", |trips| trips.p99)]
    {
        let (plain, ours) = (of(0, value), of(1, value));
        let added: Vec<f64> = ours.iter().zip(&plain).map(|(ours, plain)| ours - plain).collect();
        let line = Line {
            what: format!("round trip {key}, µs; added"),
            ours: Some(median(&ours)),
            peer: Some(median(&plain)),
            result: Some(median(&added)),
            aim: "",
        };
        report.result(&format!("latency_{key}_added_us"), line);
    }
    Ok(())
}

fn ping(row: &Row, address: Ipv4Addr, time: Duration) -> Result<RoundTrips> {
    let server = row.path.outside.enter(|| socket((address, PORT).into()))?;
    let client = row.path.inside.enter(|| socket((Ipv4Addr::UNSPECIFIED, 0).into()))?;
    client.connect((address, PORT)).context("connect")?;
    alone_on(PROCESSOR, || {
        let mut buffer = [0; DATAGRAM_BYTES];
        let mut trip = || -> Result<Duration> {
            let start = Instant::now();
            client.send(&[0; DATAGRAM_BYTES]).context("ask")?;
            let (_, source) = server.recv_from(&mut buffer).context("wait for a question")?;
            server.send_to(&buffer, source).context("answer")?;
            client.recv(&mut buffer).context("wait for an answer")?;
            Ok(start.elapsed())
        };
        for _ in 0..WARM_UP {
            trip()?;
        }
        let start = Instant::now();
        let mut trips = Vec::new();
        while start.elapsed() < time {
            trips.push(trip()?.as_secs_f64() * 1e6);
        }
        trips.sort_by(f64::total_cmp);
        Ok(RoundTrips { p50: quantile(&trips, 0.5), p99: quantile(&trips, 0.99) })
    })
}

fn socket(address: std::net::SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("bind {address}"))?;
    socket.set_read_timeout(Some(PATIENCE)).context("set a time limit")?;
    Ok(socket)
}

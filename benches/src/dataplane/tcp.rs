//! Bytes a second of one TCP connection with packets of the wire's size. Both ends are worked by one thread, so that
//! the rate is what the processor can do and not when it wakes whom.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Extent, PROCESSOR, alone_on, compare, rounds};
use crate::layout::Row;
use crate::offloads;
use crate::path::{LAN, WAN, listed};
use crate::report::{Line, Report};

const PORT: u16 = 5_001;
const BUFFER_BYTES: usize = 256 * 1024;
/// Until the congestion window is open.
const WARM_UP: Duration = Duration::from_millis(50);
/// When neither end can go on, somebody else has to work first.
const PAUSE: Duration = Duration::from_micros(50);
/// A connection that stands still for so long is broken.
const STANDSTILL: Duration = Duration::from_secs(5);

pub(super) fn run(pair: &[Row; 2], extent: Extent, report: &mut Report) -> Result<()> {
    for row in pair {
        let path = &row.path;
        for (namespace, interface) in
            [(&path.inside, LAN), (&path.gateway, LAN), (&path.gateway, WAN), (&path.outside, WAN)]
        {
            offloads::switch_off(namespace, interface)?;
        }
    }
    let addresses: Vec<Vec<Ipv4Addr>> = pair.iter().map(|row| listed(row.layout.listed())).collect();
    let rows: Vec<&Row> = pair.iter().collect();
    let samples = rounds(&rows, extent.rounds, |row, round| {
        let addresses = &addresses[usize::from(row.layout == pair[1].layout)];
        // Another address each time, over the whole list.
        bulk(row, addresses[round * addresses.len() / extent.rounds], extent.sample)
    })?;
    let line = compare(&samples[1], &samples[0]);
    let what = "TCP bytes/s, 100k elements / plain NAT".into();
    report.result("tcp_vs_plain_100k", Line { what, aim: "≥ 0.95", ..line });
    Ok(())
}

fn bulk(row: &Row, address: Ipv4Addr, time: Duration) -> Result<f64> {
    let listener = row.path.outside.enter(|| TcpListener::bind((address, PORT)).context("listen"))?;
    alone_on(PROCESSOR, || {
        row.path.inside.enter_this_thread()?;
        let mut client = TcpStream::connect((address, PORT)).context("connect")?;
        let (mut server, _) = listener.accept().context("accept")?;
        client.set_nonblocking(true)?;
        server.set_nonblocking(true)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        move_for(&mut client, &mut server, &mut buffer, WARM_UP)?;
        move_for(&mut client, &mut server, &mut buffer, time)
    })
}

/// Bytes a second that arrive.
fn move_for(
    client: &mut TcpStream,
    server: &mut TcpStream,
    buffer: &mut [u8],
    time: Duration,
) -> Result<f64> {
    let start = Instant::now();
    let mut arrived = 0_u64;
    let mut moved_at = start;
    loop {
        let now = Instant::now();
        if now - start >= time {
            return Ok(arrived as f64 / (now - start).as_secs_f64());
        }
        let written = count(client.write(buffer)).context("send")?;
        let read = count(server.read(buffer)).context("receive")?;
        arrived += read as u64;
        if written + read > 0 {
            moved_at = now;
        } else {
            ensure!(now - moved_at < STANDSTILL, "nothing moves");
            std::thread::sleep(PAUSE);
        }
    }
}

fn count(moved: std::io::Result<usize>) -> std::io::Result<usize> {
    match moved {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

//! The process behind every public address: HTTP, echo, and "who am I" over UDP.

use std::convert::Infallible;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::body::Body;
use axum::extract::Query;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::routing::get;
use axum::serve::IncomingStream;
use axum::{Json, Router};
use bytes::Bytes;
use nix::sys::socket::{
    self, ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage,
    setsockopt, sockopt,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::{ECHO_PORT, HTTP_PORTS, WHO_PORT};

/// Bytes of one piece of a stream; small enough to pace low rates smoothly.
const PIECE_BYTES: u64 = 8 * 1024;
/// Most bytes one stream may have.
const MAX_STREAM_BYTES: u64 = 1 << 34;
const MAX_DATAGRAM_BYTES: usize = 65_536;
/// Receive buffer of the UDP ports, so that bursts do not overflow it.
const UDP_BUFFER_BYTES: usize = 8 << 20;

/// Serves on all addresses of the namespace until the process is ended.
///
/// # Errors
/// When a port is taken.
pub async fn serve() -> Result<()> {
    let mut tasks = JoinSet::new();
    let families: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    for family in families {
        for port in HTTP_PORTS {
            let listener = listen(family, port).await?;
            let app = Router::new().route("/", get(who)).route("/stream", get(stream));
            tasks.spawn(async move {
                axum::serve(listener, app.into_make_service_with_connect_info::<Ends>())
                    .await
                    .context("serve HTTP")
            });
        }
        tasks.spawn(tcp_echo(listen(family, ECHO_PORT).await?));
        for (port, answer) in [(ECHO_PORT, Answer::Echo), (WHO_PORT, Answer::Who)] {
            let socket =
                UdpSocket::bind((family, port)).await.with_context(|| format!("bind udp {family} {port}"))?;
            tasks.spawn(udp(socket, answer));
        }
    }
    match tasks.join_next().await {
        Some(result) => result.context("a task of the internet panicked")?,
        None => Ok(()),
    }
}

async fn listen(address: IpAddr, port: u16) -> Result<TcpListener> {
    TcpListener::bind((address, port)).await.with_context(|| format!("listen on {address} port {port}"))
}

/// Both ends of a connection.
#[derive(Debug, Clone, Copy, Serialize)]
struct Ends {
    asked: SocketAddr,
    source: SocketAddr,
}

impl Connected<IncomingStream<'_, TcpListener>> for Ends {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        let source = *stream.remote_addr();
        Self { asked: stream.io().local_addr().unwrap_or(source), source }
    }
}

async fn who(ConnectInfo(ends): ConnectInfo<Ends>) -> Json<Ends> {
    Json(ends)
}

#[derive(Debug, Deserialize)]
struct Wanted {
    bytes: u64,
    /// Bytes a second; none or 0 is as fast as it goes.
    #[serde(default)]
    rate: u64,
}

async fn stream(Query(wanted): Query<Wanted>) -> Body {
    let total = wanted.bytes.min(MAX_STREAM_BYTES);
    let piece = Bytes::from(vec![b'x'; PIECE_BYTES as usize]);
    let start = Instant::now();
    Body::from_stream(futures_util::stream::unfold(0_u64, move |sent| {
        let piece = piece.clone();
        async move {
            let length = PIECE_BYTES.min(total - sent);
            if length == 0 {
                return None;
            }
            if let Some(ms) = (sent * 1_000).checked_div(wanted.rate) {
                sleep_until(start + Duration::from_millis(ms)).await;
            }
            Some((Ok::<_, Infallible>(piece.slice(..length as usize)), sent + length))
        }
    }))
}

async fn tcp_echo(listener: TcpListener) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("accept on the echo port")?;
        tokio::spawn(echo(stream));
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<u64> {
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Echo,
    Who,
}

/// Answers datagrams from the very address they were sent to; a plain socket would answer from the interface's.
async fn udp(udp: UdpSocket, answer: Answer) -> Result<()> {
    let asked_port = udp.local_addr().context("read the socket's address")?;
    if asked_port.is_ipv4() {
        setsockopt(&udp, sockopt::Ipv4PacketInfo, &true).context("ask for packet information")?;
    } else {
        setsockopt(&udp, sockopt::Ipv6RecvPacketInfo, &true).context("ask for packet information")?;
    }
    setsockopt(&udp, sockopt::RcvBufForce, &UDP_BUFFER_BYTES).context("enlarge the receive buffer")?;
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    loop {
        let (length, source, asked) = udp.async_io(Interest::READABLE, || receive(&udp, &mut buffer)).await?;
        let text;
        let payload = match answer {
            Answer::Echo => &buffer[..length],
            Answer::Who => {
                let asked = SocketAddr::new(asked.ip(), asked_port.port());
                text = serde_json::to_vec(&Ends { asked, source }).context("write the answer")?;
                &text
            }
        };
        // Somebody who cannot be answered is no reason to stop; the asker sees the loss.
        let _ = udp.async_io(Interest::WRITABLE, || send(&udp, payload, source, asked)).await;
    }
}

/// One datagram: its length, where it came from, which address it was sent to.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, SocketAddr)> {
    let mut space = nix::cmsg_space!(libc::in6_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = socket::recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let missing = |what| io::Error::other(format!("a datagram without {what}"));
    let asked = message
        .cmsgs()?
        .find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr))))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::V6(info.ipi6_addr.s6_addr.into())),
            _ => None,
        })
        .ok_or_else(|| missing("destination"))?;
    let source = message.address.as_ref().and_then(standard).ok_or_else(|| missing("source"))?;
    Ok((message.bytes, source, SocketAddr::new(asked, 0)))
}

fn standard(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    address.as_sockaddr_in6().map(|v6| SocketAddr::new(v6.ip().into(), v6.port()))
}

fn send(socket: &UdpSocket, payload: &[u8], to: SocketAddr, from: SocketAddr) -> io::Result<usize> {
    let slices = [IoSlice::new(payload)];
    let raw = socket.as_raw_fd();
    let flags = MsgFlags::MSG_DONTWAIT;
    let sent = match (from.ip(), to) {
        (IpAddr::V4(from), SocketAddr::V4(to)) => {
            let source = libc::in_addr { s_addr: u32::from(from).to_be() };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: source };
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            socket::sendmsg(raw, &slices, &control, flags, Some(&SockaddrIn::from(to)))
        }
        (IpAddr::V6(from), SocketAddr::V6(to)) => {
            let info =
                libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: from.octets() }, ipi6_ifindex: 0 };
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            socket::sendmsg(raw, &slices, &control, flags, Some(&SockaddrIn6::from(to)))
        }
        _ => return Err(io::Error::other("source and destination of different families")),
    };
    Ok(sent?)
}

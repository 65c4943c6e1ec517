//! Small packets towards an address that does not pass yet, through each gateway, and a receiver behind them that notes
//! when the first one comes.

use std::io::IoSliceMut;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use lab::addresses::{self, Net};
use lab::{Namespace, Network};
use nix::sys::socket::{self, ControlMessageOwned, MsgFlags, SockaddrIn, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::packets::{Cable, End, Frame, PAYLOAD, Sender, udp};
use crate::shell;

/// From one packet to the next, through each gateway.
const INTERVAL: Duration = Duration::from_micros(200);
const PORT: u16 = 4_242;
const FROM_PORT: u16 = 41_000;
const NUMBER_BYTES: usize = size_of::<u64>();
/// How often the receiver looks whether it should end.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(200);

/// Sender and receiver, each on a thread. Dropping it ends them.
pub(super) struct Probe {
    shared: Arc<Shared>,
    client_link: [u8; 6],
    gateway_links: Vec<[u8; 6]>,
    threads: Vec<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    aim: Mutex<Option<Aim>>,
    stop: AtomicBool,
}

/// What is being sent, and who wants to know.
struct Aim {
    number: u64,
    frames: Vec<Frame>,
    /// Public addresses of the gateways that no packet came from yet.
    awaited: Vec<Ipv4Addr>,
    arrivals: UnboundedSender<SystemTime>,
}

impl Probe {
    /// On the lab's client and internet; sends nothing yet.
    pub(super) fn start(network: &Network) -> Result<Self> {
        let lan = Net::Lan.interface();
        let client_link = link(&network.client, lan)?;
        let gateway_links =
            network.gateways.iter().map(|gateway| link(gateway, lan)).collect::<Result<Vec<_>>>()?;
        let sender = Sender::open(&network.client, lan)?;
        let receiver = network.internet.enter(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("bind the receiver")?;
            socket.set_read_timeout(Some(RECEIVE_TIMEOUT)).context("set a time limit")?;
            setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("ask for time stamps")?;
            Ok(socket)
        })?;
        let shared = Arc::<Shared>::default();
        let threads = vec![
            thread::Builder::new().name("probe-send".to_owned()).spawn({
                let shared = Arc::clone(&shared);
                move || send(&sender, &shared)
            })?,
            thread::Builder::new().name("probe-receive".to_owned()).spawn({
                let shared = Arc::clone(&shared);
                move || receive(&receiver, &shared)
            })?,
        ];
        Ok(Self { shared, client_link, gateway_links, threads })
    }

    /// Sends to `address` from now on. Gives the time of the first packet that passes each gateway. `number` is used once.
    pub(super) fn aim(&self, number: u64, address: Ipv4Addr) -> UnboundedReceiver<SystemTime> {
        let client = Net::Lan.v4(addresses::hundred());
        let frame = |gateway: &[u8; 6]| {
            let to = End { address, port: PORT };
            let from = End { address: client, port: FROM_PORT };
            let mut frame = udp(from, to, Cable { from: self.client_link, to: *gateway });
            frame[PAYLOAD..PAYLOAD + NUMBER_BYTES].copy_from_slice(&number.to_be_bytes());
            frame
        };
        let gateways = 0..self.gateway_links.len();
        // As many messages as there are gateways.
        let (arrivals, receiver) = unbounded_channel();
        self.shared.set(Some(Aim {
            number,
            frames: self.gateway_links.iter().map(frame).collect(),
            awaited: gateways.map(|index| Net::Public.v4(addresses::gateway(index))).collect(),
            arrivals,
        }));
        receiver
    }

    /// Sends nothing any more.
    pub(super) fn rest(&self) {
        self.shared.set(None);
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn set(&self, aim: Option<Aim>) {
        self.with(|place| *place = aim);
    }

    fn with<T>(&self, work: impl FnOnce(&mut Option<Aim>) -> T) -> T {
        work(&mut self.aim.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn send(sender: &Sender, shared: &Shared) -> Result<()> {
    // The default lets a sleeper sleep on for as long as two intervals.
    // SAFETY: takes numbers and changes only this thread.
    ensure!(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) } == 0, "ask for exact timers");
    let mut due = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        let frames = shared.with(|aim| aim.as_ref().map(|aim| aim.frames.clone()));
        if let Some(frames) = frames {
            sender.send_each(&frames)?;
        }
        // From now, when it is late: packets that were not sent are not made up for.
        due = (due + INTERVAL).max(Instant::now());
        thread::sleep(due - Instant::now());
    }
    Ok(())
}

fn receive(receiver: &UdpSocket, shared: &Shared) -> Result<()> {
    let mut buffer = [0; 64];
    let mut space = nix::cmsg_space!(TimeSpec);
    while !shared.stop.load(Ordering::Relaxed) {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = socket::recvmsg::<SockaddrIn>(
            receiver.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::empty(),
        );
        let message = match message {
            Ok(message) => message,
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error).context("receive a probe"),
        };
        let at = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmTimestampns(time) => Some(UNIX_EPOCH + Duration::from(time)),
            _ => None,
        });
        let source = message.address.map(|address| address.ip()).context("a packet without a source")?;
        let at = at.context("a packet without a time stamp")?;
        let number = buffer.first_chunk::<NUMBER_BYTES>().map(|bytes| u64::from_be_bytes(*bytes));
        shared.with(|aim| {
            let Some(aim) = aim.as_mut().filter(|aim| Some(aim.number) == number) else { return };
            if let Some(place) = aim.awaited.iter().position(|gateway| *gateway == source) {
                aim.awaited.swap_remove(place);
                // Who asked may have given up.
                let _ = aim.arrivals.send(at);
            }
        });
    }
    Ok(())
}

/// The link address of `interface`.
fn link(namespace: &Arc<Namespace>, interface: &str) -> Result<[u8; 6]> {
    let line = shell::run(namespace.command("ip").args(["-br", "link", "show", "dev", interface]), "")?;
    let text = line.split_whitespace().nth(2).with_context(|| format!("no link address in {line:?}"))?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    bytes.try_into().ok().with_context(|| format!("{text} is no link address"))
}

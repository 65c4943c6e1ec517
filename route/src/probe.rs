//! Is a gateway's host alive? ICMP echo, answered by its kernel: a gateway *process* that is down moves no traffic,
//! since the kernel keeps enforcing; a *host* that is down does.

mod echo;
mod health;

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use crate::settings::Gateway;
use echo::Echo;
use health::Health;

pub use health::{ANSWERS_BEFORE_UP, LOSSES_BEFORE_DOWN};

/// Probes of some gateways. They end when this is dropped.
#[derive(Debug)]
pub struct Probes {
    alive: watch::Receiver<Vec<bool>>,
    _tasks: JoinSet<()>,
}

impl Probes {
    /// Starts probing `gateways` for which `probed` says so; the others count as alive.
    pub fn start(gateways: &[Gateway], interval: Duration, probed: impl Fn(&Gateway) -> bool) -> Self {
        let (sender, alive) = watch::channel(vec![true; gateways.len()]);
        let mut tasks = JoinSet::new();
        for (place, gateway) in gateways.iter().enumerate().filter(|(_, gateway)| probed(gateway)) {
            tasks.spawn(probe(gateway.clone(), place, interval, sender.clone()));
        }
        Self { alive, _tasks: tasks }
    }

    /// Which gateways are alive, in the order they were given.
    pub fn alive(&self) -> Vec<bool> {
        self.alive.borrow().clone()
    }

    /// Waits until some gateway dies or comes back.
    pub async fn changed(&mut self) {
        if self.alive.changed().await.is_err() {
            // Nothing is probed, so nothing will ever change.
            std::future::pending::<()>().await;
        }
    }
}

/// Checks that probing is possible at all.
///
/// # Errors
/// When neither kind of ICMP socket can be opened.
pub fn check_possible(address: IpAddr) -> std::io::Result<()> {
    Echo::open(SocketAddr::new(address, 0), 0).map(drop)
}

async fn probe(gateway: Gateway, place: usize, interval: Duration, alive: watch::Sender<Vec<bool>>) {
    let mut ticker = tokio::time::interval(interval);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut health = Health::default();
    let mut echo: Option<Echo> = None;
    let mut sequence = 0_u16;
    loop {
        ticker.tick().await;
        sequence = sequence.wrapping_add(1);
        let asked = async {
            let echo = match &mut echo {
                Some(echo) => echo,
                none => none.insert(Echo::open(target(&gateway)?, identifier(place))?),
            };
            echo.ask(sequence).await
        };
        let answered = match tokio::time::timeout(interval, asked).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                debug!(%gateway, %error, "probe failed");
                // A socket can outlive the device or address it was bound to by `connect`.
                echo = None;
                false
            }
            Err(_) => false,
        };
        if health.record(answered) {
            if health.is_up() {
                info!(%gateway, "gateway host answers again");
            } else {
                warn!(%gateway, "gateway host does not answer");
            }
            alive.send_modify(|all| {
                if let Some(slot) = all.get_mut(place) {
                    *slot = health.is_up();
                }
            });
        }
    }
}

fn target(gateway: &Gateway) -> std::io::Result<SocketAddr> {
    Ok(match gateway.address {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), 0),
        IpAddr::V6(v6) => {
            let scope = gateway.device.as_deref().map(nix::net::if_::if_nametoindex).transpose()?;
            SocketAddr::V6(SocketAddrV6::new(v6, 0, 0, scope.unwrap_or_default()))
        }
    })
}

/// Tells our echoes from other programs' on raw sockets.
fn identifier(place: usize) -> u16 {
    #[allow(clippy::cast_possible_truncation, reason = "any 16 bits will do")]
    let (pid, place) = (std::process::id() as u16, place as u16);
    pid.wrapping_add(place.wrapping_mul(0x1003))
}

//! Keeps the kernel at what is desired: at the start, whenever something changes, and every few seconds anyway.

mod capability;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tracing::{error, info, warn};

use crate::choice::{Standing, choose};
use crate::desired::{Desired, Family, Hop, RouteKind, family_switch, route_text, table_text};
use crate::netlink::{Kernel, Place, Snapshot, Watch, own_table};
use crate::plan::{Step, cleanup_steps, steps};
use crate::probe::{self, Probes};
use crate::settings::{Gateway, Settings};

/// Longest time a deviation nobody told us of can last.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(5);
/// Time to the next attempt after one that failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Changes come in bursts (a link coming up is a dozen messages); one reading answers them all.
const SETTLE_TIME: Duration = Duration::from_millis(20);

struct Agent {
    settings: Settings,
    kernel: Kernel,
    probes: Probes,
    /// Place in `settings.gateways` of the one each family uses.
    in_use: BTreeMap<Family, usize>,
    /// Families without a way out, to say so once.
    closed: BTreeSet<Family>,
    /// False when at the start no gateway was on-link and the kernel held none of our routes.
    had_a_way: bool,
}

/// Runs until `shutdown` is ready. Then the routes stay (traffic keeps its gateway, and nothing can pass by it) unless
/// the settings want them removed.
///
/// # Errors
/// When the first attempt fails; later ones are logged and repeated.
pub async fn run(settings: Settings, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::pin!(shutdown);
    let mut watch = Watch::open().context("watch links, routes and rules")?;
    let mut agent = Agent::start(settings).await?;
    if !agent.had_a_way {
        // At boot the link may come later than we do. Until then the host stays closed: its own default route must
        // not carry what the gateways are there to judge.
        warn!(
            "no gateway is on-link yet ({}): public addresses stay unreachable until one is",
            agent.names()
        );
    }
    agent.reconcile().await?;
    info!("routes are in place");
    let mut pause = RECONCILE_INTERVAL;
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            () = agent.probes.changed() => {}
            () = tokio::time::sleep(pause) => {}
            alive = watch.changed() => {
                if !alive {
                    match Watch::open() {
                        Ok(new) => watch = new,
                        Err(error) => {
                            error!(%error, "watch links, routes and rules");
                            tokio::time::sleep(RETRY_INTERVAL).await;
                        }
                    }
                }
                tokio::time::sleep(SETTLE_TIME).await;
            }
        }
        pause = match agent.reconcile().await {
            Ok(()) => RECONCILE_INTERVAL,
            Err(error) => {
                error!("{error:#}");
                RETRY_INTERVAL
            }
        };
    }
    if agent.settings.cleanup_on_exit {
        return cleanup().await;
    }
    info!("stopped; routes and rules stay, `outputguard-route --cleanup` removes them");
    Ok(())
}

/// Makes the kernel hold what is desired once. A gateway that is in use stays in use.
///
/// # Errors
/// When that fails.
pub async fn once(settings: Settings) -> anyhow::Result<()> {
    let mut agent = Agent::start(settings).await?;
    if !agent.had_a_way {
        bail!(
            "gateway {} is not on-link: no network this host is on holds it; use the address a gateway has there",
            agent.names()
        );
    }
    agent.reconcile().await
}

/// Removes every rule and route with our protocol number.
///
/// # Errors
/// All that failed; it goes on past the first failure.
pub async fn cleanup() -> anyhow::Result<()> {
    capability::check(capability::NET_ADMIN)?;
    let kernel = Kernel::open().context("open an rtnetlink socket")?;
    let held = kernel.read(None).await?.held;
    apply(&kernel, &cleanup_steps(&held)).await?;
    info!("our rules and routes are removed");
    Ok(())
}

/// The `ip` commands that would make the kernel hold what is desired.
///
/// # Errors
/// When links cannot be read.
pub async fn dry_run(settings: &Settings) -> anyhow::Result<String> {
    let kernel = Kernel::open().context("open an rtnetlink socket")?;
    let Snapshot { families, .. } = kernel.read(None).await?;
    let mut text = String::new();
    let mut hops = BTreeMap::new();
    for gateway in &settings.gateways {
        match place(&kernel, gateway).await? {
            Place::OnLink(device) => {
                hops.entry(Family::of(gateway.address)).or_insert(Hop { gateway: gateway.address, device });
            }
            Place::Here | Place::Elsewhere => writeln!(text, "# gateway {gateway} is not on-link")?,
        }
    }
    let desired = Desired::new(settings, &families, &hops);
    let name = |index| match nix::net::if_::if_indextoname(index) {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("#{index}"),
    };
    for (key, kind) in &desired.routes {
        let switch = family_switch(Family::of(key.prefix.addr()));
        let table = table_text(key.table);
        writeln!(text, "ip {switch} route replace table {table} {}", route_text(key, kind, &name))?;
    }
    for rule in &desired.rules {
        writeln!(text, "ip {} rule add {rule}", family_switch(rule.family))?;
    }
    Ok(text)
}

impl Agent {
    /// Checks everything that can be checked before the first change.
    async fn start(settings: Settings) -> anyhow::Result<Self> {
        capability::check(capability::NET_ADMIN)?;
        let kernel = Kernel::open().context("open an rtnetlink socket")?;
        let Snapshot { families, held } = kernel.read(own_table(settings.table, settings.main_table)).await?;
        if let Some(route) = held.routes.iter().find(|route| !route.is_ours()) {
            bail!(
                "table {} holds a route of somebody else, {} (protocol {}); choose another table",
                settings.table,
                route.key.prefix,
                route.protocol
            );
        }
        let mut in_use = BTreeMap::new();
        let mut on_link = 0;
        for (index, gateway) in settings.gateways.iter().enumerate() {
            let family = Family::of(gateway.address);
            if !families.contains(&family) {
                bail!("gateway {gateway} cannot be used: this kernel has no {family}");
            }
            match place(&kernel, gateway).await? {
                Place::OnLink(_) => on_link += 1,
                Place::Here => bail!("gateway {gateway} is an address of this host; name the gateway's"),
                Place::Elsewhere => warn!(%gateway, "gateway is not on-link at the moment"),
            }
            // A restart moves no traffic.
            let carries = |kind: Option<RouteKind>| matches!(kind, Some(RouteKind::Via(hop)) if hop.gateway == gateway.address);
            if held.routes.iter().any(|route| carries(route.kind)) {
                in_use.entry(family).or_insert(index);
            }
        }
        for family in families {
            if members(&settings, family).is_empty() {
                warn!("no {family} gateway is named: public {family} addresses will be unreachable");
            }
        }
        let probed = |gateway: &Gateway| members(&settings, Family::of(gateway.address)).len() > 1;
        if let Some(gateway) = settings.gateways.iter().find(|gateway| probed(gateway)) {
            probe::check_possible(gateway.address).context(
                "open an ICMP socket to probe gateways (needs CAP_NET_RAW, or net.ipv4.ping_group_range)",
            )?;
        }
        let probes = Probes::start(&settings.gateways, settings.probe_interval, probed);
        let had_a_way = on_link > 0 || !held.routes.is_empty();
        Ok(Self { probes, settings, kernel, in_use, closed: BTreeSet::new(), had_a_way })
    }

    fn names(&self) -> String {
        let names: Vec<String> = self.settings.gateways.iter().map(Gateway::to_string).collect();
        names.join(", ")
    }

    async fn reconcile(&mut self) -> anyhow::Result<()> {
        let own = own_table(self.settings.table, self.settings.main_table);
        let snapshot = self.kernel.read(own).await?;
        let mut hops = BTreeMap::new();
        for &family in &snapshot.families {
            let hop = self.way_out(family, &snapshot).await?;
            hops.extend(hop.map(|hop| (family, hop)));
            if hop.is_some() {
                self.closed.remove(&family);
            } else if !members(&self.settings, family).is_empty() && self.closed.insert(family) {
                warn!("no {family} gateway is on-link: public {family} addresses are unreachable");
            }
        }
        let desired = Desired::new(&self.settings, &snapshot.families, &hops);
        apply(&self.kernel, &steps(&desired, &snapshot.held)).await
    }

    async fn way_out(&mut self, family: Family, snapshot: &Snapshot) -> anyhow::Result<Option<Hop>> {
        let members = members(&self.settings, family);
        let alive = self.probes.alive();
        let mut places = Vec::with_capacity(members.len());
        for &index in &members {
            places.push(place(&self.kernel, &self.settings.gateways[index]).await?);
        }
        let standing = |(&index, place): (&usize, &Place)| Standing {
            alive: alive.get(index).copied().unwrap_or(true),
            on_link: matches!(place, Place::OnLink(_)),
        };
        let standings: Vec<Standing> = members.iter().zip(&places).map(standing).collect();
        let before = self.in_use.get(&family).and_then(|used| members.iter().position(|index| index == used));
        let Some(chosen) = choose(before, &standings, self.settings.prefer_first) else { return Ok(None) };
        let gateway = &self.settings.gateways[members[chosen]];
        if before != Some(chosen) {
            info!(%gateway, "{family} goes to this gateway");
            self.in_use.insert(family, members[chosen]);
        }
        if let Some(Place::OnLink(device)) = places.get(chosen) {
            return Ok(Some(Hop { gateway: gateway.address, device: *device }));
        }
        // The network behind it went, the route did not: it stays as long as the kernel keeps it.
        let kept = snapshot.held.routes.iter().find_map(|route| match route.kind {
            Some(RouteKind::Via(hop)) if hop.gateway == gateway.address => Some(hop),
            _ => None,
        });
        Ok(kept)
    }
}

/// Places in `settings.gateways` of the family's gateways.
fn members(settings: &Settings, family: Family) -> Vec<usize> {
    let of_family =
        |(index, gateway): (usize, &Gateway)| (Family::of(gateway.address) == family).then_some(index);
    settings.gateways.iter().enumerate().filter_map(of_family).collect()
}

async fn place(kernel: &Kernel, gateway: &Gateway) -> anyhow::Result<Place> {
    let device = match gateway.device.as_deref().map(nix::net::if_::if_nametoindex) {
        None => None,
        Some(Ok(index)) => Some(index),
        Some(Err(_)) => return Ok(Place::Elsewhere),
    };
    Ok(kernel.locate(gateway.address, device).await?)
}

/// Takes every step even when some fail: each one closes or narrows something by itself.
async fn apply(kernel: &Kernel, steps: &[Step]) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    for step in steps {
        match kernel.apply(step).await {
            Ok(()) => tracing::debug!("{step}"),
            Err(failure) => failures.push(failure.to_string()),
        }
    }
    if !steps.is_empty() {
        info!(steps = steps.len(), failed = failures.len(), "changed routes and rules");
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("; ")) }
}

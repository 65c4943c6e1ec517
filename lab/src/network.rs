//! The three networks and the machines on them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, ensure};

use crate::addresses::{self, Net, PUBLIC_V4, PUBLIC_V6};
use crate::namespace::Namespace;
use crate::run::Run;

/// Kernel parameters of a machine that forwards.
const FORWARDING: [(&str, &str); 5] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];

/// A cable: which machine, on which network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg<'a> {
    /// The machine.
    pub host: &'a str,
    /// The network.
    pub net: Net,
}

/// All namespaces of a run, wired up. Dropping it removes them.
#[derive(Debug)]
pub struct Network {
    /// The switch: three bridges, no addresses.
    pub core: Arc<Namespace>,
    /// `srv1`, `srv2` …
    pub servers: Vec<Arc<Namespace>>,
    /// `gw1`, `gw2` …
    pub gateways: Vec<Arc<Namespace>>,
    /// The host that wants to reach the internet.
    pub client: Arc<Namespace>,
    /// Resolver and authority.
    pub dns: Arc<Namespace>,
    /// Load balancer in front of the servers.
    pub balancer: Arc<Namespace>,
    /// Answers on all of [`PUBLIC_V4`] and [`PUBLIC_V6`].
    pub internet: Arc<Namespace>,
}

impl Network {
    /// Makes the namespaces and wires them.
    ///
    /// # Errors
    /// When we may not (root is needed), or more machines are asked for than there are addresses.
    pub fn build(run: &Run, servers: usize, gateways: usize) -> Result<Self> {
        ensure!(servers <= addresses::MAX_SERVERS, "at most {} servers", addresses::MAX_SERVERS);
        ensure!(gateways <= addresses::MAX_GATEWAYS, "at most {} gateways", addresses::MAX_GATEWAYS);
        let make = |host: &str| Namespace::create(&run.namespace_name(host));

        let core = make("core")?;
        let mut bridges = String::new();
        for net in [Net::Management, Net::Lan, Net::Public] {
            let bridge = net.interface();
            // No multicast snooping: without a querier it would starve neighbour discovery.
            _ = writeln!(
                bridges,
                "link add {bridge} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"
            );
            _ = writeln!(bridges, "link set {bridge} up");
        }
        core.ip(&bridges)?;

        let join = |host: &str, number: u8, nets: &[Net]| -> Result<Arc<Namespace>> {
            let namespace = make(host)?;
            for net in nets {
                attach(&core, &namespace, host, *net, number)?;
            }
            Ok(namespace)
        };
        let numbered =
            |name: &str, count: usize| (1..=count).map(|n| format!("{name}{n}")).collect::<Vec<_>>();

        let mut server_namespaces = Vec::new();
        for (index, host) in numbered("srv", servers).iter().enumerate() {
            server_namespaces.push(join(host, addresses::server(index), &[Net::Management])?);
        }
        let mut gateway_namespaces = Vec::new();
        for (index, host) in numbered("gw", gateways).iter().enumerate() {
            let nets = [Net::Management, Net::Lan, Net::Public];
            let namespace = join(host, addresses::gateway(index), &nets)?;
            namespace.sysctls(&FORWARDING)?;
            namespace.ip(&format!(
                "route add default via {}\nroute add default via {}\n",
                Net::Public.v4(addresses::internet()),
                Net::Public.v6(addresses::internet())
            ))?;
            gateway_namespaces.push(namespace);
        }
        let client = join("client", addresses::hundred(), &[Net::Lan])?;
        client.set_resolver(Net::Lan.v4(addresses::resolver()).into())?;
        let dns = join("dns", addresses::resolver(), &[Net::Management, Net::Lan])?;
        let balancer = join("lb", addresses::hundred(), &[Net::Management])?;
        let internet = join("inet", addresses::internet(), &[Net::Public])?;
        internet.sysctls(&[
            // A reply's source may be any of the addresses we answer on.
            ("net/ipv4/ip_nonlocal_bind", "1"),
            ("net/ipv6/ip_nonlocal_bind", "1"),
            // Separate sockets for the families, so that v4 peers are not shown as mapped v6 addresses.
            ("net/ipv6/bindv6only", "1"),
            // Answer every ping, however fast they come.
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv6/icmp/ratelimit", "0"),
        ])?;
        let mut answers = String::new();
        for prefix in PUBLIC_V4 {
            _ = writeln!(answers, "route add local {prefix} dev lo");
        }
        for prefix in PUBLIC_V6 {
            _ = writeln!(answers, "route add local {prefix} dev lo");
        }
        internet.ip(&answers)?;
        Ok(Self {
            core,
            servers: server_namespaces,
            gateways: gateway_namespaces,
            client,
            dns,
            balancer,
            internet,
        })
    }

    /// Pulls a cable: the machine's link loses its carrier, its addresses and routes stay.
    ///
    /// # Errors
    /// When there is no such cable.
    pub fn unplug(&self, leg: Leg<'_>) -> Result<()> {
        self.core.ip(&format!("link set {} down", port(leg.host, leg.net)))
    }

    /// Puts a pulled cable back.
    ///
    /// # Errors
    /// When there is no such cable.
    pub fn plug(&self, leg: Leg<'_>) -> Result<()> {
        self.core.ip(&format!("link set {} up", port(leg.host, leg.net)))
    }

    /// Pulls (`plugged` false) or puts back all three cables of gateway `index`.
    ///
    /// # Errors
    /// When there is no such gateway.
    pub fn set_gateway_plugged(&self, index: usize, plugged: bool) -> Result<()> {
        let host = format!("gw{}", index + 1);
        for net in [Net::Management, Net::Lan, Net::Public] {
            let leg = Leg { host: &host, net };
            if plugged { self.plug(leg)? } else { self.unplug(leg)? }
        }
        Ok(())
    }

    /// Every namespace, for tables and checks.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        [&self.core, &self.client, &self.dns, &self.balancer, &self.internet]
            .into_iter()
            .chain(&self.servers)
            .chain(&self.gateways)
    }

    /// The resolver as the servers see it.
    pub fn resolver(&self) -> SocketAddr {
        (Net::Management.v4(addresses::resolver()), 53).into()
    }
}

/// Name of the switch's end of a cable.
fn port(host: &str, net: Net) -> String {
    format!("{host}-{}", net.interface())
}

/// Lays a cable from `host` to the switch. Both ends are made inside namespaces; the host's sees neither.
fn attach(core: &Namespace, namespace: &Namespace, host: &str, net: Net, number: u8) -> Result<()> {
    let (bridge, port) = (net.interface(), port(host, net));
    core.ip(&format!(
        "link add {port} type veth peer name {bridge} netns {}\nlink set {port} master {bridge}\nlink set {port} up\n",
        namespace.name()
    ))?;
    namespace.ip(&format!(
        "addr add {v4}/24 dev {bridge}\nlink set {bridge} up\naddr add {v6}/64 dev {bridge} nodad\n",
        v4 = net.v4(number),
        v6 = net.v6(number)
    ))
}

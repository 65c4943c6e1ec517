//! The demo: a lab on a port of the host, a page of words about it, until Ctrl-C.

use std::fmt::Write as _;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::addresses::{FEED_PORT, METRICS_PORT, Net};
use crate::check;
use crate::dns::{RecordType, ZONE};
use crate::lab::{Lab, LabOptions};
use crate::{addresses, wait};

/// Name that the demo's DNS has from the start.
pub const DEMO_NAME: &str = "api";
/// Its addresses.
pub const DEMO_V4: &str = "93.184.216.34";
/// Its v6 address.
pub const DEMO_V6: &str = "2606:2800:220:1::34";
/// Its TTL: short, so that a changed record shows soon.
pub const DEMO_TTL_S: u32 = 5;

/// How often the demo looks whether it was interrupted or a process died.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Starts a lab on `port` and either shows it until interrupted, or checks it.
///
/// # Errors
/// When the lab does not come up, a step fails, or a process did not end when asked to.
pub fn run(port: u16, check: bool, out: &mut impl Write) -> Result<()> {
    let start = Instant::now();
    writeln!(out, "starting a small internet in network namespaces …")?;
    let mut lab = match Lab::start(&LabOptions { port, ..LabOptions::default() }) {
        Err(_) if wait::interrupted() => bail!("interrupted while starting; everything is removed"),
        started => started?,
    };
    seed_dns(&lab)?;
    writeln!(out, "up after {:.1} s\n", start.elapsed().as_secs_f32())?;
    let result = if check {
        check::run(&mut lab, out)
    } else {
        write!(out, "{}", page(&lab)?)?;
        out.flush()?;
        watch(&mut lab, out)
    };
    if result.is_err() && !wait::interrupted() {
        writeln!(out, "\nends of the logs:\n{}", lab.log_tails())?;
    }
    let start = Instant::now();
    writeln!(out, "\nremoving everything …")?;
    lab.stop()?;
    writeln!(out, "gone after {:.1} s", start.elapsed().as_secs_f32())?;
    result
}

/// Gives the zone the name that page and steps speak of.
///
/// # Errors
/// With what knot said.
pub fn seed_dns(lab: &Lab) -> Result<()> {
    lab.dns.set(DEMO_NAME, RecordType::A, DEMO_TTL_S, &[DEMO_V4.parse()?])?;
    lab.dns.set(DEMO_NAME, RecordType::Aaaa, DEMO_TTL_S, &[DEMO_V6.parse()?])
}

/// Serves until interrupted; says when a process ends by itself.
fn watch(lab: &mut Lab, out: &mut impl Write) -> Result<()> {
    let mut dead: Vec<String> = Vec::new();
    while !wait::interrupted() {
        for process in lab.processes() {
            if !process.is_running() && !dead.iter().any(|name| name == process.name()) {
                writeln!(out, "{} has ended; its log: {}", process.name(), process.log_path().display())?;
                dead.push(process.name().to_owned());
            }
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
    Ok(())
}

/// What runs where, and what to try.
fn page(lab: &Lab) -> Result<String> {
    let mut text = String::new();
    let mut row = |what: &str, namespace: &str, addresses: &str, role: &str| {
        _ = writeln!(text, "  {what:<10} {namespace:<22} {addresses:<34} {role}");
    };
    let both = |net: Net, number: u8| format!("{}, {}", net.v4(number), net.v6(number));
    row("what", "namespace", "addresses", "role");
    for (index, server) in lab.servers.iter().enumerate() {
        let role = format!("server: API :{}, gateway feed :{FEED_PORT}", addresses::API_PORT);
        row(
            server.name(),
            server.namespace().name(),
            &both(Net::Management, addresses::server(index)),
            &role,
        );
    }
    for (index, gateway) in lab.gateways.iter().enumerate() {
        let number = addresses::gateway(index);
        let namespace = gateway.namespace().name();
        let role = format!("gateway: metrics :{METRICS_PORT}");
        row(gateway.name(), namespace, &both(Net::Management, number), &role);
        row("", "", &both(Net::Lan, number), "  towards the client");
        row("", "", &both(Net::Public, number), "  towards the internet");
    }
    let hundred = addresses::hundred();
    row("client", lab.network.client.name(), &both(Net::Lan, hundred), "client host with the route agent");
    row(
        "dns",
        lab.network.dns.name(),
        &both(Net::Lan, addresses::resolver()),
        &format!("resolver, authority for {ZONE}"),
    );
    let mut named = ("inet", lab.network.internet.name(), "the internet: HTTP 80 443 8080, echo 7");
    for prefixes in addresses::PUBLIC_V4.chunks(2).chain(addresses::PUBLIC_V6.chunks(2)) {
        row(named.0, named.1, &prefixes.join(", "), named.2);
        named = ("", "", "");
    }
    row(
        "lb",
        lab.network.balancer.name(),
        &both(Net::Management, hundred),
        "HAProxy in front of the servers",
    );

    let token_file = lab.admin_token_file();
    let (token, client) = (lab.admin_token()?, lab.network.client.name());
    let gateway = lab.gateways.first().context("no gateway is started")?;
    let metrics = format!(
        "ip netns exec {} curl -s http://127.0.0.1:{METRICS_PORT}/metrics | grep ^iptables_",
        gateway.namespace().name()
    );
    _ = write!(
        text,
        "\n\
         UI and API   http://{address}\n\
         token        {token}\n\
         token file   {token_file}\n\
         logs, data   {directory}\n\
         \n\
         try:\n\
         \x20 # nothing is open yet: no answer\n\
         \x20 ip netns exec {client} curl -m 2 http://{DEMO_NAME}.{ZONE}/\n\
         \x20 # open it, and ask again: the answer shows the gateway's address as the source\n\
         \x20 curl -H \"authorization: bearer $(cat {token_file})\" -H 'content-type: application/json' \\\n\
         \x20      -d '{{\"target\":\"{DEMO_NAME}.{ZONE}\"}}' http://{address}/api/v1/entries\n\
         \x20 ip netns exec {client} curl -m 2 http://{DEMO_NAME}.{ZONE}/\n\
         \x20 # who is leader, which gateways hold what\n\
         \x20 curl -H \"authorization: bearer $(cat {token_file})\" http://{address}/api/v1/status\n\
         \x20 # bytes and packets per address\n\
         \x20 {metrics}\n\
         \n\
         Ctrl-C removes all of it.\n",
        address = lab.host_address(),
        token_file = token_file.display(),
        directory = lab.directory().display(),
    );
    Ok(text)
}

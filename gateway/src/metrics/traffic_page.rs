//! The two families of the seed, one sample for each prefix, direction and family, written as a stream.
//!
//! A `GaugeVec` would keep every series in memory and sort it for each scrape; here a page of any length costs one
//! small buffer.

use std::fmt::Write;
use std::sync::Arc;

use ipnet::IpNet;

use crate::firewall::ElementCounters;

/// A chunk is sent when it is at least this long.
const CHUNK_BYTES: usize = 64 * 1024;

const FAMILIES: [Family; 2] = [
    Family {
        name: "iptables_bytes_count",
        direction: "bytes_count",
        help: "Bytes (IP length) since the prefix was first held; with segmentation offload a few percent low.",
        read: |counters| (counters.bytes_in, counters.bytes_out),
    },
    Family {
        name: "iptables_packets_count",
        direction: "packets_count",
        help: "Packets since the prefix was first held; with segmentation offload aggregates count once.",
        read: |counters| (counters.packets_in, counters.packets_out),
    },
];

struct Family {
    name: &'static str,
    direction: &'static str,
    help: &'static str,
    /// From the internet, towards the internet.
    read: fn(&ElementCounters) -> (u64, u64),
}

/// The page in chunks. `counters` are sorted by element, as drivers give them.
pub struct TrafficPage {
    host: String,
    counters: Arc<Vec<ElementCounters>>,
    family: usize,
    next: usize,
}

impl TrafficPage {
    /// A page for the gateway named `host`.
    pub fn new(host: &str, counters: Arc<Vec<ElementCounters>>) -> Self {
        let host = host.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        Self { host, counters, family: 0, next: 0 }
    }

    /// The sums of the elements of one prefix, and where the next prefix begins: ports have no label of their own.
    fn sums(&self, family: &Family, first: usize) -> (IpNet, u64, u64, usize) {
        let prefix = self.counters[first].element.prefix;
        let (mut received, mut sent, mut next) = (0_u64, 0_u64, first);
        while let Some(counters) =
            self.counters.get(next).filter(|counters| counters.element.prefix == prefix)
        {
            let (from, towards) = (family.read)(counters);
            received = received.saturating_add(from);
            sent = sent.saturating_add(towards);
            next += 1;
        }
        (prefix, received, sent, next)
    }

    fn write(&mut self, chunk: &mut String) -> std::fmt::Result {
        let Some(family) = FAMILIES.get(self.family) else { return Ok(()) };
        let Family { name, direction, help, .. } = family;
        if self.next == 0 {
            writeln!(chunk, "# HELP {name} {help}\n# TYPE {name} gauge")?;
        }
        while self.next < self.counters.len() && chunk.len() < CHUNK_BYTES {
            let (prefix, received, sent, next) = self.sums(family, self.next);
            let host = &self.host;
            for (chain, kind, value) in [("FORWARD", "INPUT", received), ("POSTROUTING", "OUTPUT", sent)] {
                writeln!(
                    chunk,
                    "{name}{{chain=\"{chain}\",direction=\"{direction}\",hostname=\"{host}\",ip=\"{prefix}\",\
                     type=\"{kind}\"}} {value}"
                )?;
            }
            self.next = next;
        }
        if self.next >= self.counters.len() {
            self.family += 1;
            self.next = 0;
        }
        Ok(())
    }
}

impl Iterator for TrafficPage {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.family >= FAMILIES.len() {
            return None;
        }
        let mut chunk = String::with_capacity(CHUNK_BYTES + 1024);
        // Writing to a string cannot fail.
        self.write(&mut chunk).ok()?;
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use allowlist::Element;

    use super::*;

    fn counted(prefix: &str, ports: Option<&str>, base: u64) -> ElementCounters {
        ElementCounters {
            element: Element::new(prefix.parse().unwrap(), ports.map(|ports| ports.parse().unwrap())),
            packets_out: base,
            bytes_out: base * 100,
            packets_in: base * 2,
            bytes_in: base * 1_000,
        }
    }

    fn page(counters: Vec<ElementCounters>) -> String {
        TrafficPage::new("gw-1", Arc::new(counters)).collect()
    }

    #[test]
    fn the_page_bears_the_seeds_names_and_labels() {
        let page = page(vec![
            counted("1.1.1.1/32", None, 1),
            counted("1.1.1.1/32", Some("tcp/443"), 10),
            counted("2606:4700::/32", None, 3),
        ]);
        let golden = include_str!("traffic_page.golden");
        assert_eq!(page, golden);
    }

    #[test]
    fn an_empty_list_still_names_its_families() {
        let page = page(Vec::new());
        assert_eq!(page.matches("# TYPE").count(), 2);
        assert_eq!(page.lines().count(), 4);
    }

    #[test]
    fn a_long_page_comes_in_chunks_of_bounded_size() {
        let counters: Vec<_> = (0_u32..20_000)
            .map(|index| {
                let address = std::net::Ipv4Addr::from(0x0800_0000 + index);
                ElementCounters::zero(Element::host(address.into(), None))
            })
            .collect();
        let chunks: Vec<String> = TrafficPage::new("gw-1", Arc::new(counters)).collect();
        assert!(chunks.len() > 10);
        assert!(chunks.iter().all(|chunk| chunk.len() < CHUNK_BYTES + 1024));
        let samples =
            chunks.iter().flat_map(|chunk| chunk.lines()).filter(|line| !line.starts_with('#')).count();
        assert_eq!(samples, 80_000);
    }
}

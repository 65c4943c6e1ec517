//! The two families of the seed, one sample for each prefix, direction and family, written as a stream.
//!
//! A `GaugeVec` would keep every series in memory and sort it for each scrape; here a page of any length costs one
//! small buffer.

use std::fmt::Write;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::PerIpMetrics;
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

/// The page in chunks: each is made when the one before has left. `counters` are sorted by element, as drivers give them.
pub struct TrafficPage {
    counters: Arc<Vec<ElementCounters>>,
    /// Prefixes that never moved a packet are left out.
    only_active: bool,
    /// What a sample of the family begins with: received, sent.
    heads: [String; 2],
    family: usize,
    next: usize,
}

impl TrafficPage {
    /// A page for the gateway named `host`.
    pub fn new(host: &str, counters: Arc<Vec<ElementCounters>>, per_ip: PerIpMetrics) -> Self {
        let host = host.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let only_active = per_ip == PerIpMetrics::Active;
        // Everything but the name of the family, which stands in front.
        let head = |chain: &str| format!("{{chain=\"{chain}\",direction=\"@\",hostname=\"{host}\",ip=\"");
        Self { counters, only_active, heads: [head("FORWARD"), head("POSTROUTING")], family: 0, next: 0 }
    }

    /// The sums of the elements of one prefix, and where the next prefix begins: ports have no label of their own.
    fn sums(&self, family: &Family, first: usize) -> Sums {
        let prefix = self.counters[first].element.prefix;
        let mut sums = Sums { prefix, received: 0, sent: 0, active: false, next: first };
        while let Some(counters) =
            self.counters.get(sums.next).filter(|counters| counters.element.prefix == prefix)
        {
            let (from, towards) = (family.read)(counters);
            sums.received = sums.received.saturating_add(from);
            sums.sent = sums.sent.saturating_add(towards);
            sums.active |= counters.packets_in | counters.packets_out != 0;
            sums.next += 1;
        }
        sums
    }

    fn write(&mut self, chunk: &mut String) -> std::fmt::Result {
        let Some(family) = FAMILIES.get(self.family) else { return Ok(()) };
        let Family { name, direction, help, .. } = family;
        if self.next == 0 {
            writeln!(chunk, "# HELP {name} {help}\n# TYPE {name} gauge")?;
        }
        let [from, towards] =
            self.heads.each_ref().map(|head| format!("{name}{}", head.replacen('@', direction, 1)));
        let (mut prefix, mut number) = (String::new(), itoa::Buffer::new());
        while self.next < self.counters.len() && chunk.len() < CHUNK_BYTES {
            let sums = self.sums(family, self.next);
            self.next = sums.next;
            if self.only_active && !sums.active {
                continue;
            }
            prefix.clear();
            push_prefix(&mut prefix, &sums.prefix)?;
            for (head, tail, value) in
                [(&from, "\",type=\"INPUT\"} ", sums.received), (&towards, "\",type=\"OUTPUT\"} ", sums.sent)]
            {
                chunk.push_str(head);
                chunk.push_str(&prefix);
                chunk.push_str(tail);
                chunk.push_str(number.format(value));
                chunk.push('\n');
            }
        }
        if self.next >= self.counters.len() {
            self.family += 1;
            self.next = 0;
        }
        Ok(())
    }
}

/// One prefix on the page.
struct Sums {
    prefix: IpNet,
    received: u64,
    sent: u64,
    /// It moved a packet, in whatever family.
    active: bool,
    next: usize,
}

/// As `Display` does it, in a fraction of the time for IPv4, of which most lists are.
fn push_prefix(text: &mut String, prefix: &IpNet) -> std::fmt::Result {
    let IpNet::V4(net) = prefix else { return write!(text, "{prefix}") };
    let mut number = itoa::Buffer::new();
    for (octet, separator) in net.addr().octets().into_iter().zip(['.', '.', '.', '/']) {
        text.push_str(number.format(octet));
        text.push(separator);
    }
    text.push_str(number.format(net.prefix_len()));
    Ok(())
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
        TrafficPage::new("gw-1", Arc::new(counters), PerIpMetrics::All).collect()
    }

    #[test]
    fn a_prefix_is_written_as_everywhere_else() {
        for text in ["0.0.0.0/1", "8.8.8.8/32", "203.0.114.0/24", "255.255.255.255/32", "2606:4700::/32"] {
            let mut written = String::new();
            push_prefix(&mut written, &text.parse().unwrap()).unwrap();
            assert_eq!(written, text);
        }
    }

    #[test]
    fn only_what_moved_a_packet_is_shown_when_that_is_wanted() {
        let counters = vec![
            counted("1.1.1.1/32", None, 0),
            counted("1.1.1.1/32", Some("tcp/443"), 1),
            counted("1.1.1.2/32", None, 0),
        ];
        let page: String = TrafficPage::new("gw-1", Arc::new(counters), PerIpMetrics::Active).collect();
        assert_eq!(page.matches("ip=\"1.1.1.1/32\"").count(), 4);
        assert!(!page.contains("1.1.1.2"));
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
        let chunks: Vec<String> = TrafficPage::new("gw-1", Arc::new(counters), PerIpMetrics::All).collect();
        assert!(chunks.len() > 10);
        assert!(chunks.iter().all(|chunk| chunk.len() < CHUNK_BYTES + 1024));
        let samples =
            chunks.iter().flat_map(|chunk| chunk.lines()).filter(|line| !line.starts_with('#')).count();
        assert_eq!(samples, 80_000);
    }
}

//! A driver that touches nothing and prints what the kernel driver would do; needs no root.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::time::Instant;

use allowlist::{Change, Element};

use super::cutter::CUT_MEMORY_S;
use super::denied::HALVES;
use super::in_use::InUse;
use super::layout::{
    CUT_SETS, DENY_SETS, DRAIN_PAIRS, Family, KernelOptions, PAIRS, PairLayout, members_of, pair_of,
};
use super::rules::{Chain, restore_script};
use super::{CutSink, DenialSink, Denied, ElementCounters, Firewall, FirewallError, Outcome, Repair, admit};

/// What loads the rules of each family.
const PROGRAMS: [(Family, &str); 2] = [(Family::V4, "iptables"), (Family::V6, "ip6tables")];

/// What would be done, a line each, in order, as the `ipset` and `iptables` programs would be told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The lines.
    pub lines: Vec<String>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Plan {
    /// Bringing up sets, chains and jumps.
    pub fn install(options: &KernelOptions) -> Self {
        let mut lines = Vec::new();
        for PairLayout { family, scope, out, back } in PAIRS.into_iter().chain(DRAIN_PAIRS) {
            let (kind, size) = (scope.kernel_type(), options.set_capacity);
            let family = match family {
                Family::V4 => "inet",
                Family::V6 => "inet6",
            };
            for name in [back, out] {
                lines.push(format!(
                    "ipset -exist create {name} {kind} family {family} hashsize {size} maxelem {size} counters"
                ));
            }
        }
        for (family, [cut, deny]) in
            ["inet", "inet6"].into_iter().zip(CUT_SETS.into_iter().zip(DENY_SETS).map(<[_; 2]>::from))
        {
            lines.push(format!(
                "ipset -exist create {cut} hash:net family {family} timeout {CUT_MEMORY_S} counters"
            ));
            lines.push(format!("ipset -exist create {deny} hash:net family {family} counters"));
        }
        for prefix in HALVES {
            let deny = DENY_SETS[usize::from(prefix.contains(':'))];
            lines.push(format!("ipset -exist add {deny} {prefix}"));
        }
        let guard = options.guard.iter().flat_map(|_| Chain::HOST);
        for chain in Chain::BOTH.into_iter().chain(guard) {
            for (family, program) in PROGRAMS {
                lines.extend(chain_lines(chain, family, options, InUse::default()));
                for (at, jump) in chain.jumps(family, &options.internal_cidrs).iter().enumerate() {
                    let (table, parent, position) = (chain.table(), chain.parent(), at + 1);
                    lines.push(format!("{program} -w -t {table} -I {parent} {position} {jump}"));
                }
            }
        }
        Self { lines }
    }

    /// Rules for sets that hold something from now on; NAT first, as without it nothing may pass.
    fn opening(options: &KernelOptions, before: InUse, after: InUse) -> Self {
        let mut lines = Vec::new();
        for (family, _) in PROGRAMS.into_iter().filter(|(family, _)| after.differs(before, *family)) {
            for chain in [Chain::Nat, Chain::Forward] {
                lines.extend(chain_lines(chain, family, options, after));
            }
        }
        Self { lines }
    }

    /// Going from the elements `held` to the elements `wanted`: removals first, the way out before replies;
    /// then additions, replies first.
    pub fn difference(held: &BTreeSet<Element>, wanted: &BTreeSet<Element>) -> Self {
        let mut lines = Vec::new();
        for element in held.difference(wanted) {
            let PairLayout { out, back, .. } = PAIRS[pair_of(element)];
            for name in [out, back] {
                lines.extend(members_of(element).map(|member| format!("ipset -exist del {name} {member}")));
            }
        }
        for element in wanted.difference(held) {
            let PairLayout { out, back, .. } = PAIRS[pair_of(element)];
            for name in [back, out] {
                lines.extend(members_of(element).map(|member| format!("ipset -exist add {name} {member}")));
            }
        }
        Self { lines }
    }

    /// Removing every trace.
    pub fn cleanup(options: &KernelOptions) -> Self {
        let mut lines = Vec::new();
        let guard = options.guard.iter().flat_map(|_| Chain::HOST);
        for chain in guard.chain(Chain::BOTH) {
            let (table, parent, name) = (chain.table(), chain.parent(), chain.name());
            for (family, program) in PROGRAMS {
                for jump in chain.jumps(family, &options.internal_cidrs) {
                    lines.push(format!("{program} -w -t {table} -D {parent} {jump}"));
                }
                lines.push(format!("{program} -w -t {table} -F {name}"));
                lines.push(format!("{program} -w -t {table} -X {name}"));
            }
        }
        let pairs = PAIRS.into_iter().chain(DRAIN_PAIRS).flat_map(|pair| [pair.out, pair.back]);
        lines.extend(pairs.chain(CUT_SETS).chain(DENY_SETS).map(|name| format!("ipset destroy {name}")));
        Self { lines }
    }
}

/// The rules of a chain, as its program would be told.
fn chain_lines(
    chain: Chain,
    family: Family,
    options: &KernelOptions,
    in_use: InUse,
) -> impl Iterator<Item = String> {
    let program = PROGRAMS[family as usize].1;
    let script = restore_script(chain, &chain.body(family, options, in_use));
    let rules: Vec<String> = script.lines().map(str::to_owned).collect();
    std::iter::once(format!("{program}-restore --noflush <<END")).chain(rules).chain(["END".into()])
}

/// Prints plans and remembers what would be held.
pub struct DryRunFirewall {
    options: KernelOptions,
    held: BTreeSet<Element>,
    /// The pairs of sets that have rules. The kernel driver takes some away again, later.
    in_use: InUse,
    printer: Box<dyn Write + Send>,
}

impl DryRunFirewall {
    /// A driver that writes each plan to `printer`.
    pub fn new(options: KernelOptions, printer: impl Write + Send + 'static) -> Self {
        Self { options, held: BTreeSet::new(), in_use: InUse::default(), printer: Box::new(printer) }
    }

    fn print(&mut self, plan: &Plan) -> Result<(), FirewallError> {
        write!(self.printer, "{plan}")
            .and_then(|()| self.printer.flush())
            .map_err(|error| FirewallError::Failed { action: "print plan".into(), reason: error.to_string() })
    }

    fn become_(&mut self, wanted: BTreeSet<Element>, way: &Change) -> Result<Outcome, FirewallError> {
        let in_use = self.in_use.union(InUse::of(&wanted, way, &self.held));
        self.print(&Plan::opening(&self.options, self.in_use, in_use))?;
        self.in_use = in_use;
        self.print(&Plan::difference(&self.held, &wanted))?;
        let added = wanted.difference(&self.held).count();
        let removed = self.held.difference(&wanted).count();
        self.held = wanted;
        Ok(Outcome { added, removed, refused: Vec::new() })
    }
}

impl Firewall for DryRunFirewall {
    fn install(&mut self) -> Result<BTreeSet<Element>, FirewallError> {
        self.print(&Plan::install(&self.options))?;
        Ok(self.held.clone())
    }

    fn hold(&mut self, elements: &BTreeSet<Element>, way: &Change) -> Result<Outcome, FirewallError> {
        let (admitted, refused) = admit::sift(elements);
        Ok(Outcome { refused, ..self.become_(admitted, way)? })
    }

    fn apply(&mut self, change: &Change) -> Result<Outcome, FirewallError> {
        let (admitted, refused) = admit::sift(&change.added);
        let mut wanted = self.held.clone();
        wanted.extend(admitted);
        for element in change.revoked.iter().chain(&change.retired) {
            wanted.remove(element);
        }
        Ok(Outcome { refused, ..self.become_(wanted, change)? })
    }

    fn counters(&mut self) -> Result<Vec<ElementCounters>, FirewallError> {
        Ok(self.held.iter().map(|element| ElementCounters::zero(*element)).collect())
    }

    fn denied(&mut self) -> Result<Denied, FirewallError> {
        Ok(Denied::default())
    }

    fn end_draining(&mut self, _: Instant) -> Result<(), FirewallError> {
        Ok(())
    }

    fn report_cuts(&mut self, _: CutSink) {}

    fn report_denials(&mut self, _: DenialSink) {}

    fn repair(&mut self) -> Result<Vec<Repair>, FirewallError> {
        Ok(Vec::new())
    }

    fn cleanup(&mut self) -> Result<(), FirewallError> {
        self.print(&Plan::cleanup(&self.options))?;
        self.held.clear();
        self.in_use = InUse::default();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Paper {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
        }
    }

    fn element(prefix: &str, ports: Option<&str>) -> Element {
        Element::new(prefix.parse().unwrap(), ports.map(|ports| ports.parse().unwrap()))
    }

    #[test]
    fn a_dry_run_prints_sets_chains_and_differences_without_root() {
        let paper = Paper::default();
        let mut firewall = DryRunFirewall::new(KernelOptions::default(), paper.clone());
        assert!(firewall.install().unwrap().is_empty());
        let printed = paper.take();
        assert!(printed.starts_with("ipset -exist create og4i hash:net family inet hashsize 65536"));
        assert!(printed.contains(
            "-A OG-FORWARD -j DROP\nCOMMIT\nEND\niptables -w -t filter -I FORWARD 1 -j OG-FORWARD"
        ));

        let resolver = element("8.8.8.8/32", Some("udp/53-54"));
        let first = [element("9.9.9.9/32", None), resolver, element("10.0.0.1/32", None)].into();
        let outcome = firewall.replace(&first).unwrap();
        assert_eq!((outcome.added, outcome.removed, outcome.refused.len()), (2, 0, 1));
        let printed = paper.take();
        let at = |line: &str| printed.find(line).unwrap();
        let rule =
            at("-A OG-FORWARD -m conntrack --ctdir ORIGINAL -m set --match-set og4op dst,dst -j ACCEPT\n");
        assert!(at("-A OG-NAT ") < rule && rule < at("ipset -exist add og4ip 8.8.8.8/32,udp:53\n"));
        assert!(!printed.contains("og6o"), "nothing of IPv6 is held");

        let change = Change { revision: 2, revoked: vec![resolver], ..Change::default() };
        assert_eq!(firewall.apply(&change).unwrap().removed, 1);
        assert!(paper.take().starts_with("ipset -exist del og4op 8.8.8.8/32,udp:53\n"));
        assert_eq!(firewall.apply(&change).unwrap(), Outcome::default());
        firewall.cleanup().unwrap();
        assert!(paper.take().ends_with("ipset destroy og6deny\n"));
    }
}

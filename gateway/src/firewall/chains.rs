//! Our chains in the kernel, one family's worth: their bodies through `iptables-restore`, the jumps through `iptables`.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use ipnet::IpNet;
use iptables::IPTables;

use super::FirewallError;
use super::layout::Family;
use super::rules::{Chain, Mode, closed_forward_body, restore_script};

#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;

/// Marks the jumps that stand in while ours are put in their place.
const STAND_IN: &str = "-m comment --comment og-moving";

/// For so many seconds a program waits for the lock that all users of the legacy backend share: a revocation may have to
/// wait behind it, and what did not come about is tried again. (iptables(8), `-w`)
const LOCK_WAIT_S: u32 = 5;

/// The chains of one family behind one backend of iptables.
pub(super) struct Chains {
    family: Family,
    tool: IPTables,
    restore: &'static str,
    internal_cidrs: Vec<IpNet>,
    mode: Mode,
}

impl Chains {
    /// Uses the system's default backend.
    pub(super) fn new(family: Family, internal_cidrs: &[IpNet], mode: Mode) -> Self {
        let (program, restore) = match family {
            Family::V4 => ("iptables", "iptables-restore"),
            Family::V6 => ("ip6tables", "ip6tables-restore"),
        };
        Self::with_programs(family, program, restore, internal_cidrs, mode)
    }

    fn with_programs(
        family: Family,
        program: &'static str,
        restore: &'static str,
        internal_cidrs: &[IpNet],
        mode: Mode,
    ) -> Self {
        // Every iptables since 1.4.20 checks and waits; asking it would cost a process. The crate waits for ever, hence
        // [`Self::run`] says for how long.
        let tool = IPTables { cmd: program, has_check: true, has_wait: false, is_numeric: false };
        Self { family, tool, restore, internal_cidrs: internal_cidrs.to_vec(), mode }
    }

    /// The backend that is not the default, when something of ours is in it: left by a former version or a former
    /// default. Both backends see every packet, so that its rules still bite.
    pub(super) fn leftovers(family: Family) -> Option<Self> {
        let default = Self::new(family, &[], Mode::Enforce);
        let version = Command::new(default.tool.cmd).arg("--version").output().ok()?;
        let default_is_legacy = String::from_utf8_lossy(&version.stdout).contains("legacy");
        let (program, restore) = match (family, default_is_legacy) {
            (Family::V4, true) => ("iptables-nft", "iptables-nft-restore"),
            (Family::V6, true) => ("ip6tables-nft", "ip6tables-nft-restore"),
            (Family::V4, false) => ("iptables-legacy", "iptables-legacy-restore"),
            (Family::V6, false) => ("ip6tables-legacy", "ip6tables-legacy-restore"),
        };
        // Merely looking into a legacy table would create it.
        let tables = match family {
            Family::V4 => "/proc/thread-self/net/ip_tables_names",
            Family::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        let tables = if default_is_legacy { None } else { Some(std::fs::read_to_string(tables).ok()?) };
        let other = Self::with_programs(family, program, restore, &[], Mode::Enforce);
        let there = Chain::BOTH.into_iter().any(|chain| {
            let visible = tables.as_ref().is_none_or(|names| names.lines().any(|name| name == chain.table()));
            visible && matches!(other.body(chain), Ok(Some(_)))
        });
        there.then_some(other)
    }

    /// Which program it uses.
    pub(super) const fn program(&self) -> &'static str {
        self.tool.cmd
    }

    /// How messages name the chain.
    pub(super) fn place(&self, chain: Chain) -> String {
        format!("{} {} ({})", chain.table(), chain.name(), self.family)
    }

    /// The rules in the chain; `None` when there is no such chain.
    pub(super) fn body(&self, chain: Chain) -> Result<Option<Vec<String>>, FirewallError> {
        self.listing(chain.table(), chain.name())
    }

    /// Puts exactly `body` into the chain, in one transaction; makes the chain when it is missing.
    pub(super) fn set_body(&self, chain: Chain, body: &[String]) -> Result<(), FirewallError> {
        let action = format!("write {}", self.place(chain));
        let failed = |error: io::Error| start_error(self.restore, &action, &error);
        let mut child = Command::new(self.restore)
            .args(["--noflush", "-w", &LOCK_WAIT_S.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let written = match child.stdin.take() {
            Some(mut stdin) => stdin.write_all(restore_script(chain, body).as_bytes()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        let output = child.wait_with_output().map_err(failed)?;
        if !output.status.success() {
            return Err(program_error(action, &output.stderr));
        }
        written.map_err(failed)
    }

    /// Makes sure that every packet of ours comes to a drop: the chain is there and ends in it, and the jump leads there.
    /// Says what was wrong with the jump, if anything. An audit closes nothing.
    pub(super) fn close_where_open(&self) -> Result<Option<String>, FirewallError> {
        if self.mode == Mode::Audit {
            return Ok(None);
        }
        let closed = closed_forward_body(self.mode);
        if !self.body(Chain::Forward)?.is_some_and(|present| present.ends_with(&closed)) {
            self.set_body(Chain::Forward, &closed)?;
        }
        self.lead_in(Chain::Forward)
    }

    /// Closes the way when there is no chain or no jump to it; leaves alone what stands.
    pub(super) fn close_where_unguarded(&self) -> Result<(), FirewallError> {
        let chain = Chain::Forward;
        let present = self.listing(chain.table(), chain.parent())?.unwrap_or_default();
        let stands = self.body(chain)?.is_some() && present.iter().any(|rule| leads_to(rule, chain));
        if stands { Ok(()) } else { self.close_where_open().map(drop) }
    }

    /// True when the jumps of our chains for forwarded packets are in their places.
    pub(super) fn is_led_in(&self) -> Result<bool, FirewallError> {
        for chain in Chain::BOTH {
            if !self.is_led_to(chain)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// True when the jumps to the chain are in their places, and no others.
    pub(super) fn is_led_to(&self, chain: Chain) -> Result<bool, FirewallError> {
        let wanted = chain.jumps(self.family, &self.internal_cidrs);
        let present = self.listing(chain.table(), chain.parent())?.unwrap_or_default();
        Ok(leads_only_by(&wanted, &present, chain))
    }

    /// Makes our jumps the first rules of the chain's parent; whoever stands in front of them could let packets pass
    /// around us. Says what was wrong, if anything. At no moment is there less than one jump.
    pub(super) fn lead_in(&self, chain: Chain) -> Result<Option<String>, FirewallError> {
        let (table, parent) = (chain.table(), chain.parent());
        let wanted = chain.jumps(self.family, &self.internal_cidrs);
        let present = self.listing(table, parent)?.unwrap_or_default();
        if leads_only_by(&wanted, &present, chain) {
            return Ok(None);
        }
        let strays = || present.iter().filter(|rule| leads_to(rule, chain));
        let what = if strays().next().is_none() { "was missing" } else { "was not in its place" };
        let moving = strays().next().is_some();
        // As narrow as ours: on a machine that forwards other traffic that is not to be judged by us for a moment.
        let stand_ins: Vec<String> = (wanted.iter()).map(|jump| stand_in(jump)).collect();
        let action = format!("insert jump to {} into {table} {parent} ({})", chain.name(), self.family);
        if moving {
            for (stand_in, position) in stand_ins.iter().zip(1..) {
                self.insert(&action, table, parent, stand_in, position)?;
            }
            for stray in strays() {
                self.execute(&action, table, &format!("-D {parent} {stray}"))?;
            }
        }
        for (rule, position) in wanted.iter().zip(1..) {
            self.insert(&action, table, parent, rule, position)?;
        }
        if moving {
            for stand_in in &stand_ins {
                self.execute(&action, table, &format!("-D {parent} {stand_in}"))?;
            }
        }
        Ok(Some(format!("{table} {parent} ({}): jump to {} {what}", self.family, chain.name())))
    }

    /// Removes jumps and chain, going on past errors; returns them.
    pub(super) fn remove(&self, chain: Chain) -> Vec<String> {
        let mut errors = Vec::new();
        let (table, parent, name) = (chain.table(), chain.parent(), chain.name());
        let action = format!("remove {} with {}", self.place(chain), self.tool.cmd);
        match self.listing(table, parent) {
            Ok(rules) => {
                for rule in rules.unwrap_or_default().iter().filter(|rule| leads_to(rule, chain)) {
                    errors.extend(self.execute(&action, table, &format!("-D {parent} {rule}")).err());
                }
            }
            Err(error) => errors.push(error),
        }
        match self.body(chain) {
            Ok(None) => {}
            Ok(Some(_)) => {
                for command in [format!("-F {name}"), format!("-X {name}")] {
                    errors.extend(self.execute(&action, table, &command).err());
                }
            }
            Err(error) => errors.push(error),
        }
        errors.iter().map(ToString::to_string).collect()
    }

    fn insert(
        &self,
        action: &str,
        table: &str,
        parent: &str,
        rule: &str,
        position: i32,
    ) -> Result<(), FirewallError> {
        self.execute(action, table, &format!("-I {parent} {position} {rule}"))
    }

    fn execute(&self, action: &str, table: &str, command: &str) -> Result<(), FirewallError> {
        let output = self.run(action, table, command)?;
        if output.status.success() { Ok(()) } else { Err(program_error(action.to_owned(), &output.stderr)) }
    }

    /// The rules of a chain as `-S` prints them, without `-A <chain> `. The crate's `list` ignores the exit status.
    fn listing(&self, table: &str, chain: &str) -> Result<Option<Vec<String>>, FirewallError> {
        let action = format!("list {table} {chain} ({})", self.family);
        let output = self.run(&action, table, &format!("-S {chain}"))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            // 1.8.9 on nft calls a missing chain incompatible.
            let missing = ["No chain/target/match by that name", "does not exist", "is incompatible"]
                .iter()
                .any(|sign| complaint.contains(sign));
            return if missing { Ok(None) } else { Err(program_error(action, &output.stderr)) };
        }
        Ok(Some(rules_of(&String::from_utf8_lossy(&output.stdout), chain)))
    }

    fn run(&self, action: &str, table: &str, command: &str) -> Result<std::process::Output, FirewallError> {
        let command = format!("{command} -w {LOCK_WAIT_S}");
        self.tool.execute(table, &command).map_err(|error| match error.downcast::<io::Error>() {
            Ok(error) => start_error(self.tool.cmd, action, &error),
            Err(error) => FirewallError::Failed { action: action.to_owned(), reason: error.to_string() },
        })
    }
}

/// The rules of a chain out of what `-S` prints of it, without `-A <chain> `.
fn rules_of(listed: &str, chain: &str) -> Vec<String> {
    let prefix = format!("-A {chain} ");
    listed.lines().filter_map(|line| line.strip_prefix(&prefix)).map(|rule| rule.trim().to_owned()).collect()
}

/// The jump that stands in for one of ours.
fn stand_in(jump: &str) -> String {
    jump.replacen("-j ", &format!("{STAND_IN} -j "), 1)
}

/// True when the `present` rules of the parent begin with the `wanted` jumps, and no other leads to our chain.
fn leads_only_by(wanted: &[String], present: &[String], chain: Chain) -> bool {
    let (head, tail) = present.split_at(wanted.len().min(present.len()));
    head == wanted && !tail.iter().any(|rule| leads_to(rule, chain))
}

/// True when the rule's target is our chain. Somebody's comment may say anything, a jump to us included.
fn leads_to(rule: &str, chain: Chain) -> bool {
    let mut before = "";
    words(rule).any(|word| {
        let is_jump = matches!(std::mem::replace(&mut before, word), "-j" | "-g");
        is_jump && word == chain.name()
    })
}

/// The words of a rule as iptables prints it: what has other characters than letters and digits stands in double quotes,
/// where a backslash takes the next character's meaning away (`xtables_save_string`).
fn words(rule: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    rule.split(move |character| {
        quoted ^= character == '"' && !escaped;
        escaped = quoted && character == '\\' && !escaped;
        character == ' ' && !quoted
    })
}

fn start_error(program: &str, action: &str, error: &io::Error) -> FirewallError {
    if error.kind() == io::ErrorKind::NotFound {
        return FirewallError::Missing(format!(
            "the program {program} is missing; install the package iptables"
        ));
    }
    FirewallError::Failed { action: action.to_owned(), reason: format!("run {program}: {error}") }
}

fn program_error(action: String, complaint: &[u8]) -> FirewallError {
    FirewallError::Failed { action, reason: String::from_utf8_lossy(complaint).trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_that_stands_in_catches_no_more_than_the_one_it_stands_for() {
        let cidrs = ["10.0.0.0/8".parse().unwrap()];
        let stand_ins =
            Chain::Forward.jumps(Family::V4, &cidrs).iter().map(|jump| stand_in(jump)).collect::<Vec<_>>();
        assert_eq!(stand_ins[0], "-s 10.0.0.0/8 -m comment --comment og-moving -j OG-FORWARD");
        assert!(stand_ins.iter().all(|rule| leads_to(rule, Chain::Forward)));
    }

    #[test]
    fn only_rules_whose_target_is_our_chain_lead_to_it() {
        assert!(leads_to("-s 10.0.0.0/8 -j OG-FORWARD", Chain::Forward));
        assert!(leads_to("-m comment --comment og-moving -j OG-NAT", Chain::Nat));
        assert!(!leads_to("-j OG-FORWARD-OLD", Chain::Forward));
        assert!(!leads_to("-m comment --comment OG-FORWARD -j ACCEPT", Chain::Forward));
    }

    #[test]
    fn what_a_comment_says_is_no_target() {
        let rule = |comment: &str, target: &str| format!("-m comment --comment {comment} -j {target}");
        for comment in [
            r#""see -j OG-FORWARD there""#,
            r#""a \" -j OG-FORWARD b""#,
            r#""\\ -j OG-FORWARD \\""#,
            "-j",
            r#""it -g""#,
        ] {
            assert!(!leads_to(&rule(comment, "ACCEPT"), Chain::Forward), "{comment}");
            assert!(leads_to(&rule(comment, "OG-FORWARD"), Chain::Forward), "{comment}");
        }
    }
}

//! What drivers ask of the kernel's sets.

use super::answer::{read_header, read_kind, read_members, read_name, read_protocol, read_revision};
use super::numbers::{Counters, SUBSYSTEM, nfproto};
use super::request::{Batch, Command, Listing, Request, TableShape};
use super::{IpsetError, describe};
use crate::firewall::layout::{Family, Member, Scope};
use crate::firewall::netlink::answer::Answer;
use crate::firewall::netlink::attribute::Attributes;
use crate::firewall::netlink::socket::{ExchangeError, Socket, Take};

/// The newest protocol this client speaks (`IPSET_PROTOCOL`).
const OUR_PROTOCOL: u8 = 7;
/// The oldest (`IPSET_PROTOCOL_MIN`).
const OLDEST_PROTOCOL: u8 = 6;
/// Least buckets of a table. When a bucket grows the kernel copies it, and what the old copy counts before the new one is in
/// place would be lost (`mtype_add` in `ip_set_hash_gen.h`; read there, not reproduced). Wide tables seldom grow a bucket.
const MIN_TABLE_WIDTH: u32 = 65_536;
/// Buckets of a set that is seldom looked at and grows when it must.
const FORGETFUL_TABLE_WIDTH: u32 = 1_024;
/// How often a request is sent when its answers are lost. Every request but a swap may run twice.
const MAX_ATTEMPTS: usize = 5;

/// A connection to the sets of one network namespace.
pub(in crate::firewall) struct Client {
    socket: Socket,
    /// How often a request is sent when its answers are lost.
    attempts: usize,
    protocol: u8,
    revisions: [[u8; 2]; 2],
}

/// What a set is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::firewall) struct SetHeader {
    /// The kernel's name of its type.
    pub(in crate::firewall) kind: String,
    family: u8,
    /// Members it has room for.
    pub(in crate::firewall) capacity: u32,
    /// Members it has, if the kernel tells.
    pub(in crate::firewall) members: Option<u32>,
    counts: bool,
}

impl SetHeader {
    /// True when a set made by [`Client::create`] for `scope` and `family` would look like this.
    pub(in crate::firewall) fn fits(&self, scope: Scope, family: Family) -> bool {
        self.kind == scope.kernel_type() && self.family == nfproto(family) && self.counts
    }
}

/// A member the kernel did not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::firewall) struct RefusedMember {
    pub(in crate::firewall) member: Member,
    pub(in crate::firewall) reason: String,
}

impl Client {
    /// Opens a socket in the thread's network namespace and asks the kernel what it can do.
    pub(in crate::firewall) fn connect() -> Result<Self, IpsetError> {
        let socket = Socket::open(SUBSYSTEM).map_err(|source| IpsetError::Socket {
            action: "open a netlink socket to netfilter".into(),
            source,
        })?;
        let mut client =
            Self { socket, attempts: MAX_ATTEMPTS, protocol: OUR_PROTOCOL, revisions: [[0; 2]; 2] };
        let spoken =
            client.ask("ask for the ipset protocol", || Request::protocol(OUR_PROTOCOL), read_protocol)?;
        client.protocol = spoken.clamp(OLDEST_PROTOCOL, OUR_PROTOCOL);
        for scope in [Scope::Prefix, Scope::Port] {
            for family in Family::BOTH {
                let action = format!("ask for the ipset type {} ({family})", scope.kernel_type());
                let protocol = client.protocol;
                let request = || Request::set_type(protocol, scope, family);
                client.revisions[scope as usize][family as usize] =
                    client.ask(&action, request, read_revision)?;
            }
        }
        Ok(client)
    }

    /// The names of all sets.
    pub(in crate::firewall) fn names(&mut self) -> Result<Vec<String>, IpsetError> {
        let protocol = self.protocol;
        let mut names = Vec::new();
        self.run(
            "list ipsets",
            || Request::list(protocol, None, Listing::Names),
            &mut names,
            |names, answer| {
                names.extend(read_name(answer).map(str::to_owned));
                Ok(())
            },
        )?;
        Ok(names)
    }

    /// What the set is; `None` when there is no such set.
    pub(in crate::firewall) fn header(&mut self, name: &str) -> Result<Option<SetHeader>, IpsetError> {
        let protocol = self.protocol;
        let mut found = None;
        let request = || Request::list(protocol, Some(name), Listing::Header);
        let listed =
            self.run(&format!("read header of ipset {name}"), request, &mut found, |found, answer| {
                if let Some((kind, family, capacity, members, counts)) = read_header(answer) {
                    *found = Some(SetHeader { kind: kind.to_owned(), family, capacity, members, counts });
                }
                Ok(())
            });
        match listed {
            Ok(()) => Ok(found),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// True when there is such a set and its members are of that kind. Other than [`Self::header`] it takes no longer for a
    /// large set.
    pub(in crate::firewall) fn is_there(
        &mut self,
        name: &str,
        scope: Scope,
        family: Family,
    ) -> Result<bool, IpsetError> {
        let protocol = self.protocol;
        let mut found = false;
        let request = || Request::kind(protocol, name);
        let asked = self.run(&format!("ask what ipset {name} is"), request, &mut found, |found, answer| {
            *found |= read_kind(answer) == Some((scope.kernel_type(), nfproto(family)));
            Ok(())
        });
        match asked {
            Ok(()) => Ok(found),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a set with counters and room for `capacity` members, its table as wide as that, so that it never stalls to
    /// grow.
    pub(in crate::firewall) fn create(
        &mut self,
        name: &str,
        scope: Scope,
        family: Family,
        capacity: u32,
    ) -> Result<(), IpsetError> {
        let width = capacity.max(MIN_TABLE_WIDTH);
        self.create_shaped(name, scope, family, TableShape { width, capacity, lifetime: None })
    }

    /// Makes a set of a few prefixes, with counters.
    pub(in crate::firewall) fn create_small(
        &mut self,
        name: &str,
        family: Family,
        capacity: u32,
    ) -> Result<(), IpsetError> {
        self.create_shaped(
            name,
            Scope::Prefix,
            family,
            TableShape { width: capacity, capacity, lifetime: None },
        )
    }

    /// Makes a set whose members leave by themselves after `lifetime_s` seconds.
    pub(in crate::firewall) fn create_forgetful(
        &mut self,
        name: &str,
        family: Family,
        capacity: u32,
        lifetime_s: u32,
    ) -> Result<(), IpsetError> {
        let shape = TableShape { width: FORGETFUL_TABLE_WIDTH, capacity, lifetime: Some(lifetime_s) };
        self.create_shaped(name, Scope::Prefix, family, shape)
    }

    fn create_shaped(
        &mut self,
        name: &str,
        scope: Scope,
        family: Family,
        shape: TableShape,
    ) -> Result<(), IpsetError> {
        let protocol = self.protocol;
        let revision = self.revisions[scope as usize][family as usize];
        let request = || Request::create(protocol, name, scope, family, revision, shape);
        self.order(&format!("create ipset {name}"), request)
    }

    /// True when the set holds the address (with its port), by itself or in a prefix. A set that is missing holds
    /// nothing.
    pub(in crate::firewall) fn holds(&mut self, name: &str, member: &Member) -> Result<bool, IpsetError> {
        let protocol = self.protocol;
        match self.order(&format!("ask ipset {name}"), || Request::test(protocol, name, member)) {
            Ok(()) => Ok(true),
            Err(error) if error.is_missing() || error.says_no() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a set.
    pub(in crate::firewall) fn destroy(&mut self, name: &str) -> Result<(), IpsetError> {
        let protocol = self.protocol;
        self.order(&format!("destroy ipset {name}"), || Request::destroy(protocol, name))
    }

    /// Exchanges two sets under the rules that refer to them. When the answer is lost it is read which of them is where:
    /// sent again, it would undo itself.
    pub(in crate::firewall) fn swap(&mut self, first: &str, second: &str) -> Result<(), IpsetError> {
        let protocol = self.protocol;
        let action = format!("swap ipsets {first} and {second}");
        let (before, other) = (self.header(first)?, self.header(second)?);
        let seal = |sequence| Request::swap(protocol, first, second).finish(sequence);
        self.attempts = 1;
        let swapped = self.exchange(&action, seal, &mut (), |(), _| Ok(()));
        self.attempts = MAX_ATTEMPTS;
        match swapped {
            Ok(None) => Ok(()),
            Ok(Some(Struck { code, .. })) => Err(IpsetError::Kernel { action, code }),
            // Equal ones cannot be told apart.
            Err(IpsetError::Socket { .. }) if before != other && self.header(first)? == other => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Every member with its counters, in the order of the kernel's table.
    pub(in crate::firewall) fn dump(
        &mut self,
        name: &str,
        scope: Scope,
    ) -> Result<Vec<(Member, Counters)>, IpsetError> {
        let protocol = self.protocol;
        let mut members = Vec::new();
        let request = || Request::list(protocol, Some(name), Listing::Members);
        self.run(&format!("read ipset {name}"), request, &mut members, |members, answer| {
            read_members(answer, scope, members)
        })?;
        Ok(members)
    }

    /// Adds members that may be there already; what is there keeps its counters. Returns those that were refused.
    pub(in crate::firewall) fn add<'a>(
        &mut self,
        name: &str,
        members: impl IntoIterator<Item = &'a Member>,
    ) -> Result<Vec<RefusedMember>, IpsetError> {
        let members: Vec<&Member> = members.into_iter().collect();
        self.batches(Command::Add, name, &members, |member| (member, None))
    }

    /// Adds members with these counters, overwriting those of members that are there.
    pub(in crate::firewall) fn add_counted<'a>(
        &mut self,
        name: &str,
        members: impl IntoIterator<Item = (&'a Member, &'a Counters)>,
    ) -> Result<Vec<RefusedMember>, IpsetError> {
        let members: Vec<_> = members.into_iter().collect();
        self.batches(Command::Add, name, &members, |(member, counters)| (member, Some(**counters)))
    }

    /// Deletes members that may be gone already. Returns those that were refused.
    pub(in crate::firewall) fn delete<'a>(
        &mut self,
        name: &str,
        members: impl IntoIterator<Item = &'a Member>,
    ) -> Result<Vec<RefusedMember>, IpsetError> {
        let members: Vec<&Member> = members.into_iter().collect();
        self.batches(Command::Delete, name, &members, |member| (member, None))
    }

    /// A message stops at its first error, what came before it stays: go on behind the line the kernel names.
    fn batches<T>(
        &mut self,
        command: Command,
        name: &str,
        members: &[T],
        part: impl Fn(&T) -> (&Member, Option<Counters>),
    ) -> Result<Vec<RefusedMember>, IpsetError> {
        let action = match command {
            Command::Add => format!("add to ipset {name}"),
            _ => format!("delete from ipset {name}"),
        };
        let mut refused = Vec::new();
        let mut at = 0;
        while at < members.len() {
            let mut taken = 0;
            let protocol = self.protocol;
            let result = self.exchange(
                &action,
                |sequence| {
                    let mut batch = Batch::new(command, protocol, name);
                    taken = 0;
                    for (item, line) in members[at..].iter().zip(1..) {
                        if !batch.has_room() {
                            break;
                        }
                        let (member, counters) = part(item);
                        batch.push(line, member, counters);
                        taken += 1;
                    }
                    batch.finish(sequence)
                },
                &mut (),
                |(), _| Ok(()),
            )?;
            let Some(Struck { code, line }) = result else {
                at += taken;
                continue;
            };
            // Without a line the message as a whole was refused: the set is missing or permission is.
            let Some(line) = line.map(|line| line as usize).filter(|line| *line <= taken) else {
                return Err(IpsetError::Kernel { action, code });
            };
            at += line;
            if let Some(item) = members.get(at - 1) {
                let reason = format!("{action}: {}", describe(code));
                refused.push(RefusedMember { member: *part(item).0, reason });
            }
        }
        Ok(refused)
    }

    fn order(&mut self, action: &str, request: impl Fn() -> Request) -> Result<(), IpsetError> {
        self.run(action, request, &mut (), |(), _| Ok(()))
    }

    fn ask<T>(
        &mut self,
        action: &str,
        request: impl Fn() -> Request,
        read: impl Fn(Attributes<'_>) -> Option<T>,
    ) -> Result<T, IpsetError> {
        let mut found = None;
        self.run(action, request, &mut found, |found, answer| {
            *found = read(answer);
            Ok(())
        })?;
        found.ok_or_else(|| IpsetError::Malformed { action: action.to_owned(), reason: "nothing was said" })
    }

    fn run<T: Default>(
        &mut self,
        action: &str,
        request: impl Fn() -> Request,
        into: &mut T,
        read: impl FnMut(&mut T, Attributes<'_>) -> Result<(), &'static str>,
    ) -> Result<(), IpsetError> {
        match self.exchange(action, |sequence| request().finish(sequence), into, read)? {
            None => Ok(()),
            Some(Struck { code, .. }) => Err(IpsetError::Kernel { action: action.to_owned(), code }),
        }
    }

    /// Sends one request, again when its answers were lost, and reads the answers into `into` from its empty state.
    fn exchange<T: Default>(
        &mut self,
        action: &str,
        mut seal: impl FnMut(u32) -> Vec<u8>,
        into: &mut T,
        mut read: impl FnMut(&mut T, Attributes<'_>) -> Result<(), &'static str>,
    ) -> Result<Option<Struck>, IpsetError> {
        let mut attempt = 1;
        loop {
            *into = T::default();
            let mut struck = None;
            let mut malformed = None;
            let exchanged = self.socket.exchange(&mut seal, |answer| match answer {
                Answer::Done => Take::Last,
                Answer::Refused { code, line } => {
                    struck = Some(Struck { code, line });
                    Take::Last
                }
                Answer::Data(attributes) => {
                    if let Err(reason) = read(into, attributes) {
                        malformed = Some(reason);
                    }
                    Take::More
                }
            });
            match (exchanged, malformed) {
                (Ok(()), Some(reason)) => {
                    return Err(IpsetError::Malformed { action: action.to_owned(), reason });
                }
                (Ok(()), None) => return Ok(struck),
                (Err(ExchangeError::Lost(_)), _) if attempt < self.attempts => attempt += 1,
                (Err(ExchangeError::Lost(source) | ExchangeError::Socket(source)), _) => {
                    return Err(IpsetError::Socket { action: action.to_owned(), source });
                }
            }
        }
    }
}

/// A refusal and the line of the batch it struck.
#[derive(Debug, Clone, Copy)]
struct Struck {
    code: i32,
    line: Option<u32>,
}

#[cfg(test)]
mod tests;

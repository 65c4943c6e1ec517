//! The kernel's routes and rules over rtnetlink (`rtnetlink(7)`). Nothing else in this crate touches them.

mod message;
mod watch;

use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use nix::errno::Errno;
use rtnetlink::packet_route::route::{RouteAttribute, RouteType};
use rtnetlink::{Handle, IpVersion};
use tokio::task::JoinHandle;

use crate::desired::{Family, MAIN_TABLE, PROTOCOL};
use crate::plan::{Held, Step};

pub use watch::Watch;

/// A socket to the kernel.
#[derive(Debug)]
pub struct Kernel {
    handle: Handle,
    connection: JoinHandle<()>,
}

/// What was found in one reading.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Families this kernel speaks.
    pub families: Vec<Family>,
    /// Routes and rules that concern us.
    pub held: Held,
}

/// Where an address is, seen from this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On a network the host is on, behind the device with this index.
    OnLink(u32),
    /// The host itself.
    Here,
    /// Behind some router, or out of reach.
    Elsewhere,
}

/// A request the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {source}{hint}", hint = self.hint())]
pub struct KernelError {
    action: String,
    source: io::Error,
}

impl KernelError {
    fn new(action: impl Into<String>, error: &rtnetlink::Error) -> Self {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other.to_string()),
        };
        Self { action: action.into(), source }
    }

    fn errno(&self) -> Option<Errno> {
        self.source.raw_os_error().map(Errno::from_raw)
    }

    fn hint(&self) -> &'static str {
        match self.errno() {
            Some(Errno::EPERM) => " (needs CAP_NET_ADMIN)",
            Some(Errno::EEXIST) => " (somebody else's stands in its place)",
            _ => "",
        }
    }
}

impl Kernel {
    /// Opens the socket, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel has no rtnetlink.
    pub fn open() -> io::Result<Self> {
        // Strict checking makes the kernel filter dumps: a host with a full BGP table must not send us all of it.
        let (connection, handle, _messages) = rtnetlink::new_connection_with_strict_check()?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Reads all routes in `table`, and the routes and rules of ours wherever they are.
    ///
    /// # Errors
    /// [`KernelError`] when a dump fails.
    pub async fn read(&self, table: Option<u32>) -> Result<Snapshot, KernelError> {
        let mut snapshot = Snapshot::default();
        for family in Family::ALL {
            match self.read_rules(family, &mut snapshot.held).await {
                Err(error) if matches!(error.errno(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)) => {
                    continue;
                }
                done => done?,
            }
            snapshot.families.push(family);
            let ours = message::dump_filter(family, None, PROTOCOL);
            let elsewhere = self.dump_routes(family, ours).await?;
            snapshot.held.routes.extend(elsewhere.into_iter().filter(|route| Some(route.key.table) != table));
            if let Some(table) = table {
                let all = self.dump_routes(family, message::dump_filter(family, Some(table), 0)).await?;
                snapshot.held.routes.extend(all.into_iter().filter(|route| route.key.table == table));
            }
        }
        snapshot.held.routes.sort_unstable();
        Ok(snapshot)
    }

    async fn dump_routes(
        &self,
        family: Family,
        filter: rtnetlink::packet_route::route::RouteMessage,
    ) -> Result<Vec<crate::plan::HeldRoute>, KernelError> {
        let dumped: Result<Vec<_>, _> = self.handle.route().get(filter).execute().try_collect().await;
        match dumped.map_err(|error| KernelError::new(format!("read {family} routes"), &error)) {
            Ok(messages) => Ok(messages.iter().filter_map(message::held_route).collect()),
            // A table is there once it holds a route.
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn read_rules(&self, family: Family, held: &mut Held) -> Result<(), KernelError> {
        let version = match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        let rules: Vec<_> = self
            .handle
            .rule()
            .get(version)
            .execute()
            .try_collect()
            .await
            .map_err(|error| KernelError::new(format!("read {family} rules"), &error))?;
        for (rule, ours) in rules.iter().filter_map(message::held_rule) {
            if ours { held.rules.push(rule) } else { held.foreign_rules.push(rule) }
        }
        Ok(())
    }

    /// Finds `address`; `device` (its index) says where to look.
    ///
    /// # Errors
    /// [`KernelError`] when the kernel cannot be asked.
    pub async fn locate(&self, address: IpAddr, device: Option<u32>) -> Result<Place, KernelError> {
        let question = message::lookup(address, device);
        let answer = self.handle.route().get(question).execute().try_next().await;
        let route = match answer
            .map_err(|error| KernelError::new(format!("look up the way to {address}"), &error))
        {
            Ok(Some(route)) => route,
            Ok(None) => return Ok(Place::Elsewhere),
            Err(error) => {
                let no_way =
                    [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES, Errno::EINVAL, Errno::ENODEV];
                return match error.errno() {
                    Some(errno) if no_way.contains(&errno) => Ok(Place::Elsewhere),
                    _ => Err(error),
                };
            }
        };
        if route.header.kind == RouteType::Local {
            return Ok(Place::Here);
        }
        let behind_router =
            route.attributes.iter().any(|a| matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)));
        let device = route
            .attributes
            .iter()
            .find_map(|a| if let RouteAttribute::Oif(i) = a { Some(*i) } else { None });
        Ok(match device {
            Some(device) if !behind_router && route.header.kind == RouteType::Unicast => {
                Place::OnLink(device)
            }
            _ => Place::Elsewhere,
        })
    }

    /// Makes one change. Removing what is gone already is no error.
    ///
    /// # Errors
    /// [`KernelError`] naming the step.
    pub async fn apply(&self, step: &Step) -> Result<(), KernelError> {
        let routes = self.handle.route();
        let done = match step {
            Step::AddRoute(key, kind) => routes.add(message::route(key, kind)).execute().await,
            Step::ReplaceRoute(key, kind) => routes.add(message::route(key, kind)).replace().execute().await,
            Step::RemoveRoute(route) => routes.del(message::removal(route)).execute().await,
            Step::AddRule(rule) => {
                let mut request = self.handle.rule().add();
                *request.message_mut() = message::rule(rule);
                request.execute().await
            }
            Step::RemoveRule(rule) => self.handle.rule().del(message::rule(rule)).execute().await,
        };
        let Err(error) = done else { return Ok(()) };
        let error = KernelError::new(step.to_string(), &error);
        let removal = matches!(step, Step::RemoveRoute(_) | Step::RemoveRule(_));
        match error.errno() {
            Some(Errno::ESRCH | Errno::ENOENT) if removal => Ok(()),
            _ => Err(error),
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The main table never is read as a whole.
pub(crate) fn own_table(table: u32, main_table: bool) -> Option<u32> {
    (!main_table && table != MAIN_TABLE).then_some(table)
}

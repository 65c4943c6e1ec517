//! Where the three processes of a side run: on loopback, each with an address of its own, or each on a machine of the
//! lab. Ports are fixed, since no two seats share an address.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use lab::addresses::{self, Net};
use lab::{Namespace, Network, Program};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

/// Nodes of a cluster.
pub(crate) const NODES: usize = 3;

/// One of the three places.
#[derive(Debug, Clone)]
pub(crate) struct Seat {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    namespace: Option<Arc<Namespace>>,
}

impl Seat {
    /// On the host's loopback. Runs side by side differ in the process id, and so in the addresses.
    pub(crate) fn on_loopback() -> Vec<Self> {
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let address = |index: usize| Ipv4Addr::new(127, 64 | high & 63, low, index as u8 + 1);
        (0..NODES).map(|index| Self::new(index, address(index).into(), None)).collect()
    }

    /// On the loopback of a namespace, which nobody else uses.
    pub(crate) fn on_loopback_of(namespace: &Arc<Namespace>) -> Vec<Self> {
        let address = |index: usize| Ipv4Addr::new(127, 0, 1, index as u8 + 1);
        (0..NODES).map(|index| Self::new(index, address(index).into(), Some(Arc::clone(namespace)))).collect()
    }

    /// On the server machines of a lab.
    pub(crate) fn in_lab(network: &Network) -> Vec<Self> {
        let namespaces = network.servers.iter().enumerate().take(NODES);
        namespaces
            .map(|(index, namespace)| {
                let address = Net::Management.v4(addresses::server(index));
                Self::new(index, address.into(), Some(Arc::clone(namespace)))
            })
            .collect()
    }

    fn new(index: usize, address: IpAddr, namespace: Option<Arc<Namespace>>) -> Self {
        Self { name: format!("srv{}", index + 1), address, namespace }
    }

    /// A program in this place, logging to `directory`.
    pub(crate) fn program(&self, name: &str, path: &Path, directory: &Path) -> Program {
        Program {
            name: name.to_owned(),
            path: path.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            namespace: self.namespace.clone(),
            inherits: Vec::new(),
            log: directory.join(format!("{name}.log")),
        }
    }
}

/// A file system in memory has no fsync worth measuring.
pub(crate) fn check_disk(directory: &Path) -> Result<()> {
    let found = statfs(directory).with_context(|| format!("look at {}", directory.display()))?;
    ensure!(
        found.filesystem_type() != TMPFS_MAGIC,
        "{} is in memory: set TMPDIR to a directory on the disk that is to be measured",
        directory.display()
    );
    Ok(())
}

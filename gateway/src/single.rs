//! One gateway for each network namespace: what two of them would fight over is the kernel's, not a directory's.
//!
//! The lock is the name of a Unix socket in the abstract namespace, which belongs to the network namespace (unix(7)) and
//! goes with the process, however that ends.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// The name, without its leading NUL.
const NAME: &str = "outputguard-gateway";

/// Held while this process is the gateway of its network namespace.
#[derive(Debug)]
pub struct OnlyGateway {
    _name: UnixListener,
}

/// Why this process cannot be the gateway.
#[derive(Debug, thiserror::Error)]
pub enum OnlyGatewayError {
    /// Another one is.
    #[error(
        "another gateway process is running in this network namespace; stop it first (`systemctl stop \
         outputguard-gateway`, or find it with `ss -xlp | grep {NAME}`)"
    )]
    Taken,
    /// The name could not be taken.
    #[error("take the abstract socket @{NAME}: {0}")]
    Io(#[from] io::Error),
}

impl OnlyGateway {
    /// Becomes the gateway of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`OnlyGatewayError`].
    pub fn become_it() -> Result<Self, OnlyGatewayError> {
        let address = SocketAddr::from_abstract_name(NAME)?;
        match UnixListener::bind_addr(&address) {
            Ok(name) => Ok(Self { _name: name }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(OnlyGatewayError::Taken),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn there_is_one_gateway_for_each_network_namespace() {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let only = OnlyGateway::become_it().unwrap();
        assert!(matches!(OnlyGateway::become_it(), Err(OnlyGatewayError::Taken)));
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            OnlyGateway::become_it().unwrap();
        })
        .join()
        .unwrap();
        drop(only);
        OnlyGateway::become_it().unwrap();
    }
}

//! Being told when links, addresses, routes or rules change.

use std::io;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use rtnetlink::MulticastGroup;
use tokio::task::JoinHandle;

/// A subscription. What changed is not kept, only that something did: whoever is told reads the kernel anew.
pub struct Watch {
    messages: BoxStream<'static, ()>,
    connection: JoinHandle<()>,
}

impl Watch {
    /// Subscribes, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn open() -> io::Result<Self> {
        const GROUPS: [MulticastGroup; 7] = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv6Rule,
        ];
        let (connection, _handle, messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
        Ok(Self { messages: messages.map(drop).boxed(), connection: tokio::spawn(connection) })
    }

    /// Waits for the next change and takes in all that are known by then. False when the subscription ended.
    pub async fn changed(&mut self) -> bool {
        if self.messages.next().await.is_none() {
            return false;
        }
        while let Some(more) = self.messages.next().now_or_never() {
            if more.is_none() {
                return false;
            }
        }
        true
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

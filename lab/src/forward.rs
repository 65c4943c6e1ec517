//! A door from the host into a namespace, without any interface on the host.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::namespace::Namespace;

/// A TCP port on the host's 127.0.0.1 that leads to an address inside a namespace. Dropping it closes the door and the
/// connections through it.
#[derive(Debug)]
pub struct Forward {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Forward {
    /// Listens on a free port of the host and connects from inside `namespace` to `target`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn new(namespace: &Arc<Namespace>, target: SocketAddr) -> Result<Self> {
        // Bound on this thread, so it belongs to the host; the thread below makes the inner connections.
        let listener =
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on 127.0.0.1")?;
        listener.set_nonblocking(true).context("make the listener non-blocking")?;
        let address = listener.local_addr().context("read the listener's address")?;
        let (stop, stopped) = oneshot::channel();
        let namespace = Arc::clone(namespace);
        let thread = thread::Builder::new()
            .name(format!("forward-{}", address.port()))
            .spawn(move || {
                if let Err(error) = serve(&namespace, listener, target, stopped) {
                    tracing::error!(%target, namespace = namespace.name(), "forward ended: {error:#}");
                }
            })
            .context("start a thread")?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// The address on the host.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    namespace: &Namespace,
    listener: std::net::TcpListener,
    target: SocketAddr,
    stopped: oneshot::Receiver<()>,
) -> Result<()> {
    namespace.enter_this_thread()?;
    // One thread, so that every socket the runtime makes is made inside the namespace.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("start a runtime")?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener).context("adopt the listener")?;
        tokio::select! {
            _ = stopped => Ok(()),
            result = accept(listener, target) => result,
        }
    })
}

async fn accept(listener: TcpListener, target: SocketAddr) -> Result<()> {
    loop {
        let (mut outer, _) = listener.accept().await.context("accept")?;
        tokio::spawn(async move {
            // A refused inner connection closes the outer one, which is what the caller would have seen inside.
            if let Ok(mut inner) = TcpStream::connect(target).await {
                let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
            }
        });
    }
}

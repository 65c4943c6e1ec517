//! A stretch of wire between a resolver and a TCP server, which counts connections, cuts them, or swallows what they carry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They work.
    Open,
    /// They end as soon as they are made.
    Slam,
}

/// The running relay. Its tasks end with the test's runtime.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    made: Arc<AtomicUsize>,
    mode: watch::Sender<Mode>,
    /// Connections made up to this number are cut …
    cut: watch::Sender<usize>,
    /// … or carry nothing any more.
    silenced: watch::Sender<usize>,
}

impl Relay {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a port");
        let address = listener.local_addr().expect("a bound port");
        let made = Arc::new(AtomicUsize::new(0));
        let (mode, modes) = watch::channel(Mode::Open);
        let (cut, cuts) = watch::channel(0);
        let (silenced, silences) = watch::channel(0);
        let count = Arc::clone(&made);
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.expect("accept a connection");
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                if *modes.borrow() == Mode::Slam {
                    continue;
                }
                let far = TcpStream::connect(("127.0.0.1", port)).await.expect("reach the server");
                let (mut cuts, silences) = (cuts.clone(), silences.clone());
                tokio::spawn(async move {
                    let (near_in, near_out) = near.into_split();
                    let (far_in, far_out) = far.into_split();
                    tokio::select! {
                        () = carry(near_in, far_out, number, silences.clone()) => {}
                        () = carry(far_in, near_out, number, silences) => {}
                        _ = cuts.wait_for(|upto| *upto >= number) => {}
                    }
                });
            }
        });
        Self { address, made, mode, cut, silenced }
    }

    /// How many connections were made so far.
    pub(crate) fn connections(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Ends every connection there is.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(self.connections());
    }

    /// Every connection there is stays, and carries nothing from now on.
    pub(crate) fn silence(&self) {
        self.silenced.send_replace(self.connections());
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    number: usize,
    silences: watch::Receiver<usize>,
) {
    let mut buffer = vec![0; 4096];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) if *silences.borrow() >= number => {}
            Ok(read) => {
                if to.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}

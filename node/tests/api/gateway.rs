//! A gateway as the feed sees it: it keeps the published set and checks every digest.

use std::collections::BTreeSet;

use allowlist::feed::{Applied, FeedState, GoawayReason, Hello, SUBPROTOCOL, ToGateway, ToServer, Welcome};
use allowlist::{Digest, Element, Revision, codec};
use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::harness::{PATIENCE, Server};

pub(crate) struct Gateway {
    socket: WebSocketStream<TcpStream>,
    pub(crate) welcome: Welcome,
    pub(crate) set: BTreeSet<Element>,
    /// Of the last snapshot, change or heartbeat.
    pub(crate) revision: Revision,
    pub(crate) snapshots: usize,
    incoming: Vec<Element>,
}

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) goaway: Option<GoawayReason>,
    pub(crate) code: u16,
    pub(crate) reason: String,
}

pub(crate) fn request(server: &Server, token: Option<&str>, subprotocol: Option<&str>) -> Request {
    let mut request = format!("ws://{}/ws", server.address).into_client_request().unwrap();
    let headers = request.headers_mut();
    if let Some(token) = token {
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    if let Some(subprotocol) = subprotocol {
        headers.insert("sec-websocket-protocol", subprotocol.parse().unwrap());
    }
    request
}

/// A connection that has not said hello.
pub(crate) async fn open(server: &Server, token: &str) -> WebSocketStream<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    // Small, so that a gateway that does not read is noticed soon.
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(server.address).await.unwrap();
    let (socket, answer) =
        client_async(request(server, Some(token), Some(SUBPROTOCOL)), stream).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], SUBPROTOCOL);
    socket
}

/// The status and code with which the server refuses an upgrade.
pub(crate) async fn refusal(server: &Server, request: Request) -> (u16, String) {
    let stream = TcpStream::connect(server.address).await.unwrap();
    match client_async(request, stream).await {
        Err(Error::Http(answer)) => {
            let body: serde_json::Value =
                serde_json::from_slice(answer.body().as_deref().unwrap_or_default()).unwrap_or_default();
            (answer.status().as_u16(), body["code"].as_str().unwrap_or_default().to_owned())
        }
        other => panic!("{:?}", other.map(|(_, answer)| answer)),
    }
}

pub(crate) async fn say(socket: &mut WebSocketStream<TcpStream>, frame: &ToServer) {
    socket.send(Message::Binary(codec::encode(frame).unwrap().into())).await.unwrap();
}

pub(crate) fn hello(name: &str, state: Option<FeedState>) -> ToServer {
    ToServer::Hello(Hello { name: name.into(), version: "test".into(), state })
}

/// Reads until the session ends.
pub(crate) async fn ended(socket: &mut WebSocketStream<TcpStream>) -> Ended {
    let reading = async {
        let mut goaway = None;
        loop {
            match socket.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    if let ToGateway::Goaway { reason, .. } = codec::decode(&bytes).unwrap() {
                        goaway = Some(reason);
                    }
                }
                Some(Ok(Message::Close(frame))) => {
                    let frame = frame.expect("a close frame says why");
                    return Ended { goaway, code: frame.code.into(), reason: frame.reason.to_string() };
                }
                Some(Ok(_)) => {}
                other => panic!("the session ended without a word after {goaway:?}: {other:?}"),
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("the session ends")
}

impl Gateway {
    pub(crate) async fn connect(server: &Server, token: &str, name: &str) -> Self {
        Self::connect_with(server, token, name, None, BTreeSet::new()).await
    }

    /// Connects as a gateway that holds `set` at `state`.
    pub(crate) async fn connect_with(
        server: &Server,
        token: &str,
        name: &str,
        state: Option<FeedState>,
        set: BTreeSet<Element>,
    ) -> Self {
        let mut socket = open(server, token).await;
        say(&mut socket, &hello(name, state)).await;
        let ToGateway::Welcome(welcome) = read(&mut socket).await else { panic!("no welcome") };
        let revision = state.map_or(0, |state| state.revision);
        Self { socket, welcome, set, revision, snapshots: 0, incoming: Vec::new() }
    }

    /// Where it stands.
    pub(crate) fn state(&self) -> FeedState {
        FeedState { cluster: self.welcome.cluster, revision: self.revision, digest: self.digest() }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.set)
    }

    /// Takes one frame in, checking what can be checked, and returns it.
    pub(crate) async fn step(&mut self) -> ToGateway {
        let frame = read(&mut self.socket).await;
        match &frame {
            ToGateway::SnapshotPart { part, elements } => {
                if *part == 0 {
                    self.incoming.clear();
                }
                self.incoming.extend(elements);
            }
            ToGateway::SnapshotEnd { revision, digest } => {
                assert!(self.incoming.is_sorted());
                self.set = self.incoming.drain(..).collect();
                self.revision = *revision;
                self.snapshots += 1;
                assert_eq!(self.digest(), *digest);
            }
            ToGateway::Change { change, .. } => {
                assert!(change.revision >= self.revision, "changes come in order");
                self.set.extend(&change.added);
                for gone in change.revoked.iter().chain(&change.retired) {
                    assert!(self.set.remove(gone), "{gone} was not there");
                }
                self.revision = change.revision;
            }
            ToGateway::Heartbeat { revision, digest } => {
                assert!(*revision >= self.revision, "heartbeats stand in order");
                self.revision = *revision;
                assert_eq!(self.digest(), *digest, "at revision {revision}");
            }
            ToGateway::Welcome(_) | ToGateway::Goaway { .. } => {}
        }
        frame
    }

    /// Follows the feed to a heartbeat at or after `revision`.
    pub(crate) async fn beat_at(&mut self, revision: Revision) {
        loop {
            if let ToGateway::Heartbeat { revision: at, .. } = self.step().await
                && at >= revision
            {
                return;
            }
        }
    }

    pub(crate) async fn say(&mut self, frame: &ToServer) {
        say(&mut self.socket, frame).await;
    }

    pub(crate) async fn report_applied(&mut self, digest: Digest) {
        let revision = self.revision;
        self.say(&ToServer::Applied(Applied { revision, digest, kernel_us: 120, refused: Vec::new() })).await;
    }

    pub(crate) async fn ended(&mut self) -> Ended {
        ended(&mut self.socket).await
    }
}

async fn read(socket: &mut WebSocketStream<TcpStream>) -> ToGateway {
    let reading = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Binary(bytes))) => return codec::decode(&bytes).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("no frame but {other:?}"),
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("a frame comes")
}

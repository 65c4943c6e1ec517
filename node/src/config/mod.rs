//! The server's configuration: one typed struct, filled from a YAML file, then the environment, then flags.
//!
//! A key nobody reads is an error that names it; a value that cannot work is an error that says what would.

mod flags;
mod resolver;
mod snapshots;
mod tls;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use crate::cluster::{Join, Tuning};
pub use flags::{Flags, normalise};
use resolver::ResolverSection;
pub use tls::TlsConfig;
use tls::TlsSection;

/// Where data lives unless configured.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/outputguard";
/// API and UI.
pub const DEFAULT_API_LISTEN: &str = "0.0.0.0:8080";
/// Gateway feed.
pub const DEFAULT_FEED_LISTEN: &str = "0.0.0.0:8443";
/// Peers.
pub const DEFAULT_RAFT_LISTEN: &str = "0.0.0.0:8081";
/// Most bytes a configuration file may have.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Longest node name, so that it fits a DNS label and a certificate.
const MAX_NAME_CHARS: usize = 63;

/// A configuration that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Unique name of the node.
    pub name: String,
    /// Log, state, snapshots, identity.
    pub data_dir: PathBuf,
    /// Plain HTTP: API, UI, metrics, health.
    pub listen_api: SocketAddr,
    /// TLS: the same, and the gateway feed.
    pub listen_feed: SocketAddr,
    /// TLS with client certificates: peers only.
    pub listen_raft: SocketAddr,
    /// `host:port` under which peers reach [`Config::listen_raft`].
    pub advertise: String,
    /// All nodes of the cluster, this one included, sorted; empty for a cluster of one.
    pub peers: Vec<String>,
    /// What the node does while its disk is empty.
    pub join: Join,
    /// How the cluster paces itself.
    pub tuning: Tuning,
    /// Certificates.
    pub tls: TlsConfig,
    /// Where the first admin token is written, or was put beforehand.
    pub admin_token_file: PathBuf,
    /// DNS.
    pub resolver: crate::resolver::Settings,
}

/// Why a configuration cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a configuration; the message names line and key.
    #[error("configuration {path}: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What the parser says.
        message: String,
    },
    /// A value cannot work.
    #[error("configuration key {key}: {problem}; {remedy}")]
    Value {
        /// The key, `section.key`.
        key: &'static str,
        /// What is wrong.
        problem: String,
        /// What would be right.
        remedy: &'static str,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    node: NodeSection,
    listen: ListenSection,
    cluster: ClusterSection,
    tls: TlsSection,
    auth: AuthSection,
    resolver: ResolverSection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct NodeSection {
    name: Option<String>,
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ListenSection {
    api: Option<String>,
    feed: Option<String>,
    raft: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ClusterSection {
    advertise: Option<String>,
    peers: Option<Vec<String>>,
    join: Option<String>,
    snapshot_after_entries: Option<u64>,
    entries_kept: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AuthSection {
    admin_token_file: Option<PathBuf>,
}

impl Config {
    /// Reads the file named by the flags (none is fine) and lays environment and flags over it.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that cannot work.
    pub fn load(flags: Flags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        build(file, flags)
    }
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let fail = |source| ConfigError::Read { path: path.to_owned(), source };
    let len = std::fs::metadata(path).map_err(fail)?.len();
    if len > MAX_FILE_BYTES {
        let message = format!("{len} bytes, at most {MAX_FILE_BYTES} are read");
        return Err(ConfigError::Parse { path: path.to_owned(), message });
    }
    let text = std::fs::read_to_string(path).map_err(fail)?;
    if text.trim().is_empty() {
        return Ok(File::default());
    }
    serde_saphyr::from_str(&text)
        .map_err(|error| ConfigError::Parse { path: path.to_owned(), message: error.to_string() })
}

fn build(file: File, flags: Flags) -> Result<Config, ConfigError> {
    let data_dir =
        flags.data_dir.clone().or(file.node.data_dir).unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR));
    let tls = tls::tls(file.tls, &flags, &data_dir)?;
    let name = match flags.node_name.or(file.node.name) {
        Some(name) => name,
        None => host_name()?,
    };
    check_name(&name)?;
    let listen_api = listen("listen.api", flags.listen_api.or(file.listen.api), DEFAULT_API_LISTEN)?;
    let listen_feed = listen("listen.feed", flags.listen_feed.or(file.listen.feed), DEFAULT_FEED_LISTEN)?;
    let listen_raft = listen("listen.raft", flags.listen_raft.or(file.listen.raft), DEFAULT_RAFT_LISTEN)?;
    let mut peers = flags.peers.or(file.cluster.peers).unwrap_or_default();
    for peer in &peers {
        check_host_port("cluster.peers", peer)?;
    }
    peers.sort();
    peers.dedup();
    let advertise = match flags.advertise.or(file.cluster.advertise) {
        Some(advertise) => advertise,
        None if peers.is_empty() => format!("{name}:{}", listen_raft.port()),
        None => {
            return Err(ConfigError::Value {
                key: "cluster.advertise",
                problem: "missing, but cluster.peers is given".to_owned(),
                remedy: "set it to this node's own host:port as it stands in cluster.peers",
            });
        }
    };
    check_host_port("cluster.advertise", &advertise)?;
    if !peers.is_empty() && !peers.contains(&advertise) {
        return Err(ConfigError::Value {
            key: "cluster.advertise",
            problem: format!("{advertise} is not among cluster.peers ({})", peers.join(", ")),
            remedy: "list every node of the cluster there, this one included, written the same way on all",
        });
    }
    let join = join(flags.join.or(file.cluster.join).as_deref())?;
    let tuning = snapshots::tuning(
        flags.snapshot_after_entries.or(file.cluster.snapshot_after_entries),
        flags.entries_kept.or(file.cluster.entries_kept),
    )?;
    let admin_token_file =
        flags.admin_token_file.or(file.auth.admin_token_file).unwrap_or_else(|| data_dir.join("admin.token"));
    let resolver = resolver::resolver(file.resolver, flags.resolver)?;
    Ok(Config {
        name,
        data_dir,
        listen_api,
        listen_feed,
        listen_raft,
        advertise,
        peers,
        join,
        tuning,
        tls,
        admin_token_file,
        resolver,
    })
}

fn join(text: Option<&str>) -> Result<Join, ConfigError> {
    match text {
        None | Some("auto") => Ok(Join::Auto),
        Some("wait") => Ok(Join::Wait),
        Some(other) => Err(ConfigError::Value {
            key: "cluster.join",
            problem: format!("{other:?} is neither"),
            remedy: "write auto (found the cluster or join its peers) or wait (until `outputguardctl cluster add`)",
        }),
    }
}

fn host_name() -> Result<String, ConfigError> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => Err(ConfigError::Value {
            key: "node.name",
            problem: "missing, and this machine has no host name".to_owned(),
            remedy: "give every node a unique name",
        }),
        name => Ok(name.to_owned()),
    }
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
    if name.is_empty() || name.len() > MAX_NAME_CHARS || !name.chars().all(fits) || name.starts_with('.') {
        return Err(ConfigError::Value {
            key: "node.name",
            problem: format!("{name:?} cannot name a node"),
            remedy: "use 1 to 63 letters, digits, '-', '_' or '.', for example server-1",
        });
    }
    Ok(())
}

fn listen(key: &'static str, text: Option<String>, default: &str) -> Result<SocketAddr, ConfigError> {
    let text = text.unwrap_or_else(|| default.to_owned());
    text.parse().map_err(|_| ConfigError::Value {
        key,
        problem: format!("{text:?} is not an address to listen on"),
        remedy: "write IP:port, for example 0.0.0.0:8080 or [::]:8080",
    })
}

/// True for `host:port`, `IPv4:port` and `[IPv6]:port`.
pub(crate) fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host_fits = match bare {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
            }
        };
        host_fits && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

fn check_host_port(key: &'static str, text: &str) -> Result<(), ConfigError> {
    if is_host_port(text) {
        return Ok(());
    }
    Err(ConfigError::Value {
        key,
        problem: format!("{text:?} is not the address of a node"),
        remedy: "write host:port, for example server-1:8081, 10.1.0.1:8081 or [fd00::1]:8081",
    })
}

#[cfg(test)]
mod tests;

//! Configuration: flags before environment before file before defaults, checked before anything is touched.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use serde::Deserialize;

use crate::firewall::{Deny, Mode};

mod metering;
mod unlisted;
mod ways;
pub use metering::{Metering, MeteringFlags, PerIpMetrics};
pub use unlisted::{Unlisted, UnlistedFlags};
pub use ways::{Ways, WaysFlags};

const DEFAULT_STATE_DIR: &str = "/var/lib/outputguard-gateway";
const DEFAULT_METRICS: &str = "0.0.0.0:9900";
/// The port of a `wss://` URL that names none (RFC 6455, section 3).
const DEFAULT_WSS_PORT: u16 = 443;
const DEFAULT_FEED_PATH: &str = "/ws";
/// Longest gateway name; it becomes a metric label and a column in every listing.
const MAX_NAME_BYTES: usize = 64;
/// What a dry run adds to the name, so that servers do not take it for the gateway it may run beside.
const DRY_RUN_SUFFIX: &str = "-dry-run";

/// The seed program's flags had one dash.
const SEED_FLAGS: [&str; 3] = ["-iptables-gateway", "-iptables-wss-server", "-server-conf-path"];

/// What people may write on the command line or set in the environment.
#[derive(Debug, Clone, Default, Parser)]
#[command(
    name = "outputguard-gateway",
    version,
    about = "Forwards and NATs only what the OutputGuard servers publish."
)]
pub struct Flags {
    /// Configuration file (YAML). The seed's -server-conf-path means the same.
    #[arg(long, alias = "server-conf-path", env = "OUTPUTGUARD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This gateway's name, unique among gateways [default: the host name]
    #[arg(long, env = "OUTPUTGUARD_NAME")]
    pub name: Option<String>,
    /// Feed URL of a server, e.g. wss://10.1.0.1:8443/ws; may be repeated. A name is resolved to all its addresses.
    #[arg(
        long = "server",
        alias = "iptables-wss-server",
        env = "OUTPUTGUARD_SERVERS",
        value_delimiter = ',',
        value_name = "URL"
    )]
    pub servers: Vec<String>,
    /// File with this gateway's token
    #[arg(long, env = "OUTPUTGUARD_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// File with the certificate authority of the servers (PEM)
    #[arg(long, env = "OUTPUTGUARD_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Directory of the stored state [default: /var/lib/outputguard-gateway]
    #[arg(long, env = "OUTPUTGUARD_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where /metrics, /livez and /readyz are served [default: 0.0.0.0:9900]
    #[arg(long, env = "OUTPUTGUARD_METRICS", value_name = "ADDRESS:PORT")]
    pub metrics: Option<String>,
    /// What enforces the list: the kernel, or a driver that prints plans and needs no root [default: kernel]
    #[arg(long, env = "OUTPUTGUARD_FIREWALL")]
    pub firewall: Option<FirewallKind>,
    /// Judge only traffic of this network; may be repeated [default: everything that is forwarded]
    #[arg(
        long = "internal-cidr",
        env = "OUTPUTGUARD_INTERNAL_CIDRS",
        value_delimiter = ',',
        value_name = "CIDR"
    )]
    pub internal_cidrs: Vec<String>,
    /// What becomes of what is not listed.
    #[command(flatten)]
    pub unlisted: UnlistedFlags,
    /// The way out, and the machine itself.
    #[command(flatten)]
    pub ways: WaysFlags,
    /// What is counted and shown.
    #[command(flatten)]
    pub metering: MeteringFlags,
    /// How log lines are written
    #[arg(long, env = "OUTPUTGUARD_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Remove every trace of the gateway from the kernel and exit
    #[arg(long)]
    pub cleanup: bool,
    /// Accepted for those who come from the seed; this program is always a gateway
    #[arg(long, hide = true)]
    pub iptables_gateway: bool,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What enforces the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirewallKind {
    /// netfilter of this machine.
    #[default]
    Kernel,
    /// Prints what would be done.
    DryRun,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    name: Option<String>,
    servers: Vec<String>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    metrics: Option<String>,
    firewall: Option<FirewallKind>,
    internal_cidrs: Vec<String>,
    mode: Option<Mode>,
    deny: Option<Deny>,
    nflog_group: Option<u16>,
    drain_idle_s: Option<u64>,
    drain_limit_s: Option<u64>,
    egress_interface: Option<String>,
    snat_addresses: Vec<String>,
    restrict_host: bool,
    management_cidrs: Vec<String>,
    per_ip_metrics: Option<PerIpMetrics>,
    top_sources: Option<usize>,
}

/// Everything checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This gateway's name; a dry run's ends in `-dry-run`.
    pub name: String,
    /// The servers; a name may stand for several addresses.
    pub servers: Vec<Arc<ServerUrl>>,
    /// Holds the token; read again for each connection, so that it can be renewed.
    pub token_file: PathBuf,
    /// Holds the servers' CA; read again for each connection.
    pub ca_file: PathBuf,
    /// Where the state is stored.
    pub state_dir: PathBuf,
    /// Where HTTP is served.
    pub metrics: SocketAddr,
    /// What enforces the list.
    pub firewall: FirewallKind,
    /// Networks whose traffic is judged; empty for all.
    pub internal_cidrs: Vec<IpNet>,
    /// What becomes of what is not listed, or no longer.
    pub unlisted: Unlisted,
    /// The way out, and the machine itself.
    pub ways: Ways,
    /// What is counted and shown.
    pub metering: Metering,
}

/// A feed URL in parts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerUrl {
    /// Name or address without brackets; the certificate must bear it.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path of the feed.
    pub path: String,
}

/// What is wrong with the configuration, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not YAML of the right shape.
    #[error("configuration {}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Names the key.
        reason: String,
    },
    /// A value is missing.
    #[error("`{key}` is not set: {remedy}")]
    Missing {
        /// Which.
        key: &'static str,
        /// How to set it.
        remedy: &'static str,
    },
    /// A value is wrong.
    #[error("`{key}`: {reason}")]
    Value {
        /// Which.
        key: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
}

impl Flags {
    /// Parses arguments, program name first, with the seed's one-dash flags.
    ///
    /// # Errors
    /// clap's, ready to print.
    pub fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(arguments.into_iter().map(two_dashes))
    }
}

/// `-iptables-wss-server=URL` → `--iptables-wss-server=URL`; everything else as it is.
fn two_dashes(argument: OsString) -> OsString {
    let seed = argument.to_str().is_some_and(|text| {
        let flag = text.split_once('=').map_or(text, |(flag, _)| flag);
        SEED_FLAGS.contains(&flag)
    });
    if !seed {
        return argument;
    }
    let mut longer = OsString::from("-");
    longer.push(argument);
    longer
}

impl Config {
    /// Merges flags (which carry the environment) over the file over the defaults, and checks everything.
    ///
    /// # Errors
    /// [`ConfigError`], which names the key.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        let servers = if flags.servers.is_empty() { file.servers } else { flags.servers.clone() };
        let internal_cidrs =
            if flags.internal_cidrs.is_empty() { file.internal_cidrs } else { flags.internal_cidrs.clone() };
        let path = |flag: &Option<PathBuf>, file: Option<PathBuf>| flag.clone().or(file);
        let in_file = UnlistedFlags {
            mode: file.mode,
            deny: file.deny,
            nflog_group: file.nflog_group,
            drain_idle_s: file.drain_idle_s,
            drain_limit_s: file.drain_limit_s,
        };
        let ways_in_file = WaysFlags {
            egress_interface: file.egress_interface,
            snat_addresses: file.snat_addresses,
            restrict_host: file.restrict_host,
            management_cidrs: file.management_cidrs,
        };
        let servers = check_servers(&servers)?;
        let counted = MeteringFlags { per_ip_metrics: file.per_ip_metrics, top_sources: file.top_sources };
        let metrics = flags.metrics.clone().or(file.metrics);
        let firewall = flags.firewall.or(file.firewall).unwrap_or_default();
        let mut name = flags.name.clone().or(file.name).map_or_else(host_name, Ok)?;
        if firewall == FirewallKind::DryRun {
            name.push_str(DRY_RUN_SUFFIX);
        }
        let config = Self {
            name: check_name(name)?,
            ways: flags.ways.over(&ways_in_file, &servers)?,
            servers,
            token_file: path(&flags.token_file, file.token_file).ok_or(ConfigError::Missing {
                key: "token_file",
                remedy: "name the file that holds a token with role gateway, as `outputguardctl token create` prints it",
            })?,
            ca_file: path(&flags.ca_file, file.ca_file).ok_or(ConfigError::Missing {
                key: "ca_file",
                remedy: "copy ca.pem from a server's tls directory and name it here",
            })?,
            state_dir: path(&flags.state_dir, file.state_dir).unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
            metrics: check_metrics(metrics.as_deref().unwrap_or(DEFAULT_METRICS))?,
            firewall,
            internal_cidrs: check_cidrs("internal_cidrs", &internal_cidrs)?,
            unlisted: flags.unlisted.over(&in_file)?,
            metering: flags.metering.over(&counted)?,
        };
        Ok(config)
    }

    /// What `--cleanup` needs: the rest may be missing or wrong by then.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_for_cleanup(flags: &Flags) -> Result<(FirewallKind, Vec<IpNet>, PathBuf), ConfigError> {
        let file = match &flags.config {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        let cidrs =
            if flags.internal_cidrs.is_empty() { &file.internal_cidrs } else { &flags.internal_cidrs };
        let state_dir = flags.state_dir.clone().or(file.state_dir.clone());
        Ok((
            flags.firewall.or(file.firewall).unwrap_or_default(),
            check_cidrs("internal_cidrs", cidrs)?,
            state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
        ))
    }
}

impl File {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(&text)
            .map_err(|error| ConfigError::File { path: path.to_owned(), reason: error.to_string() })
    }
}

fn host_name() -> Result<String, ConfigError> {
    fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).map_err(|error| {
        ConfigError::Value { key: "name", reason: format!("the host name could not be read: {error}") }
    })
}

fn check_name(name: String) -> Result<String, ConfigError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(legal) {
        return Ok(name);
    }
    let reason =
        format!("`{name}`: a gateway's name has 1 to {MAX_NAME_BYTES} letters, digits, `-`, `.` and `_`");
    Err(ConfigError::Value { key: "name", reason })
}

fn check_servers(servers: &[String]) -> Result<Vec<Arc<ServerUrl>>, ConfigError> {
    if servers.is_empty() {
        let remedy = "list the feed URLs of all servers, e.g. wss://10.1.0.1:8443/ws";
        return Err(ConfigError::Missing { key: "servers", remedy });
    }
    let parse = |text: &String| {
        text.parse().map(Arc::new).map_err(|reason| ConfigError::Value { key: "servers", reason })
    };
    servers.iter().map(parse).collect()
}

fn check_metrics(text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| ConfigError::Value {
        key: "metrics",
        reason: format!("`{text}` is not an address with a port; write e.g. 0.0.0.0:9900 or [::]:9900"),
    })
}

fn check_cidrs(key: &'static str, texts: &[String]) -> Result<Vec<IpNet>, ConfigError> {
    let wrong = |reason: String| ConfigError::Value { key, reason };
    let parse = |text: &String| {
        let cidr: IpNet = text
            .parse()
            .map_err(|_| wrong(format!("`{text}` is not a CIDR block; write e.g. 10.0.0.0/8")))?;
        // iptables drops `-s 0.0.0.0/0` from a rule, so that we would not know our own jump again.
        if cidr.prefix_len() == 0 {
            return Err(wrong(format!("`{text}` is every address; leave it out to cover everything")));
        }
        Ok(cidr)
    };
    texts.iter().map(parse).collect()
}

impl FromStr for ServerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("`{text}` {what}; write e.g. wss://10.1.0.1:8443/ws");
        let uri: tokio_tungstenite::tungstenite::http::Uri =
            text.trim().parse().map_err(|_| wrong("is not a URL"))?;
        match uri.scheme_str() {
            Some("wss") => {}
            Some("ws") => return Err(wrong("is not encrypted, and a gateway would follow anyone")),
            _ => return Err(wrong("does not begin with wss://")),
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("names no host"))?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(wrong("carries a user name; give the token by `token_file`"));
        }
        let path = uri.path_and_query().map_or(DEFAULT_FEED_PATH, |path| path.as_str());
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(DEFAULT_WSS_PORT),
            path: if path == "/" { DEFAULT_FEED_PATH.to_owned() } else { path.to_owned() },
        })
    }
}

impl ServerUrl {
    /// `host:port`, with brackets where an IPv6 address needs them.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wss://{}{}", self.authority(), self.path)
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;

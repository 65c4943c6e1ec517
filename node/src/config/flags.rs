//! Command line and environment, laid over the file.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

/// The seed's flag for the configuration file, with one dash.
const SEED_CONFIG_FLAG: &str = "-server-conf-path";

/// The OutputGuard server: keeps the replicated allowlist, serves API, UI and the gateway feed.
#[derive(Debug, Default, Clone, Parser)]
#[command(name = "outputguard-server", version)]
pub struct Flags {
    /// YAML file; every other flag and environment variable wins over it.
    #[arg(long, env = "OUTPUTGUARD_CONFIG", visible_alias = "server-conf-path")]
    pub config: Option<PathBuf>,
    /// Unique name of this node (default: the host name).
    #[arg(long, env = "OUTPUTGUARD_NODE_NAME")]
    pub node_name: Option<String>,
    /// Directory for log, state, snapshots and identity.
    #[arg(long, env = "OUTPUTGUARD_NODE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// IP:port of the plain API and UI.
    #[arg(long, env = "OUTPUTGUARD_LISTEN_API")]
    pub listen_api: Option<String>,
    /// IP:port of the gateway feed (TLS).
    #[arg(long, env = "OUTPUTGUARD_LISTEN_FEED")]
    pub listen_feed: Option<String>,
    /// IP:port for the other nodes (TLS, client certificates).
    #[arg(long, env = "OUTPUTGUARD_LISTEN_RAFT")]
    pub listen_raft: Option<String>,
    /// host:port under which the other nodes reach this one.
    #[arg(long, env = "OUTPUTGUARD_CLUSTER_ADVERTISE")]
    pub advertise: Option<String>,
    /// All nodes of the cluster, host:port, comma separated, this one included.
    #[arg(long, env = "OUTPUTGUARD_CLUSTER_PEERS", value_delimiter = ',')]
    pub peers: Option<Vec<String>>,
    /// What a node with an empty disk does: auto (found the cluster or join its peers), or wait (until it is added).
    #[arg(long, env = "OUTPUTGUARD_CLUSTER_JOIN")]
    pub join: Option<String>,
    /// Write a snapshot, after which the log is cut, after so many log entries (default: 200000).
    #[arg(long, env = "OUTPUTGUARD_CLUSTER_SNAPSHOT_AFTER_ENTRIES")]
    pub snapshot_after_entries: Option<u64>,
    /// Log entries kept behind a snapshot for nodes that were away for a moment (default: 20000).
    #[arg(long, env = "OUTPUTGUARD_CLUSTER_ENTRIES_KEPT")]
    pub entries_kept: Option<u64>,
    /// Directory with ca.pem and the node's certificate.
    #[arg(long, env = "OUTPUTGUARD_TLS_DIR")]
    pub tls_dir: Option<PathBuf>,
    /// Whether a peer's certificate must name the member it says it is (default: true).
    #[arg(long, env = "OUTPUTGUARD_TLS_VERIFY_PEER_NAMES")]
    pub tls_verify_peer_names: Option<bool>,
    /// File with the first admin token; written by the node that bootstraps unless it exists.
    #[arg(long, env = "OUTPUTGUARD_AUTH_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// DNS.
    #[command(flatten)]
    pub resolver: ResolverFlags,
}

/// The flags of the resolver.
#[derive(Debug, Default, Clone, clap::Args)]
pub struct ResolverFlags {
    /// DNS servers, comma separated: IP:port, tls://IP:port#name or https://IP/path#name (default: the system's).
    #[arg(long, env = "OUTPUTGUARD_RESOLVER_UPSTREAMS", value_delimiter = ',')]
    pub resolver_upstreams: Option<Vec<String>>,
    /// How many DNS servers must give an address before it is published: any (one) or majority.
    #[arg(long, env = "OUTPUTGUARD_RESOLVER_QUORUM")]
    pub resolver_quorum: Option<String>,
    /// PEM file with the CAs of encrypted DNS servers (default: the system's).
    #[arg(long, env = "OUTPUTGUARD_RESOLVER_CA_FILE")]
    pub resolver_ca_file: Option<PathBuf>,
    /// Never ask a name more often than this, seconds.
    #[arg(long, env = "OUTPUTGUARD_RESOLVER_MIN_INTERVAL_S")]
    pub resolver_min_interval_s: Option<u64>,
    /// Ask a name at least this often, seconds.
    #[arg(long, env = "OUTPUTGUARD_RESOLVER_MAX_INTERVAL_S")]
    pub resolver_max_interval_s: Option<u64>,
    /// How long an address outlives its last sighting, seconds.
    #[arg(long, env = "OUTPUTGUARD_RESOLVER_LINGER_S")]
    pub resolver_linger_s: Option<u64>,
    /// Most questions a second to each DNS server (default: 5000).
    #[arg(long, env = "OUTPUTGUARD_RESOLVER_QUESTIONS_PER_SECOND")]
    pub resolver_questions_per_second: Option<u32>,
}

/// Gives the seed's one-dash flag its second dash, so that those who come from it need change nothing.
pub fn normalise(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    args.into_iter()
        .map(|arg| match arg.to_str() {
            Some(text) if text == SEED_CONFIG_FLAG || text.starts_with("-server-conf-path=") => {
                OsString::from(format!("-{text}"))
            }
            _ => arg,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_flag_names_the_file_with_and_without_an_equals_sign() {
        for args in [vec!["s", "-server-conf-path", "/c"], vec!["s", "-server-conf-path=/c"]] {
            let flags = Flags::try_parse_from(normalise(args.into_iter().map(OsString::from))).unwrap();
            assert_eq!(flags.config, Some(PathBuf::from("/c")));
        }
    }

    #[test]
    fn peers_are_separated_by_commas() {
        let flags = Flags::try_parse_from(["s", "--peers", "a:1,b:2"]).unwrap();
        assert_eq!(flags.peers, Some(vec!["a:1".to_owned(), "b:2".to_owned()]));
    }
}

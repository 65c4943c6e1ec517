//! What can be typed.

use std::path::{Path, PathBuf};

use allowlist::{EntryId, PortRange, Target};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::audit::{Audit, Cuts};
use crate::denied::Denied;
use crate::expiry::Ends;
use crate::names::Names;

/// Manages an OutputGuard allowlist.
#[derive(Debug, Parser)]
#[command(name = "outputguardctl", version)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) connection: Connection,

    /// How answers are shown.
    #[arg(short, long, value_enum, default_value_t = Output::Table, global = true)]
    pub(crate) output: Output,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which server, and as whom.
#[derive(Debug, ClapArgs)]
pub(crate) struct Connection {
    /// A server, or the load balancer in front of them.
    #[arg(long, env = "OUTPUTGUARD_ADDR", default_value = "http://127.0.0.1:8080", global = true)]
    pub(crate) addr: String,

    /// File that holds the API token.
    #[arg(long, env = "OUTPUTGUARD_TOKEN_FILE", global = true)]
    pub(crate) token_file: Option<PathBuf>,

    /// The cluster's CA certificate (PEM), for https addresses.
    #[arg(long, env = "OUTPUTGUARD_CA_FILE", global = true)]
    pub(crate) ca_file: Option<PathBuf>,
}

/// How answers are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Columns for people.
    Table,
    /// The server's JSON.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Allow a domain, an address or a CIDR block. Adding it again shows the entry that is there.
    Add(Add),
    /// Show entries, all or those that match.
    List {
        /// Part of a target, comment, owner or ticket, or an address that an entry covers.
        query: Option<String>,
    },
    /// Show one entry with its addresses.
    Get {
        /// The entry's id.
        id: EntryId,
    },
    /// Protect an entry from removal, for good.
    Protect {
        /// The entry's id.
        id: EntryId,
    },
    /// Say when an entry ends by itself.
    Expire {
        /// The entry's id.
        id: EntryId,
        /// `90m`, `12h`, `30d`, `2w`, a time such as `2030-01-31T18:00:00Z`, or `never`.
        when: String,
    },
    /// Remove an entry; connections through it are cut at once.
    Remove {
        /// The entry's id.
        id: EntryId,
        /// Only show what would go, and what would stay because of whom.
        #[arg(long)]
        dry_run: bool,
    },
    /// Show how the addresses of a domain changed, newest first.
    History {
        /// The entry's id.
        id: EntryId,
    },
    /// Show how the domains of the list stand with DNS, and why.
    Names(Names),
    /// Show nodes and gateways.
    Status,
    /// Show what gateways denied, and what the list says of it now.
    Denied(Denied),
    /// Show who changed what, newest first.
    Audit(Audit),
    /// Show connections that gateways cut because of a change, and what they had moved. Each node has those of its gateways.
    Cuts(Cuts),
    /// Show who moves most: source hosts, or entries.
    Top(Top),
    /// Nodes of the cluster: add, replace, remove.
    Cluster {
        #[command(subcommand)]
        command: ClusterCommand,
    },
    /// Write the whole list, as `import` reads it.
    Export {
        /// Where to; standard output when left out.
        #[arg(short, long)]
        file: Option<PathBuf>,
        /// By the file's name when left out, else yaml.
        #[arg(long, value_enum)]
        format: Option<ListFormat>,
    },
    /// Add a whole list. All of it is checked before any of it is written; what is there stays as it is.
    Import {
        /// The list; `-` for standard input.
        file: PathBuf,
        /// By the file's name when left out, else yaml.
        #[arg(long, value_enum)]
        format: Option<ListFormat>,
        /// Check and count, write nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Save the whole state to a file.
    Backup {
        /// Where to; replaced when it is there.
        file: PathBuf,
    },
    /// Put a backup into a new cluster, one without entries.
    Restore {
        /// What `backup` wrote.
        file: PathBuf,
    },
    /// API tokens.
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
}

/// A new entry. Target and ports are checked here already, so that a typing error needs no server to be found.
#[derive(Debug, ClapArgs)]
pub(crate) struct Add {
    /// `api.example.com`, `203.0.114.7` or `203.0.114.0/24`.
    pub(crate) target: Target,
    /// `tcp/443` or `udp/5000-5010`; may be repeated; all ports when left out.
    #[arg(short, long = "port")]
    pub(crate) ports: Vec<PortRange>,
    /// Why it is needed.
    #[arg(short, long, default_value = "")]
    pub(crate) comment: String,
    /// Who answers for it.
    #[arg(long, default_value = "")]
    pub(crate) owner: String,
    /// The request it came from.
    #[arg(long, default_value = "")]
    pub(crate) ticket: String,
    /// Forbid its removal.
    #[arg(long, conflicts_with = "expires")]
    pub(crate) protected: bool,
    /// When it ends by itself: `90m`, `12h`, `30d`, `2w`, or a time such as `2030-01-31T18:00:00Z`.
    #[arg(long)]
    pub(crate) expires: Option<Ends>,
    /// How long addresses of a domain stay after DNS last gave them, such as `30m`, `12h`, `7d`; the servers' setting when
    /// left out.
    #[arg(long, value_parser = allowlist::linger::parse)]
    pub(crate) linger: Option<std::time::Duration>,
    /// Return when every gateway with a session holds it, and say so.
    #[arg(long)]
    pub(crate) wait: bool,
}

/// Who is shown.
#[derive(Debug, ClapArgs)]
pub(crate) struct Top {
    /// What is summed up.
    #[arg(long, value_enum, default_value_t = TopBy::Source)]
    pub(crate) by: TopBy,
    /// Only through this gateway.
    #[arg(long)]
    pub(crate) gateway: Option<String>,
    /// The last minutes up to an hour, such as `10m` or `1h`, or `all` since each server started.
    #[arg(long, default_value = "10m")]
    pub(crate) window: String,
    /// At most so many, 1 to 100.
    #[arg(short = 'n', long, default_value_t = 10)]
    pub(crate) limit: usize,
}

/// What is summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TopBy {
    /// Hosts behind the gateways.
    Source,
    /// Entries of the allowlist.
    Entry,
}

impl TopBy {
    /// As the API has it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Entry => "entry",
        }
    }
}

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// `entries:` and a list.
    Yaml,
    /// One JSON object per line.
    Ndjson,
    /// A line of names, then one entry per line.
    Csv,
}

impl ListFormat {
    /// By the end of the file's name.
    pub(crate) fn of_file(file: &Path) -> Option<Self> {
        match file.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "yaml" | "yml" => Some(Self::Yaml),
            "ndjson" | "jsonl" => Some(Self::Ndjson),
            "csv" => Some(Self::Csv),
            _ => None,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Yaml => "yaml",
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
        }
    }

    pub(crate) const fn media_type(self) -> &'static str {
        match self {
            Self::Yaml => "application/yaml",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv",
        }
    }
}

/// API tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; it is shown once.
    Create {
        /// Its name, the actor in the audit log.
        name: String,
        /// What it may do.
        #[arg(long, value_enum)]
        role: Role,
    },
    /// Show names and roles.
    List,
    /// Withdraw a token.
    Remove {
        /// Its name.
        name: String,
    },
}

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Opens a gateway feed, nothing else.
    Gateway,
    /// Reads.
    Viewer,
    /// Adds and removes entries.
    Editor,
    /// Everything.
    Admin,
}

impl Role {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Viewer => "viewer",
            Self::Editor => "editor",
            Self::Admin => "admin",
        }
    }
}

/// Nodes of the cluster. Every change may be run again: what is done already is left as it is.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show the members.
    Members,
    /// Make a node a voter; it runs with an empty disk (start it with `cluster.join: wait`).
    Add {
        /// Its raft address, host:port, as in its `cluster.advertise`.
        address: String,
        #[command(flatten)]
        patience: Patience,
    },
    /// Put a new node in the place of a member, dead or alive.
    Replace {
        /// Name or id of the member that leaves.
        old: String,
        /// Raft address of the new node, host:port.
        address: String,
        /// Also when too few of the voters that stay can be reached: nothing can be written until they are back.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        patience: Patience,
    },
    /// Take a member out, dead or alive. A leader hands over first.
    Remove {
        /// Name or id.
        member: String,
        /// Also when too few of the voters that stay can be reached: nothing can be written until they are back.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        patience: Patience,
    },
    /// Make another node the leader.
    StepDown {
        /// Name or id of a voter; the one that is furthest when left out.
        #[arg(long)]
        to: Option<String>,
        #[command(flatten)]
        patience: Patience,
    },
    /// Go on from one node when the majority is lost for good: it becomes a cluster of one with all it holds. What the
    /// lost nodes acknowledged and it never got is gone.
    Recover {
        /// API address of the surviving node, for example http://10.1.0.1:8080.
        #[arg(long)]
        from_node: String,
        /// Confirms with the id of the lost cluster; without it, only what would be kept is shown.
        #[arg(long, value_name = "CLUSTER-ID")]
        yes_i_lost_the_majority: Option<String>,
        #[command(flatten)]
        patience: Patience,
    },
}

/// How long to wait.
#[derive(Debug, Clone, Copy, ClapArgs)]
pub(crate) struct Patience {
    /// Give up after this time, seconds; run the command again to go on.
    #[arg(long, default_value_t = 600)]
    pub(crate) timeout: u64,
}

//! The machines a chaos run stands on: servers, their disks and clocks, and the cables between them.

mod newcomers;

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::clock::{self, Clock};
use super::crowd::Door;
use super::disk::{Disk, Store};
use crate::addresses::{API_PORT, Net};
use crate::api::{ApiError, Status};
use crate::binaries::Binaries;
use crate::namespace::output;
use crate::network::Network;
use crate::run::Run;
use crate::server::{Part, Server};
use crate::wait;

/// How long a cluster may take to be whole again once everything is healed.
pub(super) const RECOVERY_TIMEOUT: Duration = Duration::from_secs(90);
/// How long one node may take to hold what the others hold, when nothing is written any more.
const QUIET_TIMEOUT: Duration = Duration::from_secs(30);
/// A slow link: rate, what may wait, and for how long; and how much gets lost.
const SLOW_LINK: [&str; 6] = ["rate", "400kbit", "burst", "8kb", "latency", "300ms"];
const SLOW_LINK_LOSS: &str = "0.1";
/// Entries of a page of the export.
const PAGE_ENTRIES: usize = 1_000;

/// What the servers' fsync does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syncs {
    /// It syncs.
    Real,
    /// Nothing, by libeatmydata: what a server does that acknowledges before it syncs.
    Ignored,
}

/// Running servers. Fields are dropped in this order: processes, then disks, then namespaces.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) servers: Vec<Server>,
    pub(super) clocks: Vec<Clock>,
    pub(super) disks: Vec<Disk>,
    store: Store,
    /// How many servers found the cluster; others come and go.
    founders: usize,
    /// Of each server, beside its clock's.
    libraries: String,
    binaries: Binaries,
    network: Network,
    run: Run,
}

impl Ground {
    /// Starts `servers` servers and waits until they are a cluster.
    ///
    /// # Errors
    /// With the last log lines of what did not come up.
    pub(super) fn start(servers: usize, syncs: Syncs) -> Result<Self> {
        let binaries = Binaries::find()?;
        let mut libraries = vec![clock::library("faketime/libfaketimeMT.so.1", "libfaketime")?];
        if syncs == Syncs::Ignored {
            libraries.push(clock::library("libeatmydata.so.1", "libeatmydata1")?);
        }
        let libraries: Vec<_> = libraries.iter().map(|path| path.display().to_string()).collect();
        let run = Run::begin()?;
        let network = Network::build(&run, servers + newcomers::SEATS, 0)?;
        let store = Store::mount(run.directory().join("disks"))?;
        let mut ground = Self {
            servers: Vec::new(),
            clocks: Vec::new(),
            disks: Vec::new(),
            store,
            founders: servers,
            libraries: libraries.join(":"),
            binaries,
            network,
            run,
        };
        for _ in 0..servers {
            ground.start_server(Part::Founder { of: servers })?;
        }
        ground.recovered()?;
        // Every run begins with a cluster that is safely on its disks.
        ground.disks.iter().try_for_each(Disk::sync)?;
        Ok(ground)
    }

    /// Starts the next server, with a disk and a clock of its own.
    fn start_server(&mut self, part: Part) -> Result<()> {
        let index = self.servers.len();
        let name = format!("srv{}", index + 1);
        let directory = self.run.directory();
        // Where the server keeps its data.
        self.disks.push(Disk::create(&self.store, &name, directory.join(&name))?);
        let clock = Clock::new(directory.join(format!("{name}.clock")))?;
        let mut environment = clock.environment();
        environment.push(("LD_PRELOAD".to_owned(), self.libraries.clone()));
        // So often that faults meet snapshots being written, sent and installed.
        for (key, entries) in [("SNAPSHOT_AFTER_ENTRIES", 300), ("ENTRIES_KEPT", 50)] {
            environment.push((format!("OUTPUTGUARD_CLUSTER_{key}"), entries.to_string()));
        }
        self.clocks.push(clock);
        let server = Server::start_as(part, &self.run, &self.network, index, &self.binaries, &environment)?;
        self.servers.push(server);
        Ok(())
    }

    /// Where the clients of each server go in.
    pub(super) fn doors(&self) -> Vec<Door> {
        let door = |server: &Server| Door {
            namespace: server.namespace().clone(),
            address: (server.address(), API_PORT).into(),
        };
        self.servers.iter().map(door).collect()
    }

    /// The administrator's token.
    pub(super) fn token(&self) -> Result<String> {
        self.servers.first().context("no server is started")?.admin_token()
    }

    /// Starts what does not run, and waits until every server is ready and sees all others as voters.
    ///
    /// # Errors
    /// When it does not come to that.
    pub(super) fn recovered(&mut self) -> Result<()> {
        let count = self.servers.len();
        for server in &mut self.servers {
            server.process.start_again()?;
        }
        for server in &mut self.servers {
            server.wait_ready()?;
        }
        wait::until("every server sees all others as voters", RECOVERY_TIMEOUT, || -> Result<()> {
            for server in &self.servers {
                let status = server.api()?.status()?;
                let fit = status.nodes.iter().filter(|node| node.voter && node.reachable).count();
                ensure!(
                    fit == count && status.nodes.len() == count && status.leader.is_some(),
                    "{}: {status:?}",
                    server.name()
                );
            }
            Ok(())
        })
    }

    /// Servers that ended by themselves.
    pub(super) fn dead(&mut self) -> Vec<String> {
        let dead = |server: &mut Server| {
            (!server.process.is_running()).then(|| {
                let status = server.process.last_exit();
                let status = status.map_or_else(|| "unknown status".to_owned(), |status| status.to_string());
                format!("{} ended ({status}); its log ends:\n{}", server.name(), server.process.log_tail(15))
            })
        };
        self.servers.iter_mut().filter_map(dead).collect()
    }

    /// Number of the server that leads.
    ///
    /// # Errors
    /// When none is found in time.
    pub(super) fn leader(&self) -> Result<usize> {
        wait::until("the cluster has a leader", RECOVERY_TIMEOUT, || {
            let status = self.servers.iter().find_map(|server| server.api().ok()?.status().ok());
            let name = status.and_then(|status| status.leader).context("nobody names a leader")?;
            let leads = |server: &Server| server.name() == name;
            self.servers.iter().position(leads).with_context(|| format!("{name} is none of ours"))
        })
    }

    /// Lets another server lead, number `to` if given; asked for at a server that may not be the leader.
    pub(super) fn step_down(&self, to: Option<usize>) -> Result<()> {
        let server = self.servers.last().context("no server is started")?;
        let (api, to) = (server.api()?, to.map(|index| self.servers[index].name()));
        wait::until("the leader steps down", RECOVERY_TIMEOUT, || api.step_down(to))?;
        Ok(())
    }

    /// Removes server `index` from the cluster, asked for at another one, which stays.
    pub(super) fn remove_member(&self, index: usize) -> Result<()> {
        let other = &self.servers[(index + 1) % self.founders];
        let (api, name) = (other.api()?, self.servers[index].name());
        wait::until(format!("{name} is removed"), RECOVERY_TIMEOUT, || match api.remove_member(name) {
            // Done by an attempt whose answer did not come.
            Err(ApiError::Refused(problem)) if problem.status == 404 => Ok(()),
            result => result,
        })
    }

    /// Nothing from server `from` reaches server `to` any more.
    pub(super) fn cut(&self, from: usize, to: usize) -> Result<()> {
        let from = self.servers[from].address().to_string();
        self.iptables(to, &["-A", "INPUT", "-s", &from, "-j", "DROP"])
    }

    /// Everything from and to server `index` gets slow, and some of it lost.
    pub(super) fn slow(&self, index: usize) -> Result<()> {
        let device = Net::Management.interface();
        let shape = [&["qdisc", "add", "dev", device, "root", "tbf"][..], &SLOW_LINK].concat();
        output(self.servers[index].namespace().command("tc").args(shape))?;
        for own in self.servers.iter().filter(|other| other.address() != self.servers[index].address()) {
            let from = own.address().to_string();
            let lose = ["-m", "statistic", "--mode", "random", "--probability", SLOW_LINK_LOSS, "-j", "DROP"];
            self.iptables(index, &[&["-A", "INPUT", "-s", &from][..], &lose].concat())?;
        }
        Ok(())
    }

    /// Takes back every [`Self::cut`] and [`Self::slow`].
    pub(super) fn heal_network(&self) -> Result<()> {
        for index in 0..self.servers.len() {
            self.iptables(index, &["-F", "INPUT"])?;
            let device = Net::Management.interface();
            // An error says that nothing was slow.
            let _ = output(
                self.servers[index].namespace().command("tc").args(["qdisc", "del", "dev", device, "root"]),
            );
        }
        Ok(())
    }

    fn iptables(&self, index: usize, arguments: &[&str]) -> Result<()> {
        output(self.servers[index].namespace().command("iptables").arg("-w").args(arguments)).map(drop)
    }

    /// Removes all of a stopped server's data; its keys are elsewhere.
    pub(super) fn wipe(&self, index: usize) -> Result<()> {
        let data = self.disks[index].directory().join("data");
        fs::remove_dir_all(&data).with_context(|| format!("empty {}", data.display()))
    }

    /// Once nothing is written any more: all servers hold the same, to the byte. Returns revision and digest.
    ///
    /// # Errors
    /// With what differs.
    pub(super) fn agreed(&self) -> Result<(u64, String)> {
        let all = || -> Result<Vec<(Status, String)>> {
            self.servers.iter().map(|server| Ok((server.api()?.status()?, held(server)?))).collect()
        };
        // A node may be told late that the last entry is committed, so they get time; what they are to agree on does
        // not change any more.
        let held = wait::until("all servers hold the same revision", QUIET_TIMEOUT, || {
            let held = all()?;
            let revisions: Vec<u64> = held.iter().map(|(status, _)| status.revision).collect();
            if revisions.windows(2).all(|pair| pair[0] == pair[1]) {
                Ok(held)
            } else {
                bail!("they are at {revisions:?}")
            }
        })?;
        let (first, export) = held.first().context("no server is started")?;
        for (status, other) in &held {
            ensure!(
                status.digest == first.digest,
                "at revision {}, {} has digest {} and {} has {}",
                first.revision,
                first.node,
                first.digest,
                status.node,
                status.digest
            );
            if other != export {
                let (first, other) = self.keep_exports(&first.node, export, &status.node, other)?;
                bail!(
                    "the servers hold different entries: compare {} and {}",
                    first.display(),
                    other.display()
                );
            }
        }
        Ok((first.revision, first.digest.clone()))
    }

    fn keep_exports(&self, one: &str, first: &str, two: &str, second: &str) -> Result<(PathBuf, PathBuf)> {
        let keep = |name: &str, text: &str| -> Result<PathBuf> {
            let path = self.run.directory().join(format!("{name}.entries.json"));
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            Ok(path)
        };
        Ok((keep(one, first)?, keep(two, second)?))
    }

    /// Keeps logs and data for reading, and tells where. Ends the servers.
    pub(super) fn keep(&mut self) -> PathBuf {
        let kept = self.run.keep();
        // It moves to where it is kept when the run ends.
        let directory = self.run.directory();
        for (server, disk) in self.servers.iter_mut().zip(&self.disks) {
            server.process.kill();
            let to = directory.join(format!("{}-disk", server.name()));
            if let Err(error) =
                output(std::process::Command::new("cp").arg("-a").arg(disk.directory()).arg(&to))
            {
                tracing::error!("keep {}: {error:#}", disk.directory().display());
            }
        }
        kept
    }

    /// Addresses of the servers, for messages.
    pub(super) fn address(&self, index: usize) -> IpAddr {
        self.servers[index].address()
    }
}

/// Everything a server holds by itself, as it shows it.
fn held(server: &Server) -> Result<String> {
    let (api, mut all, mut cursor) = (server.api()?, String::new(), String::new());
    loop {
        let path = format!("/api/v1/entries?consistency=stale&limit={PAGE_ENTRIES}{cursor}");
        let page = api.get_text(&path)?;
        let next: serde_json::Value = serde_json::from_str(&page).context("read a page of entries")?;
        all.push_str(&page);
        all.push('\n');
        match next["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(all),
        }
    }
}

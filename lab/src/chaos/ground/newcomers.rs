//! Servers beside the founders: those that come and go, and the one into which a backup is put back.

use anyhow::{Context, Result, ensure};

use super::{Ground, RECOVERY_TIMEOUT};
use crate::addresses::RAFT_PORT;
use crate::api::Api;
use crate::server::{Part, Server};
use crate::wait;

/// Machines that stand ready for them.
pub(super) const SEATS: usize = 2;

impl Ground {
    /// Starts one more server, which waits to be added, and returns its number.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(in crate::chaos) fn start_newcomer(&mut self) -> Result<usize> {
        self.start_server(Part::Newcomer { to: self.founders })?;
        Ok(self.servers.len() - 1)
    }

    /// Makes server `index` a voter, asked for at the one before it.
    ///
    /// # Errors
    /// When it does not come to that.
    pub(in crate::chaos) fn add_member(&self, index: usize) -> Result<()> {
        let (api, server) = (self.servers[index - 1].api()?, &self.servers[index]);
        let address = format!("{}:{RAFT_PORT}", server.address());
        wait::until(format!("{} is added", server.name()), RECOVERY_TIMEOUT, || -> Result<()> {
            ensure!(api.add_member(&address)?, "it is still being sent the state");
            Ok(())
        })
    }

    /// Ends the servers from number `first` on, which are no members any more, and takes their disks.
    pub(in crate::chaos) fn end_newcomers(&mut self, first: usize) {
        self.servers.truncate(first);
        self.clocks.truncate(first);
        self.disks.truncate(first);
    }

    /// Puts a backup into a new cluster of one, and does something with that.
    ///
    /// # Errors
    /// When it does not start or refuses the backup, and `look`'s.
    pub(in crate::chaos) fn restored<T>(
        &self,
        backup: Vec<u8>,
        look: impl FnOnce(&Api) -> Result<T>,
    ) -> Result<T> {
        // Its name is that of a newcomer, but those have gone, and with them what they had mounted.
        let index = self.servers.len();
        let mut alone = Server::start_as(Part::Alone, &self.run, &self.network, index, &self.binaries, &[])?;
        alone.wait_ready()?;
        let api = alone.api()?;
        api.restore(backup).context("restore a backup")?;
        look(&api)
    }
}

//! What goes wrong with disks, and with the power they need.

use anyhow::Result;
use rand::Rng;

use super::{FAULT_MS, Nemesis, STUMBLE_MS, names};
use crate::chaos::ground::Ground;

impl Nemesis {
    pub(super) fn fill_disk(&mut self, ground: &mut Ground) -> Result<()> {
        let victims = self.one_or_all(ground)?;
        self.note(format!("fill the disk of {}", names(&victims)));
        for victim in &victims {
            ground.disks[*victim].fill()?;
        }
        let lingered = self.linger(FAULT_MS);
        for victim in &victims {
            ground.disks[*victim].free()?;
        }
        // A server may end rather than go on with a log it cannot write; whoever watches it starts it again.
        let ended = ended(ground, &victims);
        self.note(format!("free the disk of {}; ended meanwhile: {}", names(&victims), names(&ended)));
        lingered
    }

    pub(super) fn fail_disk(&mut self, ground: &mut Ground) -> Result<()> {
        let victim = self.victim(ground)?;
        self.note(format!("I/O errors on the disk of {}", names(&[victim])));
        ground.disks[victim].cut_power()?;
        let lingered = self.linger(FAULT_MS);
        let ended = ended(ground, &[victim]);
        self.note(format!("a good disk for {}; ended meanwhile: {}", names(&[victim]), names(&ended)));
        ground.servers[victim].process.kill();
        ground.disks[victim].power_on()?;
        lingered
    }

    pub(super) fn lose_power(&mut self, ground: &mut Ground, victims: &[usize]) -> Result<()> {
        self.cut_power(ground, victims)?;
        self.linger(FAULT_MS)?;
        self.power_on(ground, victims)?;
        if self.dice.random_ratio(1, 3) {
            self.linger(STUMBLE_MS)?;
            self.cut_power(ground, victims)?;
            self.power_on(ground, victims)?;
        }
        Ok(())
    }

    fn cut_power(&mut self, ground: &mut Ground, victims: &[usize]) -> Result<()> {
        self.note(format!("power loss of {}", names(victims)));
        // Stopped first: a process without power is not told of I/O errors.
        for victim in victims {
            ground.servers[*victim].process.pause()?;
        }
        for victim in victims {
            ground.disks[*victim].cut_power()?;
        }
        for victim in victims {
            ground.servers[*victim].process.kill();
        }
        Ok(())
    }

    fn power_on(&mut self, ground: &mut Ground, victims: &[usize]) -> Result<()> {
        self.note(format!("power is back for {}", names(victims)));
        for victim in victims {
            ground.disks[*victim].power_on()?;
            ground.servers[*victim].process.start_again()?;
        }
        Ok(())
    }

    pub(super) fn wipe(&mut self, ground: &mut Ground) -> Result<()> {
        let victim = self.victim(ground)?;
        self.note(format!("SIGKILL {} and wipe its disk", names(&[victim])));
        ground.servers[victim].process.kill();
        ground.wipe(victim)?;
        self.linger(FAULT_MS)?;
        self.note(format!("start {} with an empty disk", names(&[victim])));
        ground.servers[victim].process.start_again()
    }
}

/// Those of `servers` that do not run.
fn ended(ground: &mut Ground, servers: &[usize]) -> Vec<usize> {
    servers.iter().copied().filter(|server| !ground.servers[*server].process.is_running()).collect()
}

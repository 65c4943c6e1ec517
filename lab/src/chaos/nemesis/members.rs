//! Who belongs to the cluster, changed while clients write.

use anyhow::Result;
use rand::Rng;

use super::{FAULT_MS, Nemesis, names};
use crate::chaos::ground::Ground;

/// Servers that come and go.
const NEWCOMERS: usize = 2;

impl Nemesis {
    pub(super) fn change_members(&mut self, ground: &mut Ground) -> Result<()> {
        if self.dice.random() {
            self.note("the leader steps down");
            ground.step_down(None)?;
        }
        let victim = self.victim(ground)?;
        self.note(format!("remove {} from the cluster", names(&[victim])));
        ground.remove_member(victim)?;
        self.linger(FAULT_MS)?;
        self.note(format!("{} returns with an empty disk", names(&[victim])));
        ground.servers[victim].process.kill();
        ground.wipe(victim)?;
        ground.servers[victim].process.start_again()
    }

    /// 3 → 5 → 3, each step by one call.
    pub(super) fn resize(&mut self, ground: &mut Ground) -> Result<()> {
        let before = ground.servers.len();
        let newcomers: Vec<usize> = (before..before + NEWCOMERS).collect();
        self.note(format!("add {}", names(&newcomers)));
        for _ in &newcomers {
            let index = ground.start_newcomer()?;
            ground.add_member(index)?;
        }
        let lead = self.dice.random::<bool>();
        if lead {
            self.note(format!("{} leads", names(&newcomers[..1])));
            ground.step_down(Some(before))?;
        }
        // Five bear the loss of any one of them.
        if self.dice.random() {
            let victim = self.dice.random_range(0..ground.servers.len());
            self.note(format!("SIGKILL {}", names(&[victim])));
            ground.servers[victim].process.kill();
            self.linger(FAULT_MS)?;
            self.note(format!("start {}", names(&[victim])));
            ground.servers[victim].process.start_again()?;
        } else {
            self.linger(FAULT_MS)?;
        }
        self.note(format!("remove {}", names(&newcomers)));
        let mut leaving = newcomers;
        if self.dice.random() {
            leaving.reverse();
        }
        leaving.into_iter().try_for_each(|index| ground.remove_member(index))?;
        ground.end_newcomers(before);
        Ok(())
    }
}

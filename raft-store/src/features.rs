//! Feature levels: which commands may be in the log while releases are mixed.
//!
//! A level is a number that a release adds when it can apply something that the one before cannot. Three levels meet:
//! what this program can apply ([`FeatureLevel::NEWEST`]), what every member has said it can apply, and what the cluster
//! has agreed to use, which is part of the replicated state ([`crate::State::features`]). The leader raises the last one by
//! [`Command::RaiseFeatures`], once all members have announced that they know it; from that place in the log on, on every
//! node alike, the commands of that level may follow. It never falls: what is in the log stays there.
//!
//! What a state was written with stands before it: the data version of checkpoints, snapshots and backups is the level of
//! the state in them, so a program that is too old knows before it reads anything else, and refuses.
//!
//! To add a command: give it a variant at the end of [`Command`], raise [`FeatureLevel::NEWEST`] by one if the last
//! release has the present one, and name the level in [`Command::needs`].

use std::fmt;

use openraft::EntryPayload;
use serde::{Deserialize, Serialize};

use crate::command::{Command, NameStatus, RestorePart};
use crate::types::Entry;

/// A level. Each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FeatureLevel(pub u32);

impl FeatureLevel {
    /// Everything release 0.1.0 applies (the data directory in `tests/recorded` was written with it). Every cluster
    /// begins here, and a node that announces nothing is here.
    pub const FIRST: Self = Self(1);
    /// Changes of the membership are in the audit log.
    pub const MEMBER_EVENTS: Self = Self(2);
    /// Entries may end by themselves, and names have a history.
    pub const LIFETIMES: Self = Self(3);
    /// A name may have public and refused answers at once.
    pub const MIXED_NAMES: Self = Self(4);
    /// The highest that this program applies.
    pub const NEWEST: Self = Self::MIXED_NAMES;
}

/// The level a state begins with.
impl Default for FeatureLevel {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for FeatureLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is to be applied is above what the program can apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it needs feature level {found}, and this program (OutputGuard {}) has {known}; run the release that the other nodes \
     run, which is newer than {}",
    env!("CARGO_PKG_VERSION"), env!("CARGO_PKG_VERSION")
)]
pub struct TooNew {
    /// What is needed.
    pub found: FeatureLevel,
    /// What there is.
    pub known: FeatureLevel,
}

impl FeatureLevel {
    /// # Errors
    /// When `found` is above this level.
    pub fn check(self, found: Self) -> Result<(), TooNew> {
        if found > self { Err(TooNew { found, known: self }) } else { Ok(()) }
    }

    /// # Errors
    /// When a program of this level cannot apply `entry`.
    pub fn check_entry(self, entry: &Entry) -> Result<(), TooNew> {
        let EntryPayload::Normal(batch) = &entry.payload else { return Ok(()) };
        batch.operations.iter().try_for_each(|operation| self.check(operation.command.introduces()))
    }
}

impl FeatureLevel {
    fn for_expiry(expires_at_ms: Option<u64>) -> Self {
        if expires_at_ms.is_some() { Self::LIFETIMES } else { Self::FIRST }
    }
}

impl FeatureLevel {
    fn for_status(status: Option<&NameStatus>) -> Self {
        if matches!(status, Some(NameStatus::Mixed { .. })) { Self::MIXED_NAMES } else { Self::FIRST }
    }
}

impl RestorePart {
    fn needs(&self) -> FeatureLevel {
        match self {
            Self::Entry { entry, resolution } => {
                let status = resolution.as_ref().map(|resolution| &resolution.status);
                FeatureLevel::for_expiry(entry.expires_at_ms).max(FeatureLevel::for_status(status))
            }
            Self::Token(_) => FeatureLevel::FIRST,
        }
    }
}

impl Command {
    /// The level the cluster must have agreed on before this may enter the log.
    pub fn needs(&self) -> FeatureLevel {
        match self {
            // Nobody would end it.
            Self::AddEntry(new) => FeatureLevel::for_expiry(new.expires_at_ms),
            Self::AddEntries(entries) => entries
                .iter()
                .map(|new| FeatureLevel::for_expiry(new.expires_at_ms))
                .max()
                .unwrap_or_default(),
            Self::Restore(parts) => parts.iter().map(RestorePart::needs).max().unwrap_or_default(),
            Self::ChangeEntry { .. } | Self::Expire { .. } => FeatureLevel::LIFETIMES,
            Self::SetResolution { resolution, .. } => FeatureLevel::for_status(Some(&resolution.status)),
            Self::RemoveEntry { .. }
            | Self::UpdateEntry { .. }
            | Self::InitCluster { .. }
            | Self::AddToken(_)
            | Self::RemoveToken { .. }
            // This is how the cluster agrees: those who propose it have asked everybody before.
            | Self::RaiseFeatures(_) => FeatureLevel::FIRST,
            Self::Once(once) => once.commands.iter().map(Self::needs).max().unwrap_or_default(),
            Self::RecordMember(_) => FeatureLevel::MEMBER_EVENTS,
        }
    }

    /// The level a program must have to apply this.
    fn introduces(&self) -> FeatureLevel {
        match self {
            Self::RaiseFeatures(level) => *level,
            command => command.needs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{MemberAction, MemberEvent, OnceCommand};
    use crate::types::NodeInfo;

    #[test]
    fn a_command_within_a_key_needs_what_it_would_need_alone() {
        let event = MemberEvent { action: MemberAction::Added, id: 1, node: NodeInfo::default() };
        let once = |commands| {
            Command::Once(OnceCommand { key: "k".to_owned(), fingerprint: [0; 32], commands }).needs()
        };
        assert_eq!(once(vec![]), FeatureLevel::FIRST);
        let commands = vec![Command::RemoveToken { name: "x".to_owned() }, Command::RecordMember(event)];
        assert_eq!(once(commands), FeatureLevel::MEMBER_EVENTS);
    }

    #[test]
    fn a_refusal_says_which_release_is_needed() {
        let text = FeatureLevel(2).check(FeatureLevel(3)).unwrap_err().to_string();
        for part in ["needs feature level 3", "has 2", "newer than 0.", "the other nodes"] {
            assert!(text.contains(part), "{text}");
        }
        FeatureLevel(2).check(FeatureLevel(2)).unwrap();
    }
}

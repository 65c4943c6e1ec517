//! What follows from the kind of a command.

use super::{Command, Operation};

impl Operation {
    /// As how many operations it counts.
    pub fn weight(&self) -> usize {
        self.command.weight()
    }
}

impl Command {
    /// True when it may make the state larger, by what a person asked for: refused while a disk has no room. What DNS
    /// says is not counted: it is bounded for each name, and the list must follow it.
    pub fn grows(&self) -> bool {
        match self {
            Self::Once(once) => once.commands.iter().any(Self::grows),
            Self::AddEntry(_)
            | Self::UpdateEntry { .. }
            | Self::ChangeEntry { .. }
            | Self::AddToken(_)
            | Self::AddEntries(_)
            | Self::Restore(_) => true,
            Self::RemoveEntry { .. }
            | Self::Expire { .. }
            | Self::SetResolution { .. }
            | Self::InitCluster { .. }
            | Self::RemoveToken { .. }
            | Self::RaiseFeatures(_)
            | Self::RecordMember(_) => false,
        }
    }

    /// True when a token that stood before may not stand afterwards.
    pub fn takes_tokens(&self) -> bool {
        match self {
            Self::Once(once) => once.commands.iter().any(Self::takes_tokens),
            Self::RemoveToken { .. } | Self::Restore(_) => true,
            // A new token was given to nobody before it is acknowledged.
            Self::AddToken(_)
            | Self::AddEntry(_)
            | Self::RemoveEntry { .. }
            | Self::UpdateEntry { .. }
            | Self::ChangeEntry { .. }
            | Self::Expire { .. }
            | Self::SetResolution { .. }
            | Self::InitCluster { .. }
            | Self::AddEntries(_)
            | Self::RaiseFeatures(_)
            | Self::RecordMember(_) => false,
        }
    }

    fn weight(&self) -> usize {
        let weight = match self {
            Self::Once(once) => once.commands.iter().map(Self::weight).sum(),
            Self::AddEntries(entries) => entries.len(),
            Self::Restore(parts) => parts.len(),
            Self::Expire { ids } => ids.len(),
            Self::ChangeEntry { .. }
            | Self::AddEntry(_)
            | Self::RemoveEntry { .. }
            | Self::UpdateEntry { .. }
            | Self::SetResolution { .. }
            | Self::InitCluster { .. }
            | Self::AddToken(_)
            | Self::RemoveToken { .. }
            | Self::RaiseFeatures(_)
            | Self::RecordMember(_) => 1,
        };
        weight.max(1)
    }
}

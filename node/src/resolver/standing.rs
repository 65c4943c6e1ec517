//! How a name stands with DNS, as people are told.

use allowlist::DomainName;
use raft_store::command::NameStatus;
use raft_store::state::{Resolution, State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a name stands with DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ResolutionState)]
pub enum Standing {
    /// Nobody has answered yet.
    Pending,
    /// Lookups fail, and none has ever brought an address.
    NeverResolved,
    /// The last lookup brought addresses.
    Ok,
    /// Lookups fail; addresses are kept.
    Stale,
    /// DNS says the name has no addresses, believed.
    NoSuchName,
    /// Answers are refused: non-public or too many.
    Refused,
    /// Some answers are refused because they are not public; the public ones are used.
    Mixed,
}

impl Standing {
    /// All of them, in the order in which they stand above.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::NeverResolved,
        Self::Ok,
        Self::Stale,
        Self::NoSuchName,
        Self::Refused,
        Self::Mixed,
    ];

    /// Of `name`, for which `state` holds `resolution`.
    pub fn of(name: &DomainName, resolution: &Resolution, state: &State) -> Self {
        match resolution.status {
            NameStatus::Pending => Self::Pending,
            NameStatus::Ok => Self::Ok,
            NameStatus::Stale { .. }
                if resolution.addresses.is_empty() && !state.histories().contains_key(name) =>
            {
                Self::NeverResolved
            }
            NameStatus::Stale { .. } => Self::Stale,
            NameStatus::NoSuchName => Self::NoSuchName,
            NameStatus::Refused { .. } => Self::Refused,
            NameStatus::Mixed { .. } => Self::Mixed,
        }
    }

    /// As in the API and in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::NeverResolved => "never_resolved",
            Self::Ok => "ok",
            Self::Stale => "stale",
            Self::NoSuchName => "no_such_name",
            Self::Refused => "refused",
            Self::Mixed => "mixed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_what_the_api_says_and_places_are_those_of_the_list() {
        for (place, standing) in Standing::ALL.into_iter().enumerate() {
            assert_eq!(serde_json::to_value(standing).unwrap(), standing.label());
            assert_eq!(standing as usize, place);
        }
    }
}

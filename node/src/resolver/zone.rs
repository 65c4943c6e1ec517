//! Split horizon: names below some domains are asked of servers of their own, and only of those. Pure.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use allowlist::DomainName;

/// A domain of the settings: unlike an entry's, it may have one label (`corp`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ZoneName(String);

/// A text that is no domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a domain")]
pub struct ZoneNameError(String);

impl FromStr for ZoneName {
    type Err = ZoneNameError;

    /// Takes what a domain may be written like: any case, IDNA, a dot at the end.
    fn from_str(text: &str) -> Result<Self, ZoneNameError> {
        // A label in front makes two of one, and leaves the rest to the rules for entries.
        const LABEL: &str = "x.";
        let fail = || ZoneNameError(text.to_owned());
        let below: DomainName = format!("{LABEL}{text}").parse().map_err(|_| fail())?;
        below.as_str().strip_prefix(LABEL).map(|name| Self(name.to_owned())).ok_or_else(fail)
    }
}

impl fmt::Display for ZoneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Something for each of some domains, found by the longest one that a name is or lies below.
#[derive(Debug)]
pub struct Zones<T>(HashMap<ZoneName, T>);

impl<T> Default for Zones<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Zones<T> {
    /// Adds a domain; false when it is there already.
    pub fn add(&mut self, zone: ZoneName, value: T) -> bool {
        match self.0.entry(zone) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(slot) => {
                slot.insert(value);
                true
            }
        }
    }

    /// What belongs to the longest of the domains that `name` is or lies below.
    pub fn find(&self, name: &DomainName) -> Option<&T> {
        if self.0.is_empty() {
            return None;
        }
        let mut rest = Some(name.as_str());
        while let Some(suffix) = rest {
            if let Some(found) = self.0.get(suffix) {
                return Some(found);
            }
            rest = suffix.split_once('.').map(|(_, parent)| parent);
        }
        None
    }
}

impl std::borrow::Borrow<str> for ZoneName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn zones(names: &[&str]) -> Zones<String> {
        let mut zones = Zones::default();
        for name in names {
            assert!(zones.add(name.parse().expect("a domain"), (*name).to_owned()));
        }
        zones
    }

    #[test]
    fn the_longest_domain_wins_and_labels_are_whole() {
        let zones = zones(&["corp", "example.com", "eu.example.com"]);
        for (name, zone) in [
            ("api.corp", Some("corp")),
            ("example.com", Some("example.com")),
            ("a.b.example.com", Some("example.com")),
            ("eu.example.com", Some("eu.example.com")),
            ("a.eu.example.com", Some("eu.example.com")),
            ("aeu.example.com", Some("example.com")),
            ("notexample.com", None),
            ("corp.example", None),
        ] {
            let found = zones.find(&name.parse().expect("a name"));
            assert_eq!(found.map(String::as_str), zone, "{name}");
        }
    }

    #[test]
    fn a_domain_may_be_written_in_any_case_and_with_a_dot_and_is_there_once() {
        let mut zones = zones(&["corp.example"]);
        assert!(!zones.add("CORP.example.".parse().expect("the same domain"), String::new()));
        for text in ["", ".", "*.corp", "corp example", "a..b"] {
            assert!(text.parse::<ZoneName>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_found_by_every_domain_above_it_and_by_no_other(
            labels in prop::collection::vec("[a-c]{1,2}", 2..5), zone in prop::collection::vec("[a-c]{1,2}", 1..4)
        ) {
            let name: DomainName = labels.join(".").parse().expect("a name");
            let zone = zone.join(".");
            let below = name.as_str() == zone || name.as_str().ends_with(&format!(".{zone}"));
            prop_assert_eq!(zones(&[&zone]).find(&name).is_some(), below);
        }
    }
}

//! The reference-counted set of elements that the entries amount to.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;

use crate::digest::Digest;
use crate::element::Element;
use crate::entry::EntryId;

/// Element → owning entries. An address two domains share stays until the last owner lets go.
///
/// The map is a persistent one: a clone shares structure with its original and costs the same for ten elements and
/// for a million.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    owners: OrdMap<Element, Owners>,
    digest: Digest,
}

/// Nearly every element has one owner, which then needs no allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owners {
    One(EntryId),
    /// Two or more, sorted.
    Many(Arc<[EntryId]>),
}

impl Published {
    /// Makes `owner` one of the owners. True when the element was not published before.
    pub fn claim(&mut self, element: Element, owner: EntryId) -> bool {
        let Some(owners) = self.owners.get(&element) else {
            self.owners.insert(element, Owners::One(owner));
            self.digest.toggle(&element);
            return true;
        };
        if let Err(place) = owners.as_slice().binary_search(&owner) {
            let mut more = owners.as_slice().to_vec();
            more.insert(place, owner);
            self.owners.insert(element, Owners::Many(more.into()));
        }
        false
    }

    /// Ends `owner`'s claim. True when it was the last one, so that the element is no longer published.
    pub fn release(&mut self, element: Element, owner: EntryId) -> bool {
        let Some(owners) = self.owners.get(&element) else { return false };
        let Ok(place) = owners.as_slice().binary_search(&owner) else { return false };
        let mut fewer = owners.as_slice().to_vec();
        fewer.remove(place);
        match fewer.as_slice() {
            [] => {
                self.owners.remove(&element);
                self.digest.toggle(&element);
                return true;
            }
            [last] => self.owners.insert(element, Owners::One(*last)),
            _ => self.owners.insert(element, Owners::Many(fewer.into())),
        };
        false
    }

    /// True when some entry owns exactly this element.
    pub fn contains(&self, element: &Element) -> bool {
        self.owners.contains_key(element)
    }

    /// The entries that own exactly this element, sorted.
    pub fn owners(&self, element: &Element) -> impl Iterator<Item = EntryId> + '_ {
        self.owners.get(element).map(Owners::as_slice).unwrap_or_default().iter().copied()
    }

    /// The elements that cover `address`, the most specific first, with their owners, sorted.
    pub fn covering(&self, address: IpAddr) -> impl Iterator<Item = (&Element, &[EntryId])> + '_ {
        let most = IpNet::from(address).max_prefix_len();
        let prefixes = (0..=most).rev().filter_map(move |length| IpNet::new(address, length).ok());
        prefixes.flat_map(move |prefix| {
            // No ports sort first.
            let first = Element::new(prefix, None);
            let of_prefix = self.owners.range(first..);
            let of_prefix = of_prefix.take_while(move |(element, _)| element.prefix == first.prefix);
            of_prefix.map(|(element, owners)| (element, owners.as_slice()))
        })
    }

    /// All elements, sorted.
    pub fn elements(&self) -> impl Iterator<Item = &Element> + '_ {
        self.owners.keys()
    }

    /// How many elements are published.
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// True when nothing is published.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// The digest of the elements; owners do not enter it.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

impl Owners {
    fn as_slice(&self) -> &[EntryId] {
        match self {
            Self::One(owner) => std::slice::from_ref(owner),
            Self::Many(owners) => owners,
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_covers_an_address_is_found_with_every_length_and_port() {
        let mut published = Published::default();
        let owner = |number| EntryId(Uuid::from_u128(number));
        let element = |prefix: &str, ports: Option<&str>| {
            Element::new(prefix.parse().unwrap(), ports.map(|ports| ports.parse().unwrap()))
        };
        let covering = [
            element("8.8.8.8/32", None),
            element("8.8.8.8/32", Some("tcp/53")),
            element("8.8.8.8/32", Some("udp/53")),
            element("8.8.0.0/16", Some("tcp/443")),
            element("8.0.0.0/6", None),
        ];
        let beside = [element("8.8.8.9/32", None), element("9.0.0.0/8", None), element("2a01::/16", None)];
        for (element, number) in covering.iter().chain(&beside).zip(1..) {
            published.claim(*element, owner(number));
        }
        published.claim(covering[1], owner(99));
        let found: Vec<_> = published.covering("8.8.8.8".parse().unwrap()).collect();
        assert_eq!(found.iter().map(|(element, _)| **element).collect::<Vec<_>>(), covering);
        assert_eq!(found[1].1, [owner(2), owner(99)]);
        assert_eq!(published.covering("2a01::7".parse().unwrap()).count(), 1);
        assert_eq!(published.covering("1.1.1.1".parse().unwrap()).count(), 0);
    }
}

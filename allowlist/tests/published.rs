//! The published set against a naive model.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use allowlist::{Digest, Element, EntryId, PortRange, Protocol, Published};
use proptest::prelude::*;
use uuid::Uuid;

fn element(n: u8) -> Element {
    let ports = n.is_multiple_of(3).then(|| PortRange::new(Protocol::Tcp, 443, 443).unwrap());
    Element::host(IpAddr::from(Ipv4Addr::new(8, 8, 8, n / 3)), ports)
}

fn owner(n: u8) -> EntryId {
    EntryId(Uuid::from_u128(n.into()))
}

proptest! {
    #[test]
    fn any_history_amounts_to_the_set_of_its_claims(
        steps in prop::collection::vec((any::<bool>(), 0_u8..12, 0_u8..5), 0..120),
        snapshot_at in 0_usize..120,
    ) {
        let mut published = Published::default();
        let mut model: BTreeSet<(Element, EntryId)> = BTreeSet::new();
        let mut snapshot = None;
        for (n, (claim, e, o)) in steps.into_iter().enumerate() {
            if n == snapshot_at {
                snapshot = Some((published.clone(), model.clone()));
            }
            let (element, owner) = (element(e), owner(o));
            let owned = |model: &BTreeSet<(Element, EntryId)>| model.iter().any(|(other, _)| *other == element);
            let before = owned(&model);
            if claim {
                model.insert((element, owner));
                prop_assert_eq!(published.claim(element, owner), !before);
            } else {
                model.remove(&(element, owner));
                prop_assert_eq!(published.release(element, owner), before && !owned(&model));
            }
        }
        for (published, model) in snapshot.into_iter().chain([(published, model)]) {
            let elements: BTreeSet<Element> = model.iter().map(|(element, _)| *element).collect();
            prop_assert!(published.elements().eq(elements.iter()));
            prop_assert_eq!(published.len(), elements.len());
            prop_assert_eq!(published.is_empty(), elements.is_empty());
            prop_assert_eq!(published.digest(), Digest::of(&elements));
            for e in (0..12).map(element) {
                let owners: Vec<EntryId> =
                    model.iter().filter(|(other, _)| *other == e).map(|(_, owner)| *owner).collect();
                prop_assert_eq!(published.contains(&e), !owners.is_empty());
                prop_assert_eq!(published.owners(&e).collect::<Vec<_>>(), owners);
            }
        }
    }

    #[test]
    fn the_digest_knows_no_order(mut numbers in prop::collection::btree_set(any::<u8>(), 0..50)
        .prop_map(|set| set.into_iter().collect::<Vec<_>>()).prop_shuffle())
    {
        let digest = |numbers: &[u8]| Digest::of(&numbers.iter().map(|n| element(*n)).collect::<Vec<_>>());
        let shuffled = digest(&numbers);
        numbers.sort_unstable();
        prop_assert_eq!(shuffled, digest(&numbers));
        if let Some((_, rest)) = numbers.split_first() {
            prop_assert_ne!(shuffled, digest(rest));
        }
    }
}

#[test]
fn the_digest_of_an_element_is_the_same_in_every_release() {
    let elements = [
        Element::new("8.8.8.0/24".parse().unwrap(), None),
        Element::new("2606:4700::1111/128".parse().unwrap(), Some("udp/5000-5010".parse().unwrap())),
    ];
    assert_eq!(Digest::of(&elements[..1]).to_string(), "53f753492f73d0b6dbedfe356ae0c7f0");
    assert_eq!(Digest::of(&elements).to_string(), "2ee0dc54cb31188a45fe7b54f50b1127");
}

#[test]
fn two_spellings_of_a_prefix_are_one_element() {
    let spelled: Element = serde_json::from_str(r#"{"prefix":"8.8.8.8/24","ports":null}"#).unwrap();
    assert_eq!(spelled, Element::new("8.8.8.0/24".parse().unwrap(), None));
}

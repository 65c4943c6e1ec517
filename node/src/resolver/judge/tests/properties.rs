//! What holds whatever DNS says.

use proptest::prelude::*;

use super::super::*;
use super::{Case, LINGER, failed, given, nothing};

/// Addresses a random zone answers with: public ones of both families, and some that must never be published.
const ZONE: [&str; 8] =
    ["1.1.1.1", "8.8.8.8", "9.9.9.9", "2606:4700::1", "2620:fe::9", "10.1.2.3", "169.254.169.254", "fe80::1"];

fn any_answer(v6: bool) -> impl Strategy<Value = Answer> {
    prop_oneof![
        4 => prop::sample::subsequence(ZONE.to_vec(), 0..=ZONE.len()).prop_map(move |picked| given(&picked, v6)),
        1 => Just(nothing()),
        2 => Just(failed()),
    ]
}

proptest! {
    #[test]
    fn whatever_dns_says(rounds in prop::collection::vec(
        (1_u64..400, [any_answer(false), any_answer(false)], [any_answer(true), any_answer(true)]), 1..60,
    )) {
        let mut case = Case::new();
        let mut last_seen: BTreeMap<IpAddr, Duration> = BTreeMap::new();
        for (seconds, v4, v6) in rounds {
            let verdict = case.after(seconds, &v4, &v6);
            for answer in v4.iter().chain(&v6) {
                if let Answer::Addresses { addresses, .. } = answer {
                    last_seen.extend(addresses.keys().map(|address| (*address, case.now)));
                }
            }
            if let Some(update) = verdict.update {
                let all_failed = v4.iter().chain(&v6).all(|answer| matches!(answer, Answer::Failed(_)));
                prop_assert!(!all_failed || update.retire.is_empty(), "a failure retired {:?}", update.retire);
                for address in update.retire {
                    let unseen = case.now - last_seen[&address];
                    prop_assert!(unseen >= LINGER, "{address} was retired {unseen:?} after it was seen");
                }
            }
            for address in case.stored.addresses.keys() {
                prop_assert!(class::check_address(*address).is_ok(), "{address} is not public");
            }
            for (address, seen) in &last_seen {
                if *seen == case.now && class::check_address(*address).is_ok() {
                    prop_assert!(case.stored.addresses.contains_key(address), "{address} was seen and is missing");
                }
            }
        }
    }

    #[test]
    fn the_same_answer_twice_changes_nothing(
        v4 in [any_answer(false), any_answer(false)], v6 in [any_answer(true), any_answer(true)],
    ) {
        let mut case = Case::new();
        case.after(0, &v4, &v6);
        prop_assert_eq!(case.after(1, &v4, &v6).update, None);
    }
}

//! Which upstream gave a name addresses that must not be used: what people are told of it, and for how long.

use std::collections::BTreeMap;
use std::time::Duration;

use allowlist::Refusal;
use ipnet::IpNet;

use super::{Rules, Union};

/// Answers that are refused now and then (a pool that holds one private address) are told as one state, which ends when
/// none came for so long.
const REFUSAL_STANDS: Duration = Duration::from_secs(600);
/// Most refusals one text names. Each is the first one of an upstream from one special-purpose range, so a name costs
/// few writes, whatever DNS makes up.
const MAX_TOLD: usize = 8;

/// What one name was given.
#[derive(Debug, Clone, Default)]
pub(super) struct Refusals {
    /// By place of the upstream and range, in words.
    known: BTreeMap<(usize, IpNet), String>,
    last: Option<Duration>,
}

impl Refusals {
    /// Takes a round in. `told` says whether the state of the name tells of refused answers, which an earlier leader
    /// may have heard.
    pub(super) fn hear(&mut self, union: &Union, told: bool, now: Duration, rules: &Rules) {
        for (refusal, given_by) in union.refused.values() {
            self.last = Some(now);
            for (place, upstream) in rules.upstreams.iter().enumerate() {
                if given_by.contains(place) {
                    let key = (place, refusal.range.prefix);
                    self.known.entry(key).or_insert_with(|| told_as(upstream, refusal));
                }
            }
        }
        if told {
            self.last.get_or_insert(now);
        }
        if !self.stand(now) {
            *self = Self::default();
        }
    }

    /// True while people should know of it.
    pub(super) fn stand(&self, now: Duration) -> bool {
        self.last.is_some_and(|last| now.saturating_sub(last) < REFUSAL_STANDS)
    }

    /// Who gave what, in words.
    pub(super) fn text(&self) -> String {
        let told: Vec<&str> = self.told().collect();
        let more = self.known.len() - told.len();
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        told.join("; ") + &more
    }

    /// True when `text` lacks something that is to be told.
    pub(super) fn add_to(&self, text: &str) -> bool {
        self.told().any(|told| !text.contains(told))
    }

    fn told(&self) -> impl Iterator<Item = &str> {
        self.known.values().map(String::as_str).take(MAX_TOLD)
    }
}

fn told_as(upstream: &str, refusal: &Refusal) -> String {
    format!("{upstream} gave {}", refusal.finding())
}

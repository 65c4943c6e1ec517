//! What the lookups of each name came to lately: kept by the node that leads, in memory only, since an unchanged name costs
//! no write.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use allowlist::DomainName;
use serde::{Deserialize, Serialize};

use super::answer::{Answer, Failure};
use super::judge::Round;

/// What is kept of an error's words.
const MAX_ERROR_CHARS: usize = 200;

/// The lookups of one name since this leader leads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NameLookups {
    /// When an upstream last gave an answer, be it that there is nothing; Unix milliseconds.
    pub last_answer_ms: Option<u64>,
    /// The last answer that was none.
    pub last_error: Option<Box<LookupError>>,
    /// When the name is asked for again, Unix milliseconds; in the past while it is being asked for.
    pub next_try_ms: Option<u64>,
}

/// A lookup that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupError {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Who was asked.
    pub upstream: String,
    /// In words.
    pub error: String,
}

/// Of all names. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Record(Arc<Mutex<HashMap<DomainName, NameLookups>>>);

impl Record {
    /// Of each of `names`, in their order; empty for those that nobody has asked for yet.
    pub fn of(&self, names: &[DomainName]) -> Vec<NameLookups> {
        let known = self.lock();
        names.iter().map(|name| known.get(name).cloned().unwrap_or_default()).collect()
    }

    /// Takes a round in that `upstreams` answered.
    pub(super) fn heard(&self, name: &DomainName, round: &Round, upstreams: &[String]) {
        let mut known = self.lock();
        let lookups = known.entry(name.clone()).or_default();
        for answers in [&round.v4, &round.v6] {
            for (answer, upstream) in answers.iter().zip(upstreams) {
                let failure = match answer {
                    // Why it is not asked was told when it failed.
                    Answer::Failed(Failure::Skipped) => continue,
                    Answer::Failed(failure) => failure,
                    Answer::Addresses { .. } | Answer::Nothing { .. } => {
                        lookups.last_answer_ms = Some(round.at.unix_ms);
                        continue;
                    }
                };
                let error = failure.to_string().chars().take(MAX_ERROR_CHARS).collect();
                let at_ms = round.at.unix_ms;
                lookups.last_error = Some(Box::new(LookupError { at_ms, upstream: upstream.clone(), error }));
            }
        }
    }

    /// Notes when a name is due.
    pub(super) fn due(&self, name: &DomainName, at_ms: u64) {
        self.lock().entry(name.clone()).or_default().next_try_ms = Some(at_ms);
    }

    /// Forgets a name.
    pub(super) fn remove(&self, name: &DomainName) {
        self.lock().remove(name);
    }

    /// Drops every name that `keep` does not want.
    pub(super) fn retain(&self, keep: impl Fn(&DomainName) -> bool) {
        self.lock().retain(|name, _| keep(name));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DomainName, NameLookups>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::judge::Moment;
    use super::*;

    #[test]
    fn a_round_leaves_the_last_answer_and_the_last_error_with_its_upstream() {
        let (record, name): (Record, DomainName) = (Record::default(), "api.example.com".parse().unwrap());
        let upstreams = ["a:53".to_owned(), "b:53".to_owned()];
        let round = |unix_ms, v4| {
            let at = Moment { elapsed: Duration::ZERO, unix_ms };
            let silent = Answer::Failed(Failure::Timeout);
            Round { at, v4, v6: vec![silent.clone(), silent] }
        };
        let nothing = || Answer::Nothing { chain: Vec::new() };
        record.heard(&name, &round(5, vec![nothing(), Answer::Failed(Failure::Timeout)]), &upstreams);
        record.due(&name, 7);
        let of = |record: &Record| record.of(std::slice::from_ref(&name)).remove(0);
        let error =
            LookupError { at_ms: 5, upstream: "b:53".to_owned(), error: "no answer in time".to_owned() };
        let expected =
            NameLookups { last_answer_ms: Some(5), last_error: Some(Box::new(error)), next_try_ms: Some(7) };
        assert_eq!(of(&record), expected);
        let silent = Answer::Failed(Failure::Timeout);
        record.heard(&name, &round(9, vec![silent.clone(), silent]), &upstreams);
        assert_eq!(of(&record).last_answer_ms, Some(5), "silence is no answer");
        assert_eq!(of(&record).last_error.unwrap().at_ms, 9);
        record.retain(|_| false);
        assert_eq!(of(&record), NameLookups::default());
    }
}

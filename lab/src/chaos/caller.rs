//! One call through the real API, and what its answer means for a history.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde::Deserialize;

use super::history::{Answer, Call, Id, Key};

/// What a client waits for an answer. Longer than an undisturbed write takes on a loaded machine, shorter than the
/// servers' own limits, so that answers get lost often.
const CALL_TIMEOUT: Duration = Duration::from_millis(1_500);
/// The header with the revision of an answer.
const REVISION_HEADER: &str = "x-outputguard-revision";
/// Largest page of the API; a pool is far smaller.
const PAGE_ENTRIES: usize = 1_000;

/// Problem codes that promise that nothing was written.
const REFUSALS: [&str; 5] = ["no_quorum", "unavailable", "not_ready", "draining", "not_a_member"];
/// Problem codes of an unknown outcome.
const UNKNOWNS: [&str; 2] = ["outcome_unknown", "deadline_exceeded"];

/// How reads are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// As promised: linearizable.
    Linearizable,
    /// `?consistency=stale`, held to the same promise: what a server with broken reads does.
    StaleAsIfLinearizable,
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// An answer, for a write perhaps [`Answer::Unknown`].
    Answered(Answer, Option<u64>),
    /// Certainly without effect; or a read without an answer, which is the same.
    Refused,
    /// A read that was cut off.
    Lost,
    /// What the API must not answer here.
    Unexpected(String),
}

/// A client of one node.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    client: Client,
    base: String,
    token: String,
    reads: Reads,
}

#[derive(Deserialize)]
struct EntryBody {
    id: String,
    target: String,
}

#[derive(Deserialize)]
struct ListBody {
    revision: u64,
    entries: Vec<EntryBody>,
}

#[derive(Deserialize)]
struct ProblemBody {
    code: String,
    detail: String,
}

impl Caller {
    /// Calls the API at `address`.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub(super) fn new(address: SocketAddr, token: &str, reads: Reads) -> Result<Self> {
        // Already installed is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .timeout(CALL_TIMEOUT)
            .no_proxy()
            // A call on a used connection that turns out dead would be sent again behind our back.
            .pool_max_idle_per_host(0)
            .build()
            .context("set up the HTTP client")?;
        Ok(Self { client, base: format!("http://{address}/api/v1/entries"), token: token.to_owned(), reads })
    }

    /// Makes the call.
    pub(super) async fn call(&self, call: &Call) -> Reply {
        let request = match call {
            Call::Add(key) => {
                self.client.post(&self.base).json(&serde_json::json!({ "target": key.target() }))
            }
            Call::Delete(_, id) => self.client.delete(format!("{}/{id}", self.base)),
            Call::Get(_, id) => self.client.get(format!("{}/{id}{}", self.base, self.consistency("?"))),
            Call::List(epoch) => self.client.get(format!(
                "{}?limit={PAGE_ENTRIES}&q={}{}",
                self.base,
                Key::prefix(*epoch),
                self.consistency("&")
            )),
        };
        let writes = matches!(call, Call::Add(_) | Call::Delete(..));
        match self.send(request).await {
            Ok((status, revision, body)) => understand(call, status, revision, &body),
            // Nothing was sent.
            Err(error) if error.is_connect() => Reply::Refused,
            Err(_) if writes => Reply::Answered(Answer::Unknown, None),
            Err(_) => Reply::Lost,
        }
    }

    async fn send(
        &self,
        request: RequestBuilder,
    ) -> Result<(StatusCode, Option<u64>, Vec<u8>), reqwest::Error> {
        let response = request.bearer_auth(&self.token).send().await?;
        let revision = response.headers().get(REVISION_HEADER);
        let revision = revision.and_then(|value| value.to_str().ok()?.parse().ok());
        Ok((response.status(), revision, response.bytes().await?.to_vec()))
    }

    fn consistency(&self, separator: &str) -> String {
        match self.reads {
            Reads::Linearizable => String::new(),
            Reads::StaleAsIfLinearizable => format!("{separator}consistency=stale"),
        }
    }
}

fn understand(call: &Call, status: StatusCode, revision: Option<u64>, body: &[u8]) -> Reply {
    let unexpected =
        || Reply::Unexpected(format!("{call:?} was answered {status}: {}", String::from_utf8_lossy(body)));
    let entry = || -> Option<Id> {
        let entry: EntryBody = serde_json::from_slice(body).ok()?;
        Id::parse(&entry.id)
    };
    let answer = match (call, status.as_u16()) {
        (Call::Add(_), 201) => entry().map(Answer::Created),
        (Call::Add(_), 200) => entry().map(Answer::Existed),
        // The write is done; what it wrote was gone when the answer was made.
        (Call::Add(_), 404) => Some(Answer::AddedAndGone),
        (Call::Delete(..), 204) => Some(Answer::Removed),
        (Call::Get(..), 200) => entry().map(|_| Answer::Found),
        (Call::Delete(..) | Call::Get(..), 404) => Some(Answer::Missing),
        (Call::List(epoch), 200) => match listed(*epoch, revision, body) {
            Ok(entries) => Some(Answer::Listed(entries)),
            Err(reason) => return Reply::Unexpected(reason),
        },
        _ => return problem(call, status, body).unwrap_or_else(unexpected),
    };
    answer.map_or_else(unexpected, |answer| Reply::Answered(answer, revision))
}

/// An error answer the API documents for trouble.
fn problem(call: &Call, status: StatusCode, body: &[u8]) -> Option<Reply> {
    let problem: ProblemBody = serde_json::from_slice(body).ok()?;
    let code = problem.code.as_str();
    if status == StatusCode::SERVICE_UNAVAILABLE && REFUSALS.contains(&code) {
        return Some(Reply::Refused);
    }
    // On a full disk only what makes the list longer may be refused.
    let grows = matches!(call, Call::Add(_));
    if status == StatusCode::INSUFFICIENT_STORAGE && code == "disk_full" && grows {
        return Some(Reply::Refused);
    }
    if status == StatusCode::GATEWAY_TIMEOUT && UNKNOWNS.contains(&code) {
        return Some(match call {
            // The word is a promise of the API.
            Call::Add(_) | Call::Delete(..) if !problem.detail.contains("unknown") && code != UNKNOWNS[1] => {
                Reply::Unexpected(format!("{call:?}: the detail of {code} lacks the word unknown"))
            }
            Call::Add(_) | Call::Delete(..) => Reply::Answered(Answer::Unknown, None),
            Call::Get(..) | Call::List(_) => Reply::Lost,
        });
    }
    None
}

fn listed(epoch: u16, revision: Option<u64>, body: &[u8]) -> Result<Vec<(Key, Id)>, String> {
    let list: ListBody =
        serde_json::from_slice(body).map_err(|error| format!("a list cannot be read: {error}"))?;
    if Some(list.revision) != revision {
        return Err(format!(
            "a list says revision {} in its body and {revision:?} in its header",
            list.revision
        ));
    }
    let mut entries = Vec::new();
    for entry in &list.entries {
        match (Key::of_target(&entry.target), Id::parse(&entry.id)) {
            (Some(key), Some(id)) if key.epoch == epoch && entries.iter().all(|(other, _)| *other != key) => {
                entries.push((key, id));
            }
            _ => {
                let body = String::from_utf8_lossy(body);
                return Err(format!(
                    "a list of epoch {epoch} holds {} twice, or wrongly: {body}",
                    entry.target
                ));
            }
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { epoch: 0, slot: 0 };
    const ID: Id = Id(1);

    fn reply(call: &Call, status: u16, body: &str) -> Reply {
        understand(call, StatusCode::from_u16(status).unwrap(), Some(5), body.as_bytes())
    }

    #[test]
    fn only_refusals_that_promise_nothing_was_written_count_as_such() {
        let problem = |code: &str| format!(r#"{{"code":"{code}","detail":"the outcome is unknown"}}"#);
        let add = Call::Add(KEY);
        assert_eq!(reply(&add, 503, &problem("no_quorum")), Reply::Refused);
        assert_eq!(reply(&add, 507, &problem("disk_full")), Reply::Refused);
        let remove = reply(&Call::Delete(KEY, ID), 507, &problem("disk_full"));
        assert!(matches!(remove, Reply::Unexpected(_)), "removals are how room is made");
        assert_eq!(reply(&add, 504, &problem("outcome_unknown")), Reply::Answered(Answer::Unknown, None));
        assert_eq!(reply(&Call::Get(KEY, ID), 504, &problem("deadline_exceeded")), Reply::Lost);
        for (status, code) in [(500, "internal"), (401, "unauthorized"), (503, "something")] {
            assert!(matches!(reply(&add, status, &problem(code)), Reply::Unexpected(_)), "{code}");
        }
        let quiet = r#"{"code":"outcome_unknown","detail":"it failed"}"#;
        assert!(matches!(reply(&add, 504, quiet), Reply::Unexpected(_)), "unknown must be called unknown");
    }

    #[test]
    fn a_list_with_a_target_twice_is_no_answer() {
        let entry =
            |id: u8| format!(r#"{{"id":"00000000-0000-0000-0000-00000000000{id}","target":"93.64.0.1"}}"#);
        let list = |entries: &str| format!(r#"{{"revision":5,"entries":[{entries}]}}"#);
        let call = Call::List(0);
        let once = reply(&call, 200, &list(&entry(1)));
        assert_eq!(once, Reply::Answered(Answer::Listed(vec![(KEY, ID)]), Some(5)));
        let twice = reply(&call, 200, &list(&format!("{},{}", entry(1), entry(2))));
        assert!(matches!(twice, Reply::Unexpected(_)));
    }
}

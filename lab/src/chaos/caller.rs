//! One call through the real API, and what its answer means for a history.

use std::fmt::Write as _;
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
pub(super) const REVISION_HEADER: &str = "x-outputguard-revision";
/// The header that names a write, and the one that marks an answer that was given before.
const KEY_HEADER: &str = "idempotency-key";
const REPLAYED_HEADER: &str = "idempotency-replayed";
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

/// Whether a write that is sent again is named as it was the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// As promised.
    Kept,
    /// Each time with another key, held to the same promise: what a server does that forgets its keys.
    Forgotten,
}

/// A call's own name: what it writes carries it (as `ticket`), and it is the idempotency key of what is sent again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a> {
    pub(super) text: &'a str,
    /// How often the call was sent before; `None` for calls that are sent once, without a key.
    pub(super) sent: Option<u32>,
}

/// One call, sent and perhaps answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) reply: Reply,
    /// The answer says that it was given before.
    pub(super) replayed: bool,
    /// Entries that the answer shows, with the names of the calls that made them.
    pub(super) made: Vec<(String, Id)>,
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

/// How clients call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Habits {
    pub(super) reads: Reads,
    pub(super) keys: Keys,
}

/// A client of all nodes.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    client: Client,
    addresses: Vec<SocketAddr>,
    token: String,
    habits: Habits,
}

#[derive(Deserialize)]
struct EntryBody {
    id: String,
    target: String,
    #[serde(default)]
    ticket: String,
}

#[derive(Deserialize)]
struct ImportedBody {
    created: u8,
    existing: u8,
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
    /// Calls the API at `addresses`.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub(super) fn new(addresses: Vec<SocketAddr>, token: &str, habits: Habits) -> Result<Self> {
        // Already installed is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .timeout(CALL_TIMEOUT)
            .no_proxy()
            // A call on a used connection that turns out dead would be sent again behind our back.
            .pool_max_idle_per_host(0)
            .build()
            .context("set up the HTTP client")?;
        Ok(Self { client, addresses, token: token.to_owned(), habits })
    }

    /// How many nodes can be called.
    pub(super) fn nodes(&self) -> usize {
        self.addresses.len()
    }

    /// `GET /api/v1/backup` of node `node`, with a time limit of its own.
    pub(super) fn backup(&self, node: usize, timeout: Duration) -> RequestBuilder {
        self.client.get(self.url(node, "backup")).timeout(timeout).bearer_auth(&self.token)
    }

    /// Makes the call on node `node`.
    pub(super) async fn call(&self, node: usize, call: &Call, name: Name<'_>) -> Attempt {
        let entries = self.url(node, "entries");
        let request = match call {
            Call::Add(key) => {
                let body = serde_json::json!({ "target": key.target(), "ticket": name.text });
                self.client.post(entries).json(&body)
            }
            Call::Delete(_, id) => self.client.delete(format!("{entries}/{id}")),
            Call::Get(_, id) => self.client.get(format!("{entries}/{id}{}", self.consistency("?"))),
            Call::Import(epoch, slots) => {
                let mut list = String::new();
                for key in slots.iter().map(|slot| Key { epoch: *epoch, slot }) {
                    let line = serde_json::json!({
                        "target": key.target(), "ticket": format!("{}/{}", name.text, key.slot)
                    });
                    _ = writeln!(list, "{line}");
                }
                let import = self.client.post(self.url(node, "import"));
                import.header("content-type", "application/x-ndjson").body(list)
            }
            Call::List(epoch) => self.client.get(format!(
                "{entries}?limit={PAGE_ENTRIES}&q={}{}",
                Key::prefix(*epoch),
                self.consistency("&")
            )),
        };
        let request = match (name.sent, self.habits.keys) {
            (None, _) => request,
            (Some(_), Keys::Kept) => request.header(KEY_HEADER, name.text),
            (Some(sent), Keys::Forgotten) => request.header(KEY_HEADER, format!("{}-{sent}", name.text)),
        };
        let reply = match self.send(request).await {
            Ok(answer) => {
                let reply = understand(call, answer.status, answer.revision, &answer.body);
                return Attempt { reply, replayed: answer.replayed, made: made(&answer.body) };
            }
            // Nothing was sent.
            Err(error) if error.is_connect() => Reply::Refused,
            Err(_) if call.writes() => Reply::Answered(Answer::Unknown, None),
            Err(_) => Reply::Lost,
        };
        Attempt { reply, replayed: false, made: Vec::new() }
    }

    fn url(&self, node: usize, path: &str) -> String {
        format!("http://{}/api/v1/{path}", self.addresses[node])
    }

    async fn send(&self, request: RequestBuilder) -> Result<HttpAnswer, reqwest::Error> {
        let response = request.bearer_auth(&self.token).send().await?;
        let header = |name: &str| response.headers().get(name)?.to_str().ok();
        let revision = header(REVISION_HEADER).and_then(|value| value.parse().ok());
        let replayed = header(REPLAYED_HEADER) == Some("true");
        Ok(HttpAnswer {
            status: response.status(),
            revision,
            replayed,
            body: response.bytes().await?.to_vec(),
        })
    }

    fn consistency(&self, separator: &str) -> String {
        match self.habits.reads {
            Reads::Linearizable => String::new(),
            Reads::StaleAsIfLinearizable => format!("{separator}consistency=stale"),
        }
    }
}

struct HttpAnswer {
    status: StatusCode,
    revision: Option<u64>,
    replayed: bool,
    body: Vec<u8>,
}

/// The entries an answer shows, by the names of the calls that made them.
fn made(body: &[u8]) -> Vec<(String, Id)> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Shown {
        List { entries: Vec<EntryBody> },
        One(EntryBody),
    }
    let entries = match serde_json::from_slice(body) {
        Ok(Shown::List { entries }) => entries,
        Ok(Shown::One(entry)) => vec![entry],
        Err(_) => Vec::new(),
    };
    let named = entries.into_iter().filter(|entry| !entry.ticket.is_empty());
    named.filter_map(|entry| Some((entry.ticket, Id::parse(&entry.id)?))).collect()
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
        (Call::Import(_, slots), 200) => serde_json::from_slice(body)
            .ok()
            .filter(|ImportedBody { created, existing }| created + existing == slots.len())
            .map(|ImportedBody { created, existing }| Answer::Imported { created, existing }),
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
    let grows = matches!(call, Call::Add(_) | Call::Import(..));
    if status == StatusCode::INSUFFICIENT_STORAGE && code == "disk_full" && grows {
        return Some(Reply::Refused);
    }
    if status == StatusCode::GATEWAY_TIMEOUT && UNKNOWNS.contains(&code) {
        return Some(match call {
            // The word is a promise of the API.
            _ if call.writes() && !problem.detail.contains("unknown") && code != UNKNOWNS[1] => {
                Reply::Unexpected(format!("{call:?}: the detail of {code} lacks the word unknown"))
            }
            _ if call.writes() => Reply::Answered(Answer::Unknown, None),
            _ => Reply::Lost,
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
    use super::super::history::Slots;
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

    #[test]
    fn an_import_must_account_for_every_line() {
        let import = Call::Import(0, Slots(0b101));
        let counted = reply(&import, 200, r#"{"created":1,"existing":1,"revision":5,"dry_run":false}"#);
        assert_eq!(counted, Reply::Answered(Answer::Imported { created: 1, existing: 1 }, Some(5)));
        let short = reply(&import, 200, r#"{"created":1,"existing":0,"revision":5,"dry_run":false}"#);
        assert!(matches!(short, Reply::Unexpected(_)));
    }

    #[test]
    fn entries_are_known_by_the_calls_that_made_them() {
        let entry = r#"{"id":"00000000-0000-0000-0000-000000000001","target":"93.64.0.1","ticket":"c1-7"}"#;
        let made_by = vec![("c1-7".to_owned(), ID)];
        assert_eq!(made(entry.as_bytes()), made_by);
        assert_eq!(made(format!(r#"{{"revision":5,"entries":[{entry}]}}"#).as_bytes()), made_by);
        assert_eq!(made(br#"{"code":"no_quorum","detail":"x"}"#), []);
    }
}

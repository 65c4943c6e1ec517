//! DNS over TLS and over HTTPS, against unbound.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use node::resolver::answer::{Answer, Failure, Family};
use node::resolver::lookup::{Bounds, Upstream};
use node::resolver::trust::Trust;

use crate::relay::{Mode, Relay};
use crate::unbound::{PATH, SERVER_NAME, Unbound, make_certificates};

const NAME: &str = "api.example.test";
const RECORDS: [&str; 3] = [
    "api.example.test. 30 IN A 1.1.1.1",
    "api.example.test. 30 IN A 8.8.8.8",
    "api.example.test. 30 IN AAAA 2606:4700::1",
];
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
enum Over {
    Tls,
    Https,
}

const BOTH: [Over; 2] = [Over::Tls, Over::Https];

impl Over {
    fn port(self, unbound: &Unbound) -> u16 {
        match self {
            Self::Tls => unbound.tls_port,
            Self::Https => unbound.https_port,
        }
    }

    fn upstream_called(self, name: &str, relay: &Relay, trust: &Trust, timeout: Duration) -> Upstream {
        let text = match self {
            Self::Tls => format!("tls://{}#{name}", relay.address),
            Self::Https => format!("https://{}{PATH}#{name}", relay.address),
        };
        let bounds = Bounds { timeout, questions_per_second: 100_000 };
        Upstream::new(text.parse().expect("an upstream"), bounds, trust)
    }

    fn upstream(self, unbound: &Unbound, relay: &Relay, timeout: Duration) -> Upstream {
        let trust = Trust::load(Some(&unbound.ca_file())).expect("a CA");
        self.upstream_called(SERVER_NAME, relay, &trust, timeout)
    }
}

async fn ask(upstream: &Upstream, family: Family) -> Answer {
    upstream.lookup(&NAME.parse().expect("a name"), family).await.answer
}

async fn assert_answers(upstream: &Upstream) {
    match ask(upstream, Family::V4).await {
        Answer::Addresses { addresses, .. } => assert_eq!(addresses.len(), 2),
        other => panic!("expected addresses, got {other:?}"),
    }
}

#[tokio::test]
async fn a_name_is_resolved_over_tls_and_over_https() {
    let unbound = Unbound::start(&RECORDS);
    for over in BOTH {
        let relay = Relay::to(over.port(&unbound)).await;
        let upstream = over.upstream(&unbound, &relay, TIMEOUT);
        assert_answers(&upstream).await;
        match ask(&upstream, Family::V6).await {
            Answer::Addresses { addresses, .. } => {
                let found: Vec<String> = addresses.keys().map(ToString::to_string).collect();
                assert_eq!(found, ["2606:4700::1"]);
            }
            other => panic!("{over:?}: expected an address, got {other:?}"),
        }
        let unknown = upstream.lookup(&"none.example.test".parse().expect("a name"), Family::V4).await;
        assert_eq!(unknown.answer, Answer::Nothing { chain: Vec::new() }, "{over:?}");
    }
}

#[tokio::test]
async fn many_questions_share_one_connection() {
    let unbound = Unbound::start(&RECORDS);
    for over in BOTH {
        let relay = Relay::to(over.port(&unbound)).await;
        let upstream = over.upstream(&unbound, &relay, TIMEOUT);
        // More than are on their way at once.
        join_all((0..300).map(|_| assert_answers(&upstream))).await;
        assert_eq!(relay.connections(), 1, "{over:?}");
    }
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_costs_no_answer() {
    let unbound = Unbound::start(&RECORDS);
    for over in BOTH {
        let relay = Relay::to(over.port(&unbound)).await;
        let upstream = over.upstream(&unbound, &relay, TIMEOUT);
        for connections in 1..=5 {
            assert_answers(&upstream).await;
            assert_eq!(relay.connections(), connections, "{over:?}");
            relay.cut();
        }
    }
}

#[tokio::test]
async fn a_connection_that_went_silent_is_given_up() {
    let unbound = Unbound::start(&RECORDS);
    for over in BOTH {
        let relay = Relay::to(over.port(&unbound)).await;
        let upstream = over.upstream(&unbound, &relay, Duration::from_secs(2));
        assert_answers(&upstream).await;
        relay.silence();
        assert_eq!(ask(&upstream, Family::V4).await, Answer::Failed(Failure::Timeout), "{over:?}");
        assert_answers(&upstream).await;
        assert_eq!(relay.connections(), 2, "{over:?}");
    }
}

#[tokio::test]
async fn a_certificate_of_another_name_or_of_an_unknown_ca_is_not_believed() {
    let unbound = Unbound::start(&RECORDS);
    let known = Trust::load(Some(&unbound.ca_file())).expect("a CA");
    let others = tempfile::tempdir().expect("a temporary directory");
    make_certificates(others.path());
    let unknown = Trust::load(Some(&others.path().join("ca.pem"))).expect("another CA");
    for over in BOTH {
        let relay = Relay::to(over.port(&unbound)).await;
        for (name, trust) in [("other.example.test", &known), ("127.0.0.1", &known), (SERVER_NAME, &unknown)]
        {
            let upstream = over.upstream_called(name, &relay, trust, TIMEOUT);
            match ask(&upstream, Family::V4).await {
                Answer::Failed(Failure::Transport(why)) => assert!(why.contains("certificate"), "{why}"),
                other => panic!("{over:?}, {name}: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_drops_connections_is_not_flooded_with_new_ones() {
    let unbound = Unbound::start(&RECORDS);
    for over in BOTH {
        let relay = Relay::to(over.port(&unbound)).await;
        relay.set(Mode::Slam);
        let upstream = over.upstream(&unbound, &relay, TIMEOUT);
        let began = Instant::now();
        let answers = join_all((0..100).map(|_| ask(&upstream, Family::V4))).await;
        assert!(answers.iter().all(|answer| matches!(answer, Answer::Failed(_))), "{answers:?}");
        // Ten a second, and one to begin with.
        let allowed = 1.0 + began.elapsed().as_secs_f64() * 10.0;
        #[allow(clippy::cast_precision_loss, reason = "a small count")]
        let made = relay.connections() as f64;
        assert!(made <= allowed, "{over:?}: {made} connections, {allowed} allowed");
    }
}

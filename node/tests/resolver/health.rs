//! Upstreams that do not answer, and how fast those that do are asked.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use node::resolver::answer::{Answer, Failure, Family};
use node::resolver::breaker::CHECK_AFTER;
use node::resolver::lookup::{Bounds, Upstream};
use node::resolver::trust::Trust;
use tokio::net::UdpSocket;

use crate::authority::Authority;
use crate::plain;
use crate::site::{DEADLINE, NAME, Site, addresses, asked_again};

async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "{what}: not within {DEADLINE:?}");
}

#[tokio::test]
async fn an_upstream_that_is_down_fails_at_once_and_is_checked_until_it_answers() {
    // Bound, so that nobody else answers there, and never read.
    let dead = UdpSocket::bind("127.0.0.1:0").await.expect("bind a port");
    let address = dead.local_addr().expect("a bound port");
    let upstream = plain(address, Duration::from_millis(50));
    let name = NAME.parse().expect("a name");
    for _ in 0..CHECK_AFTER {
        assert!(upstream.is_up());
        assert_eq!(upstream.lookup(&name, Family::V4).await.answer, Answer::Failed(Failure::Timeout));
    }
    until("it fails its check", || !upstream.is_up()).await;
    let skipped = upstream.lookup(&name, Family::V4).await;
    assert_eq!((skipped.answer, skipped.questions), (Answer::Failed(Failure::Skipped), 0));

    drop(dead);
    let authority = Authority::start_at(address).await;
    authority.set_addresses(NAME, &["1.1.1.1"], 30);
    until("it passes its check", || upstream.is_up()).await;
    assert_eq!(authority.questions(NAME), 0, "that is no question of the list");
    let answer = upstream.lookup(&name, Family::V4).await.answer;
    assert!(matches!(answer, Answer::Addresses { .. }), "{answer:?}");
}

#[tokio::test]
async fn errors_are_answers_and_take_no_upstream_down() {
    let authority = Authority::start().await;
    authority.set(NAME, crate::authority::Behaviour::Code(hickory_proto::op::ResponseCode::ServFail));
    let upstream = plain(authority.address, Duration::from_secs(5));
    for _ in 0..2 * CHECK_AFTER {
        upstream.lookup(&NAME.parse().expect("a name"), Family::V4).await;
    }
    assert!(upstream.is_up());
}

/// Their authorities may be dead, or somebody wants it so.
#[tokio::test]
async fn names_that_are_silent_take_no_upstream_down() {
    let authority = Authority::start().await;
    authority.set_addresses(NAME, &["1.1.1.1"], 30);
    let upstream = plain(authority.address, Duration::from_millis(300));
    let names: Vec<allowlist::DomainName> = (0..2 * CHECK_AFTER)
        .map(|number| format!("n{number}.silent.test").parse().expect("a name"))
        .collect();
    for name in &names {
        authority.set(name.as_str(), crate::authority::Behaviour::Silent);
    }
    for _ in 0..3 {
        let lookups = names.iter().map(|name| upstream.lookup(name, Family::V4));
        let answers = futures_util::future::join_all(lookups).await;
        assert!(answers.iter().all(|lookup| lookup.answer == Answer::Failed(Failure::Timeout)));
        let answer = upstream.lookup(&NAME.parse().expect("a name"), Family::V4).await.answer;
        assert!(matches!(answer, Answer::Addresses { .. }), "{answer:?}");
    }
}

#[tokio::test]
async fn what_a_dead_upstream_gave_stays_and_the_metric_names_it() {
    let (good, other) = (Authority::start().await, Authority::start().await);
    good.set_addresses(NAME, &["1.1.1.1"], 0);
    other.set_addresses(NAME, &["1.1.1.1", "8.8.8.8"], 0);
    let site = Site::start_with(&[&good, &other], |settings| {
        settings.linger = Duration::ZERO;
        settings.timeout = Duration::from_millis(50);
    })
    .await;
    let up =
        |address: SocketAddr| site.metrics.upstreams_up.with_label_values(&[&address.to_string()]).get() == 1;
    site.add(NAME).await;
    site.until_addresses(NAME, &["1.1.1.1", "8.8.8.8"]).await;
    let dead = other.address;
    drop(other);
    until("the metric says that it is down", || !up(dead)).await;
    assert!(up(good.address));
    asked_again(&good, NAME, 20).await;
    let state = site.cluster().reader().state();
    assert_eq!(addresses(&state, NAME), ["1.1.1.1", "8.8.8.8"], "silence is not no");

    let back = Authority::start_at(dead).await;
    back.set_addresses(NAME, &["1.1.1.1"], 0);
    until("the metric says that it is up", || up(dead)).await;
    site.until_addresses(NAME, &["1.1.1.1"]).await;
    site.stop().await;
}

#[tokio::test]
async fn each_upstream_is_asked_at_its_own_pace() {
    const PER_SECOND: u32 = 20;
    const LOOKUPS: u32 = 30;
    let authority = Authority::start().await;
    authority.set_addresses(NAME, &["1.1.1.1"], 30);
    let trust = Trust::nobody().expect("rustls can be set up");
    let upstream = |questions_per_second| {
        let bounds = Bounds { timeout: Duration::from_secs(5), questions_per_second };
        Upstream::new(authority.address.into(), bounds, &trust)
    };
    let name = NAME.parse().expect("a name");
    let began = Instant::now();
    let slow = upstream(PER_SECOND);
    let lookups = (0..LOOKUPS).map(|_| slow.lookup(&name, Family::V4));
    let answers = futures_util::future::join_all(lookups).await;
    assert!(answers.iter().all(|lookup| matches!(lookup.answer, Answer::Addresses { .. })), "all are asked");
    // A tenth of a second's questions may go out at once.
    let least = Duration::from_secs(1) * (LOOKUPS - PER_SECOND / 10) / PER_SECOND;
    assert!(began.elapsed() >= least, "{:?} for {LOOKUPS} questions", began.elapsed());
}

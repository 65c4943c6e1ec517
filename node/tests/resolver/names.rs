//! From an entry in the list to addresses in the published set, over real DNS and the replicated state.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use allowlist::linger::LINGER_LABEL;
use allowlist::{Element, Ports};
use hickory_proto::op::ResponseCode;
use node::resolver::{Metrics, Quorum, Resolver, Settings, SettingsError};
use raft_store::command::{Command, NameStatus, Reply};
use raft_store::state::{Event, State};
use tokio_util::sync::CancellationToken;

use crate::authority::{Authority, Behaviour};
use crate::leader::Leader;
use crate::site::{DEADLINE, NAME, Site, addresses, asked_again, domain};

#[tokio::test]
async fn adding_a_domain_publishes_its_addresses() {
    let authority = Authority::start().await;
    authority.set(NAME, Behaviour::Alias { target: "edge.cdn.test".to_owned(), ttl: 30 });
    authority.set_addresses("edge.cdn.test", &["1.1.1.1", "2606:4700::1"], 30);
    let site = Site::start(&[&authority]).await;
    site.add(NAME).await;
    let state = site.until_addresses(NAME, &["1.1.1.1", "2606:4700::1"]).await;

    for address in ["1.1.1.1", "2606:4700::1"] {
        let element = Element::host(address.parse().expect("an address"), None);
        assert!(
            state.published().elements().any(|published| *published == element),
            "{address} is not published"
        );
    }
    let resolution = &state.resolutions()[&domain(NAME)];
    assert_eq!(resolution.status, NameStatus::Ok);
    assert_eq!(resolution.chain, [domain(NAME), domain("edge.cdn.test")]);
    let seen = &resolution.addresses[&IpAddr::from([1, 1, 1, 1])];
    assert_eq!(seen.ttl_s, 30);
    assert!(seen.upstreams.contains(&authority.address.to_string()), "{seen:?}");
    site.stop().await;
}

#[tokio::test]
async fn a_changed_record_joins_at_once_and_the_old_one_lingers() {
    let authority = Authority::start().await;
    authority.set_addresses(NAME, &["1.1.1.1"], 0);
    let site = Site::start_with(&[&authority], |settings| settings.linger = Duration::from_secs(1)).await;
    site.add(NAME).await;
    site.until_addresses(NAME, &["1.1.1.1"]).await;
    authority.set_addresses(NAME, &["8.8.8.8"], 0);
    site.until_addresses(NAME, &["1.1.1.1", "8.8.8.8"]).await;
    site.until_addresses(NAME, &["8.8.8.8"]).await;
    site.stop().await;
}

#[tokio::test]
async fn an_entry_may_say_how_long_its_addresses_linger_and_the_longest_wish_counts() {
    let authority = Authority::start().await;
    let wish = |linger: &str| BTreeMap::from([(LINGER_LABEL.to_owned(), linger.to_owned())]);
    let site = Site::start(&[&authority]).await;
    let (late, guarded, half) = ("late.example.test", "guarded.example.test", "half.example.test");
    for (name, lingers) in [
        (guarded, ["0s", "0s"]),
        (half, ["0s", ""]),
        (late, ["1s", "7d"]),
        ("soon.example.test", ["0s", "1s"]),
    ] {
        authority.set_addresses(name, &["1.1.1.1"], 0);
        for (linger, port) in lingers.into_iter().zip(["tcp/80", "tcp/443"]) {
            site.add_with(name, |entry| {
                if !linger.is_empty() {
                    entry.labels = wish(linger).into();
                }
                entry.protected = name == guarded;
                entry.ports = Ports::new(vec![port.parse().expect("a port")]).expect("one port");
            })
            .await;
        }
        site.until_addresses(name, &["1.1.1.1"]).await;
        authority.set_addresses(name, &["8.8.8.8"], 0);
    }
    site.until_addresses("soon.example.test", &["8.8.8.8"]).await;
    for name in [late, guarded, half] {
        asked_again(&authority, name, 10).await;
        let state = site.cluster().reader().state();
        assert_eq!(addresses(&state, name), ["1.1.1.1", "8.8.8.8"], "{name}");
    }
    site.stop().await;
}

#[tokio::test]
async fn unchanged_names_cost_no_write() {
    let authority = Authority::start().await;
    authority.set_addresses(NAME, &["1.1.1.1", "2606:4700::1"], 0);
    let site = Site::start(&[&authority]).await;
    site.add(NAME).await;
    let state = site.until_addresses(NAME, &["1.1.1.1", "2606:4700::1"]).await;
    asked_again(&authority, NAME, 40).await;
    let now = site.cluster().reader().state();
    let batches = site.cluster().reader().after(state.revision(), 100).expect("recent history");
    let events = batches.iter().flat_map(|batch| &batch.events);
    let written = events.filter(|event| event.origin.actor == node::resolver::ACTOR);
    assert_eq!(written.collect::<Vec<_>>(), Vec::<&Event>::new());
    assert_eq!(now.resolutions()[&domain(NAME)], state.resolutions()[&domain(NAME)]);
    assert!(site.metrics.rounds.with_label_values(&["unchanged"]).get() > 0);
    site.stop().await;
}

#[tokio::test]
async fn a_removed_domain_is_not_asked_for_any_more() {
    let authority = Authority::start().await;
    authority.set_addresses(NAME, &["1.1.1.1"], 0);
    authority.set_addresses("other.example.test", &["8.8.8.8"], 0);
    let site = Site::start(&[&authority]).await;
    let id = site.add(NAME).await;
    site.add("other.example.test").await;
    site.until_addresses(NAME, &["1.1.1.1"]).await;
    assert_eq!(site.propose(Command::RemoveEntry { id }).await, Reply::Done);
    // One lookup may have been under way.
    asked_again(&authority, "other.example.test", 4).await;
    let asked = authority.questions(NAME);
    asked_again(&authority, "other.example.test", 20).await;
    assert_eq!(authority.questions(NAME), asked);
    assert_eq!(site.resolution(NAME), None);
    site.stop().await;
}

#[tokio::test]
async fn upstreams_that_disagree_are_united_and_each_is_named() {
    let (one, two) = (Authority::start().await, Authority::start().await);
    one.set_addresses(NAME, &["1.1.1.1"], 30);
    two.set_addresses(NAME, &["8.8.8.8"], 30);
    let site = Site::start(&[&one, &two]).await;
    site.add(NAME).await;
    let state = site.until_addresses(NAME, &["1.1.1.1", "8.8.8.8"]).await;
    let resolution = &state.resolutions()[&domain(NAME)];
    for (address, authority) in [([1, 1, 1, 1], &one), ([8, 8, 8, 8], &two)] {
        let upstreams = &resolution.addresses[&IpAddr::from(address)].upstreams;
        assert_eq!(upstreams.iter().collect::<Vec<_>>(), [&authority.address.to_string()]);
    }
    // Names are counted every few seconds.
    let counted = async {
        while site.metrics.single_upstream.get() != 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, counted).await.expect("both addresses are given by one upstream only");
    site.stop().await;
}

#[tokio::test]
async fn with_a_majority_wanted_an_address_waits_for_the_second_upstream() {
    let (one, two) = (Authority::start().await, Authority::start().await);
    one.set_addresses(NAME, &["1.1.1.1", "8.8.8.8"], 0);
    two.set_addresses(NAME, &["1.1.1.1"], 0);
    let site = Site::start_with(&[&one, &two], |settings| settings.quorum = Quorum::Majority).await;
    site.add(NAME).await;
    site.until_addresses(NAME, &["1.1.1.1"]).await;
    asked_again(&one, NAME, 10).await;
    assert_eq!(addresses(&site.cluster().reader().state(), NAME), ["1.1.1.1"]);
    assert!(site.metrics.held_back.get() > 0, "it is counted");
    two.set_addresses(NAME, &["1.1.1.1", "8.8.8.8"], 0);
    site.until_addresses(NAME, &["1.1.1.1", "8.8.8.8"]).await;
    two.set_addresses(NAME, &["1.1.1.1"], 0);
    asked_again(&two, NAME, 10).await;
    assert_eq!(addresses(&site.cluster().reader().state(), NAME).len(), 2, "one is enough to stay");
    site.stop().await;
}

#[tokio::test]
async fn one_silent_upstream_does_not_keep_a_name_from_resolving() {
    let (good, silent) = (Authority::start().await, Authority::start().await);
    good.set_addresses(NAME, &["1.1.1.1"], 30);
    silent.set(NAME, Behaviour::Silent);
    let site = Site::start(&[&silent, &good]).await;
    site.add(NAME).await;
    site.until_addresses(NAME, &["1.1.1.1"]).await;
    site.stop().await;
}

#[tokio::test]
async fn failing_dns_removes_nothing_and_recovers() {
    let authority = Authority::start().await;
    authority.set_addresses(NAME, &["1.1.1.1"], 0);
    let site = Site::start_with(&[&authority], |settings| settings.linger = Duration::ZERO).await;
    site.add(NAME).await;
    site.until_addresses(NAME, &["1.1.1.1"]).await;
    for code in [ResponseCode::ServFail, ResponseCode::Refused] {
        authority.set(NAME, Behaviour::Code(code));
        asked_again(&authority, NAME, 10).await;
        assert_eq!(addresses(&site.cluster().reader().state(), NAME), ["1.1.1.1"]);
    }
    authority.set_addresses(NAME, &["1.1.1.1", "8.8.8.8"], 0);
    site.until_addresses(NAME, &["1.1.1.1", "8.8.8.8"]).await;
    site.stop().await;
}

#[tokio::test]
async fn no_such_name_keeps_what_was_published_while_in_doubt() {
    let authority = Authority::start().await;
    authority.set_addresses(NAME, &["1.1.1.1"], 0);
    let site = Site::start_with(&[&authority], |settings| settings.linger = Duration::ZERO).await;
    site.add(NAME).await;
    site.until_addresses(NAME, &["1.1.1.1"]).await;
    authority.set(NAME, Behaviour::Code(ResponseCode::NXDomain));
    asked_again(&authority, NAME, 20).await;
    assert_eq!(addresses(&site.cluster().reader().state(), NAME), ["1.1.1.1"]);
    site.stop().await;
}

#[tokio::test]
async fn dns_cannot_publish_a_private_address() {
    let authority = Authority::start().await;
    authority.set_addresses(NAME, &["10.0.0.1", "::ffff:10.0.0.1", "fd00::1"], 30);
    authority.set_addresses("mixed.example.test", &["192.168.1.1", "1.1.1.1"], 30);
    let site = Site::start(&[&authority]).await;
    site.add(NAME).await;
    site.add("mixed.example.test").await;
    site.until_addresses("mixed.example.test", &["1.1.1.1"]).await;
    let refused = |state: &State| match &state.resolutions()[&domain(NAME)].status {
        NameStatus::Refused { reason } => reason.contains("10.0.0.0/8"),
        _ => false,
    };
    let mixed = |state: &State| match &state.resolutions()[&domain("mixed.example.test")].status {
        NameStatus::Mixed { reason } => {
            reason.contains(&format!("{} gave 192.168.1.1", authority.address))
                && !reason.contains("1.1.1.1 lies")
        }
        _ => false,
    };
    let state = site.until("the name is refused, naming the range", refused).await;
    site.until("the mixed name tells who gave what", mixed).await;
    assert_eq!(state.published().elements().count(), 1);
    assert!(site.metrics.refused_addresses.get() >= 4);
    site.stop().await;
}

#[tokio::test]
async fn wildcards_and_addresses_are_not_asked_for() {
    let authority = Authority::start().await;
    authority.set_addresses(NAME, &["1.1.1.1"], 0);
    let site = Site::start(&[&authority]).await;
    site.add("*.example.test").await;
    site.add("9.9.9.9").await;
    site.add(NAME).await;
    site.until_addresses(NAME, &["1.1.1.1"]).await;
    assert_eq!(authority.questions("example.test"), 0);
    assert_eq!(authority.questions("*.example.test"), 0);
    site.stop().await;
}

#[tokio::test]
async fn the_resolver_ends_on_shutdown() {
    let authority = Authority::start().await;
    let leader = Leader::start().await;
    let settings = Settings { upstreams: vec![authority.address.into()], ..Settings::default() };
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(node::resolver::run(leader.cluster().clone(), settings, shutdown.clone()));
    shutdown.cancel();
    let ended = tokio::time::timeout(DEADLINE, running).await.expect("in time").expect("without a panic");
    assert!(ended.is_ok(), "{ended:?}");
    leader.stop().await;
}

#[tokio::test]
async fn a_node_that_leads_no_more_asks_nothing() {
    let authority = Authority::start().await;
    authority.set_addresses(NAME, &["1.1.1.1"], 0);
    let site = Site::start(&[&authority]).await;
    site.add(NAME).await;
    site.until_addresses(NAME, &["1.1.1.1"]).await;
    site.stop().await;
    let asked = authority.questions(NAME);
    let watch = async {
        while authority.questions(NAME) == asked {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Ten times the longest interval.
    assert!(tokio::time::timeout(Duration::from_secs(1), watch).await.is_err(), "it went on asking");
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    let refused = |settings| {
        let metrics = Metrics::new().expect("constant names");
        Resolver::new(settings, metrics).expect_err("bad settings")
    };
    let error = refused(Settings { min_interval: Duration::from_secs(90), ..Settings::default() });
    assert!(
        matches!(error, SettingsError::Intervals { .. })
            && error.to_string().contains("resolver.min_interval_s")
    );
    let upstreams = (1..=17_u8).map(|n| SocketAddr::from(([127, 0, 0, n], 53)).into()).collect();
    let error = refused(Settings { upstreams, ..Settings::default() });
    assert!(
        matches!(error, SettingsError::TooManyUpstreams { key: "resolver.upstreams", count: 17 }),
        "{error}"
    );
}

//! What DNS does to people: each of it against the resolver and the replicated state as they run.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use raft_store::command::NameStatus;
use raft_store::state::State;

use crate::authority::{Authority, Behaviour};
use crate::knot::Knot;
use crate::site::{NAME, Site, addresses, asked_again, domain};

fn status(state: &State, name: &str) -> NameStatus {
    state.resolutions()[&domain(name)].status.clone()
}

/// So many public addresses.
fn pool(count: u32) -> Vec<IpAddr> {
    (0..count).map(|number| Ipv4Addr::from_bits(0x0101_0000 + number).into()).collect()
}

fn writes(site: &Site, since: u64) -> usize {
    let batches = site.cluster().reader().after(since, 1_000).expect("recent history");
    let events = batches.iter().flat_map(|batch| &batch.events);
    events.filter(|event| event.origin.actor == node::resolver::ACTOR).count()
}

#[tokio::test]
async fn a_pool_of_two_hundred_of_which_each_answer_shows_one_is_published_as_a_whole_and_then_stays() {
    let authority = Authority::start().await;
    authority.set(NAME, Behaviour::Rotating { addresses: pool(200), ttl: 0 });
    let site = Site::start_with(&[&authority], |settings| {
        settings.min_interval = Duration::from_millis(1);
        settings.max_interval = Duration::from_millis(2);
    })
    .await;
    site.add(NAME).await;
    let all = |state: &State| addresses(state, NAME).len() == 200;
    let state = site.until("all of the pool is published", all).await;
    asked_again(&authority, NAME, 400).await;
    assert_eq!(writes(&site, state.revision()), 0, "rotating costs nothing once all are known");
    assert_eq!(addresses(&site.cluster().reader().state(), NAME).len(), 200);
    site.stop().await;
}

#[tokio::test]
async fn an_absurd_ttl_neither_pins_an_address_nor_stops_the_asking() {
    let authority = Authority::start().await;
    for (name, ttl) in
        [("zero.example.test", 0), ("day.example.test", 1 << 30), ("wrong.example.test", 1 << 31)]
    {
        authority.set_addresses(name, &["1.1.1.1"], ttl);
    }
    let site = Site::start(&[&authority]).await;
    for (name, kept) in [("zero.example.test", 0), ("day.example.test", 86_400), ("wrong.example.test", 0)] {
        site.add(name).await;
        let state = site.until_addresses(name, &["1.1.1.1"]).await;
        let seen = &state.resolutions()[&domain(name)].addresses[&IpAddr::from([1, 1, 1, 1])];
        assert_eq!(seen.ttl_s, kept, "{name}");
        asked_again(&authority, name, 4).await;
    }
    site.stop().await;
}

#[tokio::test]
async fn one_upstream_that_comes_and_goes_costs_no_write_and_no_address() {
    let (steady, flapping) = (Authority::start().await, Authority::start().await);
    steady.set_addresses(NAME, &["1.1.1.1"], 0);
    flapping.set_addresses(NAME, &["1.1.1.1", "8.8.8.8"], 0);
    let site = Site::start_with(&[&steady, &flapping], |settings| settings.linger = Duration::ZERO).await;
    site.add(NAME).await;
    let state = site.until_addresses(NAME, &["1.1.1.1", "8.8.8.8"]).await;
    for _ in 0..5 {
        for trouble in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp] {
            flapping.set(NAME, Behaviour::Code(trouble));
            asked_again(&flapping, NAME, 2).await;
            flapping.set_addresses(NAME, &["1.1.1.1", "8.8.8.8"], 0);
            asked_again(&flapping, NAME, 2).await;
        }
    }
    assert_eq!(writes(&site, state.revision()), 0);
    assert_eq!(addresses(&site.cluster().reader().state(), NAME), ["1.1.1.1", "8.8.8.8"]);
    site.stop().await;
}

#[tokio::test]
async fn an_upstream_that_lies_opens_nothing_private_and_is_named() {
    let (honest, liar) = (Authority::start().await, Authority::start().await);
    honest.set_addresses(NAME, &["1.1.1.1", "2606:4700::1"], 0);
    // Loopback, link-local with the cloud's metadata, private, and public space that embeds it: mapped, 6to4, NAT64.
    let lies = [
        "127.0.0.1",
        "169.254.169.254",
        "10.0.0.1",
        "::1",
        "::ffff:10.0.0.1",
        "2002:a00:1::",
        "64:ff9b::a00:1",
    ];
    liar.set_addresses(NAME, &lies, 0);
    let site = Site::start(&[&honest, &liar]).await;
    site.add(NAME).await;
    let mixed = |state: &State| matches!(status(state, NAME), NameStatus::Mixed { .. });
    let state = site.until("the name is mixed", mixed).await;
    assert_eq!(addresses(&state, NAME), ["1.1.1.1", "2606:4700::1"]);
    assert_eq!(state.published().elements().count(), 2);
    let NameStatus::Mixed { reason } = status(&state, NAME) else { panic!("it was mixed") };
    for part in ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1 ", &format!("{} gave", liar.address)] {
        assert!(reason.contains(part), "{part} is not in {reason}");
    }
    assert!(!reason.contains(&format!("{} gave", honest.address)), "{reason}");
    site.stop().await;
}

#[tokio::test]
async fn names_with_capitals_and_letters_of_all_languages_are_asked_for_as_dns_knows_them() {
    let authority = Authority::start().await;
    authority.set(NAME, Behaviour::Alias { target: "Edge.CDN.Test".to_owned(), ttl: 30 });
    authority.set_addresses("edge.cdn.test", &["1.1.1.1"], 30);
    authority.set_addresses("xn--bcher-kva.example.test", &["8.8.8.8"], 30);
    let site = Site::start(&[&authority]).await;
    site.add("API.Example.TEST.").await;
    site.add("bücher.example.test").await;
    let state = site.until_addresses(NAME, &["1.1.1.1"]).await;
    assert_eq!(state.resolutions()[&domain(NAME)].chain[1], domain("edge.cdn.test"));
    site.until_addresses("bücher.example.test", &["8.8.8.8"]).await;
    site.stop().await;
}

#[tokio::test]
async fn a_chain_that_loops_dangles_or_never_ends_is_told_and_opens_nothing() {
    let authority = Authority::start().await;
    let alias = |target: &str| Behaviour::BareAlias { target: target.to_owned(), ttl: 30 };
    authority.set("loop.example.test", alias("back.example.test"));
    authority.set("back.example.test", alias("loop.example.test"));
    authority.set("dangling.example.test", alias("gone.example.test"));
    for number in 0..20 {
        authority
            .set(&format!("long{number}.example.test"), alias(&format!("long{}.example.test", number + 1)));
    }
    let site = Site::start(&[&authority]).await;
    let names = ["loop.example.test", "long0.example.test", "dangling.example.test"];
    for name in names {
        site.add(name).await;
    }
    let told = |words: &'static str, name: &'static str| {
        let (cluster, name) = (site.cluster().clone(), domain(name));
        async move {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
            loop {
                let lookups = cluster.name_lookups(std::slice::from_ref(&name), Duration::from_secs(5)).await;
                let lookups = lookups.expect("it leads").remove(0);
                if lookups.last_error.as_ref().is_some_and(|failed| failed.error.contains(words)) {
                    return;
                }
                assert!(tokio::time::Instant::now() < deadline, "{name}: {lookups:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    told("come back to", names[0]).await;
    told("more than 16 aliases", names[1]).await;
    // "No such name" is an answer, and not believed so soon.
    asked_again(&authority, "gone.example.test", 6).await;
    let state = site.cluster().reader().state();
    assert_eq!(status(&state, names[2]), NameStatus::Pending);
    assert_eq!(state.published().elements().count(), 0);
    site.stop().await;
}

/// What a real authority makes of large and odd sets.
#[tokio::test]
async fn knot_truncates_and_tcp_brings_the_rest_up_to_a_thousand_addresses() {
    let mut records = String::new();
    for (name, count) in [("many", 200), ("flood", 1_001)] {
        for address in pool(count) {
            writeln!(records, "{name}.example.test. 5 A {address}").expect("write to a text");
        }
    }
    records += "six.example.test. 5 AAAA 2606:4700::1\n\
                first.example.test. 5 CNAME second.example.test.\n\
                second.example.test. 5 CNAME six.example.test.\n\
                *.wild.example.test. 5 A 9.9.9.9\n";
    let knot = Knot::start(&records);
    let site = Site::start_at(&[knot.address], |_| {}).await;
    for name in ["many.example.test", "flood.example.test", "first.example.test", "any.wild.example.test"] {
        site.add(name).await;
    }
    let all = |state: &State| addresses(state, "many.example.test").len() == 200;
    site.until("two hundred addresses", all).await;
    let refused = |state: &State| match status(state, "flood.example.test") {
        NameStatus::Refused { reason } => {
            reason.contains("1001 addresses") && reason.contains("at most 1000")
        }
        _ => false,
    };
    let state = site.until("a thousand and one are refused", refused).await;
    assert_eq!(addresses(&state, "flood.example.test"), [""; 0]);
    let state = site.until_addresses("first.example.test", &["2606:4700::1"]).await;
    let chain = &state.resolutions()[&domain("first.example.test")].chain;
    assert_eq!(*chain, ["first.example.test", "second.example.test", "six.example.test"].map(domain));
    site.until_addresses("any.wild.example.test", &["9.9.9.9"]).await;

    // It moves: the new address is there at once, and the chain follows.
    knot.change(&["zone-unset six AAAA", "zone-set six 5 A 8.8.4.4"]);
    site.until_addresses("first.example.test", &["8.8.4.4", "2606:4700::1"]).await;
    site.stop().await;
}

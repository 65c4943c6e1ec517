//! One question to one upstream.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use node::resolver::answer::{Answer, Failure, Family};
use node::resolver::lookup::MAX_ALIASES;

use crate::authority::{Authority, Behaviour};
use crate::plain;

async fn ask(authority: &Authority, name: &str, family: Family) -> Answer {
    plain(authority.address, Duration::from_secs(5))
        .lookup(&name.parse().expect("a domain name"), family)
        .await
        .answer
}

fn addresses(answer: &Answer) -> Vec<(String, u32)> {
    match answer {
        Answer::Addresses { addresses, .. } => {
            addresses.iter().map(|(address, ttl_s)| (address.to_string(), *ttl_s)).collect()
        }
        other => panic!("expected addresses, got {other:?}"),
    }
}

fn chain(answer: &Answer) -> Vec<&str> {
    match answer {
        Answer::Addresses { chain, .. } | Answer::Nothing { chain } => {
            chain.iter().map(allowlist::DomainName::as_str).collect()
        }
        Answer::Failed(failure) => panic!("expected an answer, got {failure}"),
    }
}

#[tokio::test]
async fn both_families_are_asked_for_on_their_own() {
    let authority = Authority::start().await;
    authority.set_addresses("api.example.test", &["1.1.1.1", "8.8.8.8", "2606:4700::1"], 30);
    let v4 = ask(&authority, "api.example.test", Family::V4).await;
    assert_eq!(addresses(&v4), [("1.1.1.1".to_owned(), 30), ("8.8.8.8".to_owned(), 30)]);
    assert!(chain(&v4).is_empty());
    let v6 = ask(&authority, "api.example.test", Family::V6).await;
    assert_eq!(addresses(&v6), [("2606:4700::1".to_owned(), 30)]);
}

#[tokio::test]
async fn a_name_without_the_family_and_an_unknown_name_have_nothing() {
    let authority = Authority::start().await;
    authority.set_addresses("v4.example.test", &["1.1.1.1"], 30);
    authority.set_addresses("v6.example.test", &["2606:4700::1"], 30);
    for (name, family) in
        [("v4.example.test", Family::V6), ("v6.example.test", Family::V4), ("none.example.test", Family::V4)]
    {
        assert_eq!(ask(&authority, name, family).await, Answer::Nothing { chain: Vec::new() }, "{name}");
    }
}

#[tokio::test]
async fn a_ttl_of_zero_is_told_as_it_is() {
    let authority = Authority::start().await;
    authority.set_addresses("zero.example.test", &["1.1.1.1"], 0);
    let answer = ask(&authority, "zero.example.test", Family::V4).await;
    assert_eq!(addresses(&answer), [("1.1.1.1".to_owned(), 0)]);
}

#[tokio::test]
async fn error_codes_are_failures_that_name_the_code() {
    let authority = Authority::start().await;
    for (code, text) in [
        (ResponseCode::ServFail, "answered SERVFAIL"),
        (ResponseCode::Refused, "answered REFUSED"),
        (ResponseCode::NotImp, "answered NOTIMP"),
    ] {
        authority.set("api.example.test", Behaviour::Code(code));
        match ask(&authority, "api.example.test", Family::V4).await {
            Answer::Failed(failure) => assert_eq!(failure.to_string(), text),
            other => panic!("expected a failure, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn an_upstream_that_only_refers_elsewhere_has_failed() {
    let authority = Authority::start().await;
    authority.set("api.example.test", Behaviour::Referral);
    assert_eq!(ask(&authority, "api.example.test", Family::V4).await, Answer::Failed(Failure::Referral));
}

#[tokio::test]
async fn a_silent_upstream_is_asked_again_and_then_times_out() {
    let authority = Authority::start().await;
    authority.set("api.example.test", Behaviour::Silent);
    let upstream = plain(authority.address, Duration::from_millis(1_200));
    let answer = upstream.lookup(&"api.example.test".parse().expect("a name"), Family::V4).await.answer;
    assert_eq!(answer, Answer::Failed(Failure::Timeout));
    assert!(authority.questions("api.example.test") > 1, "lost packets are sent again");
}

#[tokio::test]
async fn a_truncated_answer_is_fetched_over_tcp() {
    let authority = Authority::start().await;
    let many: Vec<String> = (0..200).map(|n| format!("1.1.1.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    authority.set_addresses("big.example.test", &many, 30);
    let upstream = plain(authority.address, Duration::from_secs(5));
    let lookup = upstream.lookup(&"big.example.test".parse().expect("a name"), Family::V4).await;
    assert_eq!(addresses(&lookup.answer).len(), 200);
    assert_eq!(lookup.questions, 2);
    assert_eq!(authority.over_tcp(), 1);
}

#[tokio::test]
async fn aliases_are_followed_with_the_smallest_ttl_of_the_way() {
    let authority = Authority::start().await;
    authority.set("api.example.test", Behaviour::Alias { target: "edge.cdn.test".to_owned(), ttl: 300 });
    authority.set("edge.cdn.test", Behaviour::Alias { target: "host.cdn.test".to_owned(), ttl: 7 });
    authority.set_addresses("host.cdn.test", &["1.1.1.1"], 60);
    let answer = ask(&authority, "api.example.test", Family::V4).await;
    assert_eq!(addresses(&answer), [("1.1.1.1".to_owned(), 7)]);
    assert_eq!(chain(&answer), ["api.example.test", "edge.cdn.test", "host.cdn.test"]);
    assert_eq!(authority.questions("host.cdn.test"), 0, "one answer carried the whole chain");

    let v6 = ask(&authority, "api.example.test", Family::V6).await;
    assert!(matches!(v6, Answer::Nothing { .. }), "{v6:?}");
    assert_eq!(chain(&v6).len(), 3);
}

#[tokio::test]
async fn a_chain_that_the_upstream_leaves_open_is_asked_on() {
    let authority = Authority::start().await;
    authority.set("api.example.test", Behaviour::BareAlias { target: "edge.cdn.test".to_owned(), ttl: 300 });
    authority.set_addresses("edge.cdn.test", &["1.1.1.1"], 60);
    let answer = ask(&authority, "api.example.test", Family::V4).await;
    assert_eq!(addresses(&answer), [("1.1.1.1".to_owned(), 60)]);
    assert_eq!(chain(&answer), ["api.example.test", "edge.cdn.test"]);
}

#[tokio::test]
async fn an_alias_of_a_name_that_does_not_exist_has_nothing() {
    let authority = Authority::start().await;
    authority.set("api.example.test", Behaviour::Alias { target: "gone.cdn.test".to_owned(), ttl: 300 });
    let answer = ask(&authority, "api.example.test", Family::V4).await;
    assert_eq!(chain(&answer), ["api.example.test", "gone.cdn.test"]);
    assert!(matches!(answer, Answer::Nothing { .. }));
}

#[tokio::test]
async fn alias_loops_end_whether_in_one_answer_or_over_several() {
    let authority = Authority::start().await;
    let alias = |target: &str| Behaviour::Alias { target: target.to_owned(), ttl: 60 };
    let bare = |target: &str| Behaviour::BareAlias { target: target.to_owned(), ttl: 60 };
    for (a, b) in [(alias("b.test.test"), alias("a.test.test")), (bare("b.test.test"), bare("a.test.test"))] {
        authority.set("a.test.test", a);
        authority.set("b.test.test", b);
        let answer = ask(&authority, "a.test.test", Family::V4).await;
        assert_eq!(answer, Answer::Failed(Failure::AliasLoop("a.test.test.".to_owned())));
    }
    authority.set("self.test.test", alias("self.test.test"));
    let answer = ask(&authority, "self.test.test", Family::V6).await;
    assert!(matches!(answer, Answer::Failed(Failure::AliasLoop(_))), "{answer:?}");
}

#[tokio::test]
async fn a_chain_has_at_most_sixteen_aliases() {
    for (aliases, follows) in [(MAX_ALIASES, true), (MAX_ALIASES + 1, false)] {
        let authority = Authority::start().await;
        for n in 0..aliases {
            let target = format!("n{}.chain.test", n + 1);
            authority.set(&format!("n{n}.chain.test"), Behaviour::Alias { target, ttl: 60 });
        }
        authority.set_addresses(&format!("n{aliases}.chain.test"), &["1.1.1.1"], 60);
        let answer = ask(&authority, "n0.chain.test", Family::V4).await;
        if follows {
            assert_eq!(addresses(&answer).len(), 1);
        } else {
            assert_eq!(answer, Answer::Failed(Failure::TooManyAliases));
        }
    }
}

#[tokio::test]
async fn rotating_answers_are_passed_on_one_by_one() {
    let authority = Authority::start().await;
    let pool: Vec<IpAddr> = ["1.1.1.1", "8.8.8.8"].map(|text| text.parse().expect("an address")).to_vec();
    authority.set("pool.example.test", Behaviour::Rotating { addresses: pool, ttl: 0 });
    let first = ask(&authority, "pool.example.test", Family::V4).await;
    let second = ask(&authority, "pool.example.test", Family::V4).await;
    assert_ne!(addresses(&first), addresses(&second));
}

#[tokio::test]
async fn a_server_that_does_not_know_edns_is_asked_without_it_from_then_on() {
    let authority = Authority::start().await;
    let addresses_there = vec!["1.1.1.1".parse().expect("an address")];
    authority.set("old.example.test", Behaviour::NoEdns { addresses: addresses_there, ttl: 30 });
    let upstream = plain(authority.address, Duration::from_secs(5));
    for questions in [2, 1] {
        let lookup = upstream.lookup(&"old.example.test".parse().expect("a name"), Family::V4).await;
        assert_eq!(addresses(&lookup.answer), [("1.1.1.1".to_owned(), 30)]);
        assert_eq!(lookup.questions, questions);
    }
}

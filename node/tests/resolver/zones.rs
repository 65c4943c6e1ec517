//! Split horizon: some names are asked of servers of their own.

use std::net::SocketAddr;

use node::resolver::answer::MAX_UPSTREAMS;
use node::resolver::endpoint::Endpoint;
use node::resolver::{MAX_ZONES, Metrics, Resolver, Settings, ZoneSettings};

use crate::authority::{Authority, Behaviour};
use crate::site::{Site, asked_again};

fn zone(domain: &str, authorities: &[&Authority]) -> ZoneSettings {
    ZoneSettings {
        domain: domain.parse().expect("a domain"),
        upstreams: authorities.iter().map(|authority| authority.address.into()).collect(),
    }
}

#[tokio::test]
async fn a_name_is_asked_only_of_the_upstreams_of_its_longest_zone() {
    let (general, corp, eu) = (Authority::start().await, Authority::start().await, Authority::start().await);
    for (authority, address) in [(&general, "1.1.1.1"), (&corp, "8.8.8.8"), (&eu, "9.9.9.9")] {
        for name in ["api.example.test", "api.corp.test", "api.eu.corp.test"] {
            authority.set_addresses(name, &[address], 0);
        }
    }
    let zones = vec![zone("corp.test", &[&corp]), zone("eu.corp.test", &[&eu])];
    let site = Site::start_with(&[&general], |settings| settings.zones = zones).await;
    for (name, address) in
        [("api.example.test", "1.1.1.1"), ("api.corp.test", "8.8.8.8"), ("api.eu.corp.test", "9.9.9.9")]
    {
        site.add(name).await;
        site.until_addresses(name, &[address]).await;
    }
    asked_again(&eu, "api.eu.corp.test", 4).await;
    for (authority, own) in
        [(&general, "api.example.test"), (&corp, "api.corp.test"), (&eu, "api.eu.corp.test")]
    {
        for name in ["api.example.test", "api.corp.test", "api.eu.corp.test"] {
            assert_eq!(authority.questions(name) > 0, name == own, "{name} at the server of {own}");
        }
    }
    site.stop().await;
}

#[tokio::test]
async fn a_name_whose_zone_does_not_answer_is_not_asked_elsewhere() {
    let (general, corp) = (Authority::start().await, Authority::start().await);
    general.set_addresses("api.corp.test", &["1.1.1.1"], 0);
    corp.set("api.corp.test", Behaviour::Silent);
    let zones = vec![zone("corp.test", &[&corp])];
    let site = Site::start_with(&[&general], |settings| settings.zones = zones).await;
    site.add("api.corp.test").await;
    asked_again(&corp, "api.corp.test", 4).await;
    assert_eq!(general.questions("api.corp.test"), 0);
    site.stop().await;
}

#[test]
fn zones_that_cannot_work_are_refused_by_name() {
    let upstream: Endpoint = SocketAddr::from(([127, 0, 0, 1], 53)).into();
    let zone =
        |domain: &str, upstreams| ZoneSettings { domain: domain.parse().expect("a domain"), upstreams };
    let refused = |zones| {
        let settings = Settings { upstreams: vec![upstream.clone()], zones, ..Settings::default() };
        let metrics = Metrics::new().expect("constant names");
        Resolver::new(settings, metrics).expect_err("bad settings").to_string()
    };
    let one = vec![upstream.clone()];
    let many = (1..).take(MAX_UPSTREAMS + 1).map(|n| SocketAddr::from(([127, 0, 0, 1], n)).into()).collect();
    let crowd = (0..=MAX_ZONES).map(|n| zone(&format!("n{n}.test"), one.clone())).collect();
    for (zones, said) in [
        (vec![zone("corp.test", Vec::new())], "no upstreams for corp.test"),
        (vec![zone("corp.test", one.clone()), zone("corp.test", one)], "corp.test twice"),
        (vec![zone("corp.test", many)], "names 17 servers"),
        (crowd, "names 65 domains"),
    ] {
        let error = refused(zones);
        assert!(error.contains("resolver.zones") && error.contains(said), "{error}");
    }
}

//! What people type, and what becomes of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use allowlist::{DomainName, PortRange, Ports, Protocol, Target};
use proptest::prelude::*;

fn refused(text: &str) -> String {
    match text.parse::<Target>() {
        Ok(target) => panic!("{text:?} was taken for {target:?}"),
        Err(error) => error.to_string(),
    }
}

fn canonical(text: &str) -> String {
    text.parse::<Target>().unwrap_or_else(|error| panic!("{text:?}: {error}")).to_string()
}

#[test]
fn spellings_of_one_target_become_one() {
    for (typed, meant) in [
        ("example.com", "example.com"),
        ("  Api.Example.COM.\n", "api.example.com"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("ｅｘａｍｐｌｅ．ｃｏｍ", "example.com"),
        ("exam\u{ad}ple\u{200b}.com", "example.com"),
        ("s3.amazonaws.com", "s3.amazonaws.com"),
        ("1password.com", "1password.com"),
        ("9.9.9.9.example.com", "9.9.9.9.example.com"),
        ("*.s3.amazonaws.com", "*.s3.amazonaws.com"),
        ("**.Example.com.", "**.example.com"),
        ("*.example.co.uk", "*.example.co.uk"),
        ("8.8.8.8", "8.8.8.8"),
        ("8.8.8.8/32", "8.8.8.8"),
        ("8.8.8.0/24", "8.8.8.0/24"),
        ("172.64.0.0/10", "172.64.0.0/10"),
        ("2606:4700:0:0:0:0:0:1111", "2606:4700::1111"),
        ("2606:4700::1111/128", "2606:4700::1111"),
        ("2606:4700::/32", "2606:4700::/32"),
        ("::ffff:8.8.8.8", "8.8.8.8"),
        ("::ffff:8.8.8.8/128", "8.8.8.8"),
        ("::ffff:8.8.8.0/120", "8.8.8.0/24"),
    ] {
        assert_eq!(canonical(typed), meant, "{typed}");
    }
}

#[test]
fn kinds_and_prefixes_follow_the_target() {
    for (text, kind, prefix) in [
        ("example.com", "domain", None),
        ("*.example.com", "wildcard", None),
        ("8.8.8.8", "address", Some("8.8.8.8/32")),
        ("2606:4700::/32", "network", Some("2606:4700::/32")),
    ] {
        let target: Target = text.parse().unwrap();
        assert_eq!((target.kind(), target.prefix().map(|net| net.to_string()).as_deref()), (kind, prefix));
    }
}

#[test]
fn garbage_is_refused_with_a_word_on_what_would_be_right() {
    for (typed, word) in [
        ("", "is empty"),
        (" \t ", "is empty"),
        ("https://pay.example.com/", "write only its host, `pay.example.com`"),
        ("https://joe:secret@pay.example.com:8443/a?b#c", "only its host, `pay.example.com`"),
        ("wss://[2606:4700::1111]:443/ws", "only its host, `2606:4700::1111`"),
        ("//pay.example.com", "only its host, `pay.example.com`"),
        ("pay.example.com/path", "only its host, `pay.example.com`"),
        ("pay.example.com:443/path", "only its host, `pay.example.com`"),
        ("pay.example.com:443", "give ports separately"),
        ("8.8.8.8:53", "give ports separately"),
        ("[2606:4700::1111]:443", "give ports separately"),
        ("[2606:4700::1111]", "without brackets"),
        ("[::1]", "without brackets"),
        ("fe80::1%eth0", "with a zone"),
        ("mailto:joe", "stands only in v6 addresses"),
        ("2606:4700::11111", "stands only in v6 addresses"),
        ("/", "before the `/` is not an address"),
        ("foo/bar", "before the `/` is not an address"),
        ("1.2.3/24", "before the `/` is not an address"),
        ("20.2.2.2/33", "from 0 to 32"),
        ("20.2.2.2/-1", "from 0 to 32"),
        ("20.2.2.2/+8", "from 0 to 32"),
        ("20.2.2.2/032", "from 0 to 32"),
        ("20.2.2.2/", "from 0 to 32"),
        ("20.0.0.0/255.0.0.0", "from 0 to 32"),
        ("2606:4700::/129", "128 (v6)"),
        ("20.2.2.2/24", "did you mean 20.2.2.0/24 or the address 20.2.2.2?"),
        ("2606:4700::1/32", "did you mean 2606:4700::/32"),
        ("1.2.3", "four decimal numbers"),
        ("1.2.3.4.5", "four decimal numbers"),
        ("0x7f.1", "four decimal numbers"),
        ("127.0.0.0x1", "four decimal numbers"),
        ("010.1.1.1", "without leading zeros"),
        ("8.8.8.256", "from 0 to 255"),
        ("3627734734", "four decimal numbers"),
        ("１.１.１.１", "four decimal numbers"),
        ("8.8.8.8.", "four decimal numbers"),
        ("localhost", "at least two labels"),
        ("com.", "at least two labels"),
        (".example.com", "1 to 63 characters"),
        ("example..com", "1 to 63 characters"),
        ("example.com..", "1 to 63 characters"),
        ("-a.example.com", "no `-` at either end"),
        ("joe@example.com", "letters, digits"),
        ("exa$mple.com", "letters, digits"),
        ("example.com／path", "letters, digits"),
        ("xn--a.example", "not a valid domain name"),
        ("two words.example.com", "white space or control"),
        ("example.com\nexample.org", "white space or control"),
        ("exa\0mple.com", "white space or control"),
        ("example.com,example.org", "letters, digits"),
        ("*", "a wildcard is"),
        ("**", "a wildcard is"),
        ("*.", "1 to 253 characters"),
        ("*example.com", "a wildcard is"),
        ("***.example.com", "a wildcard is"),
        ("api.*.example.com", "a wildcard is"),
        ("*.*.example.com", "letters, digits"),
        ("*.8.8.8.8", "four decimal numbers"),
        ("*.com", "whole public suffix"),
        ("**.co.uk", "whole public suffix"),
        ("*.internal", "whole public suffix"),
        ("0.0.0.0/0", "0.0.0.0/0 overlaps 0.0.0.0/8, this network (RFC 791)"),
        ("::/0", "::/0 overlaps ::/3"),
        ("10.1.2.3", "lies in 10.0.0.0/8, private use (RFC 1918)"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "127.0.0.1 lies in 127.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0 overlaps"),
        ("64:ff9b::169.254.169.254", "which embeds 169.254.169.254"),
    ] {
        let said = refused(typed);
        assert!(said.contains(word), "{typed:?}: {said}");
    }
}

#[test]
fn an_error_neither_repeats_passwords_nor_prints_what_cannot_be_seen() {
    assert!(!refused("https://joe:secret@pay.example.com/").contains("secret"));
    let said = refused("exam\u{202e}ple\u{1b}[2J.com");
    assert!(said.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{said:?}");
}

#[test]
fn endless_input_is_refused_shortly() {
    for unit in ["a", "a.", "ü", "*.", "1", "/", ":", "xn--"] {
        assert!(refused(&unit.repeat(1_000_000)).len() < 600);
    }
    assert!(refused(&format!("{}.example.com", "a".repeat(64))).contains("1 to 63"));
    let longest = format!("{}.com", ["a".repeat(61).as_str(); 4].join("."));
    assert_eq!(canonical(&longest).len(), 251);
    assert!(refused(&format!("abc.{longest}")).contains("1 to 253"));
}

#[test]
fn json_is_checked_and_stored_bytes_are_only_read() {
    assert!(serde_json::from_str::<Target>("\"10.0.0.1\"").is_err());
    assert!(serde_json::from_str::<DomainName>("\"localhost\"").is_err());
    let stored = |text: &str| {
        let bytes = bincode::serde::encode_to_vec(text, bincode::config::standard()).unwrap();
        bincode::serde::decode_from_slice::<Target, _>(&bytes, bincode::config::standard())
            .map(|(target, _)| target)
    };
    assert_eq!(stored("10.0.0.1").unwrap().to_string(), "10.0.0.1");
    assert_eq!(stored("*.github.io").unwrap().to_string(), "*.github.io");
    assert_eq!(stored("**.co.uk").unwrap().to_string(), "**.co.uk");
    for text in ["", "Example.com", "a b.com", "10.0.0.1/8", "localhost", "https://example.com", "*.*.a.com"]
    {
        assert!(stored(text).is_err(), "{text}");
    }
}

#[test]
fn ports_are_joined_and_bounded() {
    let ports = |texts: &[&str]| Ports::new(texts.iter().map(|text| text.parse().unwrap()).collect());
    let joined = ports(&["tcp/443", "udp/53", "tcp/80-90", "TCP/91", "tcp/85-88"]).unwrap();
    let shown: Vec<String> = joined.ranges().iter().map(PortRange::to_string).collect();
    assert_eq!(shown, ["tcp/80-91", "tcp/443", "udp/53"]);
    assert!(ports(&[]).unwrap().is_all());
    assert!(ports(&["tcp/1-1024"]).is_ok());
    assert!(ports(&["tcp/1-1024", "udp/53"]).unwrap_err().to_string().contains("1025 ports"));
    assert!(ports(&["tcp/1-65535"]).is_err());
    for text in
        ["", "443", "tcp", "tcp/", "tcp/0", "tcp/65536", "tcp/90-80", "tcp/1-", "tcp/-1", "icmp/1", "tcp/+1"]
    {
        assert!(text.parse::<PortRange>().is_err(), "{text}");
    }
}

fn port_range() -> impl Strategy<Value = PortRange> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    (protocol, 1..=u16::MAX, 1..=u16::MAX)
        .prop_map(|(protocol, a, b)| PortRange::new(protocol, a.min(b), a.max(b)).unwrap())
}

proptest! {
    #[test]
    fn parsing_never_panics_and_what_it_takes_it_writes_the_same(text in "\\PC{0,40}|[a-z0-9.*:/%\\[\\]_-]{0,40}") {
        if let Ok(target) = text.parse::<Target>() {
            prop_assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
        }
        let _ = text.parse::<PortRange>();
    }

    #[test]
    fn domains_and_wildcards_survive_the_way_through_text(
        stars in "(\\*\\*?\\.)?",
        name in "([a-z0-9_]([a-z0-9_-]{0,8}[a-z0-9])?\\.){1,4}example\\.(com|org|dev)",
    ) {
        let text = format!("{stars}{name}");
        let target: Target = text.parse().unwrap();
        prop_assert_eq!(target.to_string(), text);
        prop_assert_eq!(&serde_json::from_str::<Target>(&serde_json::to_string(&target).unwrap()).unwrap(), &target);
    }

    #[test]
    fn networks_survive_the_way_through_text(bits: u128, v4_len in 0_u8..=32, v6_len in 0_u8..=128) {
        let v4 = ipnet::Ipv4Net::new((bits as u32).into(), v4_len).unwrap().trunc();
        let v6 = ipnet::Ipv6Net::new(bits.into(), v6_len).unwrap().trunc();
        for text in [v4.to_string(), v6.to_string()] {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
            }
        }
    }

    #[test]
    fn port_ranges_survive_the_way_through_text(range in port_range()) {
        prop_assert_eq!(range.to_string().parse::<PortRange>().unwrap(), range);
    }
}

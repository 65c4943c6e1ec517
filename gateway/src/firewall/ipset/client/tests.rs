use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::firewall::layout::Service;

/// A client in a network namespace of this thread's own, which goes with the thread.
fn client() -> Client {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    Client::connect().unwrap()
}

fn member(prefix: &str) -> Member {
    Member { prefix: prefix.parse().unwrap(), service: None }
}

#[test]
fn a_batch_goes_on_behind_members_the_kernel_refuses_and_reports_each() {
    let mut client = client();
    client.create("t", Scope::Prefix, Family::V4, 64).unwrap();
    let wanted =
        ["8.8.8.8/32", "0.0.0.0/0", "9.9.9.9/32", "0.0.0.0/0", "2a01:4f8::/32", "8.8.4.0/24"].map(member);
    let refused = client.add("t", &wanted).unwrap();
    let names: Vec<_> = refused.iter().map(|refusal| refusal.member.to_string()).collect();
    assert_eq!(names, ["0.0.0.0/0", "0.0.0.0/0", "2a01:4f8::/32"]);
    assert!(refused[0].reason.contains("prefix length"), "{}", refused[0].reason);
    let mut held: Vec<_> =
        client.dump("t", Scope::Prefix).unwrap().into_iter().map(|(member, _)| member).collect();
    held.sort();
    assert_eq!(held, ["8.8.4.0/24", "8.8.8.8/32", "9.9.9.9/32"].map(member));
}

#[test]
fn a_set_is_there_when_it_has_the_name_and_the_kind() {
    let mut client = client();
    client.create("t", Scope::Port, Family::V6, 64).unwrap();
    assert!(client.is_there("t", Scope::Port, Family::V6).unwrap());
    for (name, scope, family) in
        [("t", Scope::Prefix, Family::V6), ("t", Scope::Port, Family::V4), ("u", Scope::Port, Family::V6)]
    {
        assert!(!client.is_there(name, scope, family).unwrap());
    }
}

#[test]
fn a_full_set_is_an_error_for_each_member_that_does_not_fit() {
    let mut client = client();
    client.create("t", Scope::Prefix, Family::V4, 2).unwrap();
    let refused =
        client.add("t", &["8.8.8.1/32", "8.8.8.2/32", "8.8.8.3/32", "8.8.8.4/32"].map(member)).unwrap();
    assert_eq!(refused.len(), 2);
    assert!(refused.iter().all(|refusal| refusal.reason.contains("the set is full")));
}

#[test]
fn counters_are_set_kept_dumped_and_swapped() {
    let mut client = client();
    for name in ["one", "two"] {
        client.create(name, Scope::Port, Family::V6, 1 << 17).unwrap();
    }
    let members: Vec<Member> = (1..=60_000)
        .map(|port| Member {
            prefix: "2a01:4f8::1/128".parse().unwrap(),
            service: Some(Service { protocol: 6, port }),
        })
        .collect();
    assert_eq!(client.add("one", &members).unwrap(), []);
    let counters = Counters { packets: 7, bytes: u64::from(u32::MAX) * 9 };
    assert_eq!(client.add_counted("one", [(&members[4], &counters)]).unwrap(), []);
    assert_eq!(client.add("one", &members[..10]).unwrap(), []);
    client.swap("one", "two").unwrap();
    assert_eq!(client.dump("one", Scope::Port).unwrap().len(), 0);
    let dumped = client.dump("two", Scope::Port).unwrap();
    assert_eq!(dumped.len(), members.len());
    assert!(dumped.contains(&(members[4], counters)));
    assert_eq!(client.delete("two", &members).unwrap(), []);
    assert_eq!(client.delete("two", &members[..3]).unwrap(), []);
    assert_eq!(client.dump("two", Scope::Port).unwrap().len(), 0);
}

#[test]
fn a_swap_whose_answer_was_lost_is_not_made_twice() {
    let mut client = client();
    client.create("small", Scope::Prefix, Family::V4, 64).unwrap();
    client.create("big", Scope::Prefix, Family::V4, 128).unwrap();
    client.socket.lose_answer_after(2);
    client.swap("small", "big").unwrap();
    assert_eq!(client.header("small").unwrap().unwrap().capacity, 128);
    // Where nobody can tell, nobody is told that it was done.
    client.create("other", Scope::Prefix, Family::V4, 128).unwrap();
    client.socket.lose_answer_after(2);
    client.swap("small", "other").unwrap_err();
}

#[test]
fn sets_are_made_named_described_and_destroyed_and_errors_say_which() {
    let mut client = client();
    assert_eq!(client.header("t").unwrap(), None);
    client.create("t", Scope::Prefix, Family::V6, 1024).unwrap();
    let header = client.header("t").unwrap().unwrap();
    assert_eq!(header.capacity, 1024);
    assert!(header.fits(Scope::Prefix, Family::V6));
    assert!(!header.fits(Scope::Port, Family::V6) && !header.fits(Scope::Prefix, Family::V4));
    assert_eq!(client.names().unwrap(), ["t"]);
    let again = client.create("t", Scope::Prefix, Family::V6, 1024).unwrap_err();
    assert!(again.to_string().starts_with("create ipset t: "), "{again}");
    client.destroy("t").unwrap();
    assert!(client.destroy("t").unwrap_err().is_missing());
    assert!(client.add("t", &[member("8.8.8.8/32")]).unwrap_err().is_missing());
    assert!(client.names().unwrap().is_empty());
}

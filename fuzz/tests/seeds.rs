//! Where the seeds come from: the feed's golden frames, what this machine's kernel and iptables really answer, and state files
//! as the gateway writes them. Each runs through its target; `OUTPUTGUARD_RECORD_SEEDS=1` writes them into `seeds/`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::process::Command;

use allowlist::codec::{decode, encode};
use allowlist::feed::{GoawayReason, SessionStart, ToGateway, ToServer, Welcome};
use allowlist::{Change, Digest, Element};
use gateway::held::Held;
use netlink_sys::{Socket, SocketAddr};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use uuid::Uuid;

/// Listings are longer than what is worth committing; the beginning has everything.
const MAX_SEED_BYTES: usize = 4096;
/// How long the kernel may take to answer, seconds.
const PATIENCE_S: i64 = 20;
/// `NETLINK_NETFILTER`.
const NETFILTER: isize = 12;
/// `nlmsghdr` and `nfgenmsg`.
const HEADERS_BYTES: usize = 20;

/// Runs an input through its target, and keeps it when seeds are being recorded.
fn seed(target: &str, name: &str, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(MAX_SEED_BYTES)];
    fuzz::target(target).unwrap()(bytes);
    if std::env::var_os("OUTPUTGUARD_RECORD_SEEDS").is_some() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), bytes).unwrap();
    }
}

/// The golden bytes of every frame, out of the test that freezes them.
fn golden() -> Vec<Vec<u8>> {
    let source = include_str!("../../allowlist/tests/frames.rs");
    let is_hex = |text: &&str| text.len() > 3 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bytes = |hex: &str| {
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
    };
    source.split('"').filter(is_hex).map(bytes).collect()
}

#[test]
fn golden_frames_pass_their_targets() {
    let (mut to_server, mut to_gateway) = (0, 0);
    for (number, frame) in golden().into_iter().enumerate() {
        if decode::<ToServer>(&frame).is_ok() {
            to_server += 1;
            seed("frame_to_server", &format!("golden-{number}"), &frame);
        }
        if decode::<ToGateway>(&frame).is_ok() {
            to_gateway += 1;
            seed("frame_to_gateway", &format!("golden-{number}"), &frame);
        }
    }
    assert!(to_server >= 6 && to_gateway >= 11, "{to_server} and {to_gateway}");
}

fn element(last: u8) -> Element {
    Element::host(IpAddr::from([1, 1, 1, last]), None)
}

/// An input of the target `session`: what is held before, then frames that are put right as `mend` says.
fn session(before: u8, frames: &[(u8, ToGateway)]) -> Vec<u8> {
    let mut input = vec![before];
    for (mend, frame) in frames {
        let frame = encode(frame).unwrap();
        input.push(*mend);
        input.extend(u16::try_from(frame.len()).unwrap().to_le_bytes());
        input.extend(frame);
    }
    input
}

#[test]
fn sessions_as_they_are_pass_their_target() {
    const NEXT: u8 = 2;
    const AS_SENT: u8 = 1;
    let welcome =
        |start| ToGateway::Welcome(Welcome { cluster: Uuid::nil(), node: "n1".into(), revision: 9, start });
    let part = |part, lasts: &[u8]| {
        let elements = lasts.iter().map(|last| element(*last)).collect();
        ToGateway::SnapshotPart { part, elements }
    };
    let end = ToGateway::SnapshotEnd { revision: 9, digest: Digest::default() };
    let beat = ToGateway::Heartbeat { revision: 9, digest: Digest::default() };
    let change = |more| ToGateway::Change {
        change: Change {
            revision: 9,
            added: vec![element(7)],
            revoked: vec![element(1)],
            retired: vec![element(2)],
        },
        more,
    };
    let goaway = ToGateway::Goaway { reason: GoawayReason::Draining, retry_after_ms: 1_000 };
    let snapshot = [
        (NEXT, welcome(SessionStart::Snapshot)),
        (0, part(0, &[1, 2])),
        (0, part(1, &[3])),
        (NEXT, end.clone()),
    ];
    let live = [
        (NEXT, change(false)),
        (NEXT, beat.clone()),
        (NEXT, change(true)),
        (NEXT, change(false)),
        (NEXT, beat.clone()),
    ];
    let resync = [
        (NEXT | AS_SENT, beat.clone()),
        (NEXT, change(false)),
        (0, part(0, &[4])),
        (NEXT, end),
        (NEXT, beat),
    ];
    let resume = [(NEXT, welcome(SessionStart::Resume))];
    seed("session", "snapshot", &session(0, &[&snapshot[..], &live].concat()));
    seed("session", "adopted", &session(10, &[&snapshot[..], &resync].concat()));
    seed("session", "resume", &session(8, &[&resume[..], &live, &resync, &[(0, goaway)]].concat()));
    seed("session", "resyncs", &session(8, &[&resume[..], &resync, &resync, &resync, &resync].concat()));
}

#[test]
fn state_files_as_they_are_written_pass_their_target() {
    let elements = BTreeSet::from([
        element(1),
        Element::new("8.8.8.0/24".parse().unwrap(), Some("tcp/443".parse().unwrap())),
        Element::new("2a01:4f8::/32".parse().unwrap(), Some("udp/5000-5010".parse().unwrap())),
    ]);
    let held = Held::published(Uuid::from_u128(42), 7, elements);
    seed("state", "checkpoint", &gateway::fuzzing::state_file(&held, &[]));
    seed("state", "log", &gateway::fuzzing::state_file(&held, &gateway::fuzzing::state_steps(&held)));
    seed("state", "empty", &gateway::fuzzing::state_file(&Held::default(), &[]));
}

fn command(program: &str, arguments: &str) -> Vec<u8> {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A socket to the kernel that fails rather than wait for ever.
fn netfilter() -> Socket {
    let mut socket = Socket::new(NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    // SAFETY: the descriptor is open for as long as `socket` lives, which outlives this borrow.
    let descriptor = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    setsockopt(&descriptor, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_S, 0)).unwrap();
    socket
}

/// Answers of the kernel in the calling thread's network namespace, one datagram each.
fn ask(question: &[u8]) -> Vec<Vec<u8>> {
    let socket = netfilter();
    socket.send_to(question, &SocketAddr::new(0, 0), 0).unwrap();
    let mut datagrams = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full().unwrap();
        // What ends an exchange: an error or acknowledgement (2), the end of a dump (3).
        let kind = |message: &[u8]| u16::from_ne_bytes([message[4], message[5]]);
        let mut rest = &datagram[..];
        let mut last = false;
        while rest.len() >= 16 {
            last |= matches!(kind(rest), 2 | 3);
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        datagrams.push(datagram);
        if last {
            return datagrams;
        }
    }
}

/// Sets, rules and flows as a gateway has them, in a network namespace that ends with the thread.
fn furnish() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    command("ip", "link set lo up");
    for (set, kind, members) in [
        ("og4o", "hash:net family inet", &["8.8.8.8", "9.9.9.0/24"][..]),
        ("og4op", "hash:net,port family inet", &["8.8.4.4,tcp:443", "1.1.1.0/24,udp:53"]),
        ("og6o", "hash:net family inet6", &["2a01:4f8::1", "2606:4700::/32"]),
    ] {
        command("ipset", &format!("create {set} {kind} counters"));
        for member in members {
            command("ipset", &format!("add {set} {member} packets 3 bytes 300"));
        }
    }
    for program in ["iptables", "ip6tables"] {
        command(program, "-w -N OG-FORWARD");
        command(program, "-w -A FORWARD -j OG-FORWARD");
        command(program, "-w -A FORWARD -m comment --comment og-moving -j OG-FORWARD");
        command(program, "-w -A FORWARD -m conntrack --ctstate NEW -j ACCEPT");
        command(program, "-w -A OUTPUT -m conntrack --ctstate NEW -j ACCEPT");
    }
    fs::write("/proc/sys/net/netfilter/nf_conntrack_acct", "1").unwrap();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let socket = UdpSocket::bind(address).unwrap();
        socket.send_to(b"hello", socket.local_addr().unwrap()).unwrap();
    }
}

/// A datagram of the log of denied packets.
fn logged() -> Vec<u8> {
    command("iptables", "-w -I OUTPUT -j NFLOG --nflog-group 100 --nflog-prefix og-deny");
    let socket = netfilter();
    socket.send_to(&gateway::fuzzing::denials_question(100), &SocketAddr::new(0, 0), 0).unwrap();
    let (answer, _) = socket.recv_from_full().unwrap();
    assert_eq!(answer[16..20], [0; 4], "the group is ours");
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.send_to(b"hello", udp.local_addr().unwrap()).unwrap();
    let (datagram, _) = socket.recv_from_full().unwrap();
    assert!(datagram.windows(7).any(|window| window == b"og-deny"), "{datagram:?}");
    datagram
}

/// Packets as the log copies them: UDP over IPv4, TCP behind two extension headers of IPv6.
#[test]
fn packets_as_they_are_logged_pass_their_target() {
    let mut v4 = vec![0x45, 0, 0, 33, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 8, 8, 8, 8];
    v4.extend([0x80, 1, 0, 53, 0, 13, 0, 0]);
    seed("denials", "v4-udp", &v4);
    let mut v6 = vec![0x60, 0, 0, 0, 0, 36, 0, 64];
    v6.extend([[0xfd; 16], [0x2a; 16]].concat());
    v6.extend([44, 0, 1, 4, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 9]);
    v6.extend([0x80, 1, 1, 0xbb, 0, 0, 0, 0]);
    seed("denials", "v6-tcp", &v6);
}

#[test]
fn what_kernel_and_iptables_answer_passes_its_targets() {
    let work = || {
        furnish();
        for (name, question) in gateway::fuzzing::questions() {
            let answers = ask(&question);
            let (octets, target): (&[u8], _) = match name {
                "members-v4" => (&[8, 8, 8, 8], "ipset"),
                "members-v4-ports" => (&[8, 8, 4, 4], "ipset"),
                "members-v6" => (&[0x2a, 0x01, 0x04, 0xf8], "ipset"),
                "flows-v4" | "flows-to" => (&[127, 0, 0, 1], "conntrack"),
                "flows-v6" => (&[0, 0, 0, 1], "conntrack"),
                _ => (&[], "ipset"),
            };
            let has =
                |datagram: &Vec<u8>| octets.is_empty() || datagram.windows(octets.len()).any(|w| w == octets);
            assert!(answers.iter().any(has), "{name}: {answers:?}");
            for (number, datagram) in answers.iter().enumerate() {
                seed("netlink", &format!("{name}-{number}"), datagram);
            }
            let first = answers.iter().find(|datagram| has(datagram)).unwrap();
            let length = u32::from_ne_bytes(first[..4].try_into().unwrap()) as usize;
            seed(target, name, &first[HEADERS_BYTES.min(length)..length]);
        }
        seed("denials", "logged", &logged());
        for program in ["iptables", "ip6tables"] {
            let listing = command(program, "-w -S FORWARD");
            assert!(String::from_utf8_lossy(&listing).contains("-A FORWARD -j OG-FORWARD"));
            seed("iptables", program, &listing);
        }
        seed("iptables", "comment", b"see \"-j OG-FORWARD\" of the gateway's");
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap());
}

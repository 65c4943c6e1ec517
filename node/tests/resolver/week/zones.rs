//! What happens to zones and to who is asked for them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use node::resolver::answer::{Answer, Failure, Family};
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

pub(super) const UPSTREAMS: [&str; 2] = ["192.0.2.1:53", "192.0.2.2:53"];
/// Something happens to a zone so often, on average.
const EVENT_EACH: Duration = Duration::from_hours(3);
/// How many of a large pool one answer carries.
const SHOWN_OF_POOL: usize = 8;
const POOL: u32 = 24;

/// One name's zone.
pub(super) struct Zone {
    number: u32,
    ttl_s: u32,
    addresses: Vec<IpAddr>,
    rotates: bool,
    trouble: Trouble,
    trouble_until: Duration,
    next_event: Duration,
    fresh: u32,
    events: u64,
}

/// What is wrong at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// One upstream fails, with words of its own.
    OneFails(usize),
    AllFail,
    NoSuchName,
    NothingFromOne(usize),
    /// Private addresses beside the others, from one upstream.
    PrivateBeside(usize),
    PrivateOnly(usize),
    TooMany,
}

impl Zone {
    pub(super) fn new(number: u32, random: &mut StdRng) -> Self {
        let mut zone = Self {
            number,
            ttl_s: *[0, 20, 60, 300, 86_400].choose(random).expect("not empty"),
            addresses: Vec::new(),
            rotates: number.is_multiple_of(6),
            trouble: Trouble::None,
            trouble_until: Duration::ZERO,
            next_event: Duration::ZERO,
            fresh: 0,
            events: 0,
        };
        let count = if zone.rotates { POOL } else { random.random_range(1..6) };
        zone.addresses = (0..count).map(|_| zone.another()).collect();
        zone.wait(Duration::ZERO, random);
        zone
    }

    /// How often something happened to it.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// What each upstream says now: A, then AAAA.
    pub(super) fn answers(&mut self, now: Duration, random: &mut StdRng) -> (Vec<Answer>, Vec<Answer>) {
        while now >= self.next_event {
            self.happens(now, random);
        }
        if now >= self.trouble_until {
            self.trouble = Trouble::None;
        }
        let mut of = |family| (0..UPSTREAMS.len()).map(|place| self.answer(place, family, random)).collect();
        (of(Family::V4), of(Family::V6))
    }

    fn answer(&self, place: usize, family: Family, random: &mut StdRng) -> Answer {
        let mut shown: Vec<IpAddr> = if self.rotates {
            self.addresses.choose_multiple(random, SHOWN_OF_POOL).copied().collect()
        } else {
            self.addresses.clone()
        };
        let private = || [IpAddr::from([10, 0, 0, 1]), IpAddr::from(Ipv6Addr::LOCALHOST)];
        match self.trouble {
            Trouble::AllFail => return Answer::Failed(Failure::Timeout),
            Trouble::OneFails(who) if who == place => {
                return Answer::Failed(Failure::Code("SERVFAIL".to_owned()));
            }
            Trouble::NoSuchName => shown.clear(),
            Trouble::NothingFromOne(who) if who == place => shown.clear(),
            Trouble::PrivateBeside(who) if who == place => shown.extend(private()),
            Trouble::PrivateOnly(who) if who == place => shown = private().to_vec(),
            Trouble::TooMany => {
                shown = (0..1_001_u32).map(|n| IpAddr::from(Ipv4Addr::from_bits(0x0909_0000 + n))).collect();
            }
            _ => {}
        }
        let addresses: BTreeMap<IpAddr, u32> = shown
            .into_iter()
            .filter(|address| Family::of(*address) == family)
            // Caches count down.
            .map(|address| (address, random.random_range(0..=self.ttl_s)))
            .collect();
        let chain = Vec::new();
        if addresses.is_empty() { Answer::Nothing { chain } } else { Answer::Addresses { addresses, chain } }
    }

    fn happens(&mut self, now: Duration, random: &mut StdRng) {
        self.events += 1;
        let who = random.random_range(0..UPSTREAMS.len());
        let trouble = match random.random_range(0..14) {
            0..4 if !self.rotates => {
                let moved = random.random_range(0..self.addresses.len());
                self.addresses[moved] = self.another();
                None
            }
            4 => {
                self.addresses = (0..self.addresses.len()).map(|_| self.another()).collect();
                None
            }
            5 => {
                self.ttl_s = *[0, 20, 60, 300, 86_400].choose(random).expect("not empty");
                None
            }
            6 => Some(Trouble::OneFails(who)),
            7 => Some(Trouble::AllFail),
            8 => Some(Trouble::NoSuchName),
            9 => Some(Trouble::NothingFromOne(who)),
            10 => Some(Trouble::PrivateBeside(who)),
            11 => Some(Trouble::PrivateOnly(who)),
            12 => Some(Trouble::TooMany),
            _ => None,
        };
        if let Some(trouble) = trouble {
            self.trouble = trouble;
            // From a blip to half a day.
            let longest = *[10, 120, 1_200, 43_200].choose(random).expect("not empty");
            self.trouble_until = now + Duration::from_secs(random.random_range(1..=longest));
        }
        self.wait(now, random);
    }

    fn wait(&mut self, now: Duration, random: &mut StdRng) {
        self.next_event = now + EVENT_EACH.mul_f64(random.random_range(0.0..2.0));
    }

    /// An address this zone never had.
    fn another(&mut self) -> IpAddr {
        self.fresh += 1;
        let low = u16::try_from(self.fresh % 0x1_0000).expect("16 bits");
        let number = u16::try_from(self.number).expect("few names");
        if self.fresh.is_multiple_of(3) {
            Ipv6Addr::new(0x2606, 0x4700, number, 0, 0, 0, 0, low).into()
        } else {
            Ipv4Addr::from_bits(0x1400_0000 + (u32::from(number) << 16) + u32::from(low)).into()
        }
    }
}

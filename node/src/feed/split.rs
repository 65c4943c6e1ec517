//! A change in parts that fit into frames.

use allowlist::Change;
use allowlist::feed::{MAX_ELEMENTS_PER_FRAME, ToGateway};

/// The frames of one change, in order; all but the last say that more follows. An empty change has no frames.
pub(super) fn frames(change: &Change) -> Vec<ToGateway> {
    let mut frames = Vec::with_capacity(change.len().div_ceil(MAX_ELEMENTS_PER_FRAME));
    let mut rest = (change.added.as_slice(), change.revoked.as_slice(), change.retired.as_slice());
    loop {
        let mut room = MAX_ELEMENTS_PER_FRAME;
        let part = Change {
            revision: change.revision,
            added: take(&mut rest.0, &mut room),
            revoked: take(&mut rest.1, &mut room),
            retired: take(&mut rest.2, &mut room),
        };
        if part.is_empty() {
            return frames;
        }
        let more = !(rest.0.is_empty() && rest.1.is_empty() && rest.2.is_empty());
        frames.push(ToGateway::Change { change: part, more });
    }
}

fn take<T: Copy>(from: &mut &[T], room: &mut usize) -> Vec<T> {
    let (part, rest) = from.split_at((*room).min(from.len()));
    *from = rest;
    *room -= part.len();
    part.to_vec()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use allowlist::Element;

    use super::*;

    fn elements(from: u32, count: usize) -> Vec<Element> {
        let hosts = (from..).take(count);
        hosts.map(|bits| Element::host(IpAddr::V4(Ipv4Addr::from_bits(bits)), None)).collect()
    }

    #[test]
    fn parts_put_together_are_the_change_and_only_the_last_says_so() {
        let change = Change {
            revision: 7,
            added: elements(0x0100_0000, MAX_ELEMENTS_PER_FRAME + 5),
            revoked: elements(0x0200_0000, MAX_ELEMENTS_PER_FRAME),
            retired: elements(0x0300_0000, 3),
        };
        let frames = frames(&change);
        assert_eq!(frames.len(), 3);
        let mut whole = Change { revision: 7, ..Change::default() };
        for (index, frame) in frames.iter().enumerate() {
            let ToGateway::Change { change: part, more } = frame else { panic!("{frame:?}") };
            assert_eq!(*more, index + 1 < frames.len());
            assert_eq!(part.revision, 7);
            assert!(part.len() <= MAX_ELEMENTS_PER_FRAME);
            assert!(allowlist::codec::encode(frame).is_ok());
            whole.added.extend(&part.added);
            whole.revoked.extend(&part.revoked);
            whole.retired.extend(&part.retired);
        }
        assert_eq!(whole, change);
    }

    #[test]
    fn an_empty_change_has_no_frames_and_a_full_one_has_one() {
        assert!(frames(&Change { revision: 3, ..Change::default() }).is_empty());
        let full = Change { revision: 3, added: elements(1, MAX_ELEMENTS_PER_FRAME), ..Change::default() };
        assert!(matches!(frames(&full).as_slice(), [ToGateway::Change { more: false, .. }]));
    }
}

//! Doors to what reads the state files.

use std::collections::BTreeSet;

use allowlist::{Digest, Element};

use super::{Base, checkpoint, log};
use crate::held::Held;

/// Set in the first byte: what follows is taken as it stands, so that headers and checksums are looked at too.
const RAW: u8 = 1;
/// The files' names in messages.
const FILE: &str = "state";

/// A checkpoint and a log. The input: one byte of flags, the length of the checkpoint (u16, little endian), the checkpoint,
/// the log. Unless it is [`RAW`] the checkpoint is a body only and the log is a length (u16) and a body for each record; headers
/// and checksums are put in front of them.
pub fn state(bytes: &[u8]) {
    let Some(([flags, low, high], rest)) = bytes.split_first_chunk() else { return };
    let Some((stored, steps)) = rest.split_at_checked(usize::from(u16::from_le_bytes([*low, *high]))) else {
        return;
    };
    let raw = flags & RAW != 0;
    let (file, log) =
        if raw { (stored.to_vec(), steps.to_vec()) } else { (checkpoint::frame(stored), log_of(steps)) };
    let mut base = checkpoint::decode(FILE, &file).ok();
    if let Some(base) = &base {
        check(base);
        assert!(checkpoint::encode(base.sequence, &base.held).is_ok());
    }
    let before = base.as_ref().map(|base| base.sequence);
    if log::follow_all(FILE, &log, &mut base).is_ok() {
        assert!(base.as_ref().map(|base| base.sequence) >= before, "the log led back");
    }
    if let Some(base) = &base {
        check(base);
        if let Ok(written) = checkpoint::encode(base.sequence, &base.held) {
            let again = checkpoint::decode(FILE, &written);
            assert!(
                again.is_ok_and(|again| again.held == base.held && again.sequence == base.sequence),
                "written and read again it is another state"
            );
        }
    }
}

/// An input of [`state`] with a checkpoint of `held`, to begin with.
pub fn state_file(held: &Held, steps: &[u8]) -> Vec<u8> {
    let stored = checkpoint::encode(3, held).unwrap_or_default();
    let body = stored.get(checkpoint::HEADER_BYTES..).unwrap_or_default();
    let length = u16::try_from(body.len()).unwrap_or_default();
    [&[0][..], &length.to_le_bytes(), body, steps].concat()
}

/// The log's part of an input: a change of `held` and a whole set, each with its length in front.
pub fn state_steps(held: &Held) -> Vec<u8> {
    let Some(point) = held.point() else { return Vec::new() };
    let elements: Vec<Element> = held.elements().iter().copied().collect();
    let records =
        [log::Record::change(point, elements.clone(), Vec::new()), log::Record::whole(point, elements)];
    (4..)
        .zip(records)
        .flat_map(|(sequence, record)| {
            let body = record.body(sequence);
            let length = u16::try_from(body.len()).unwrap_or_default();
            [&length.to_le_bytes()[..], &body].concat()
        })
        .collect()
}

fn log_of(mut steps: &[u8]) -> Vec<u8> {
    let mut log = log::header();
    while let Some(([low, high], rest)) = steps.split_first_chunk() {
        let Some((body, rest)) = rest.split_at_checked(usize::from(u16::from_le_bytes([*low, *high]))) else {
            break;
        };
        steps = rest;
        log.extend(log::frame(body));
    }
    log
}

fn check(base: &Base) {
    let elements: &BTreeSet<Element> = base.held.elements();
    assert_eq!(base.held.digest(), Digest::of(elements), "the digest is not of what is held");
    assert!(elements.iter().all(|element| element.prefix == element.prefix.trunc()));
}

//! The records inside a batch. Little endian, append-only: a new record has a new kind, and a kind never changes.
//!
//! ```text
//! entry      1, u32 length of what follows the sum, u32 CRC32C of it, log id, payload (`crate::codec`)
//! vote       2, u64 term, u64 node, u8 committed
//! committed  3, log id
//! truncate   4, u8 0, or u8 1 and the log id of what is the last entry now
//! purge      5, log id of the last entry that is not needed any more
//! seal       6, u64 sequence the next segment begins with
//! ```
//! A log id is u64 term, u64 node, u64 index. An entry has a sum of its own because it is read alone later.

use std::io;

use openraft::vote::{RaftLeaderId, RaftVote};

use crate::codec::{self, MAX_RECORD_BYTES};
use crate::types::{Entry, LogId, Vote};

const ENTRY: u8 = 1;
const VOTE: u8 = 2;
const COMMITTED: u8 = 3;
const TRUNCATE: u8 = 4;
const PURGE: u8 = 5;
const SEAL: u8 = 6;

const LOG_ID_BYTES: usize = 24;
const ENTRY_HEADER_BYTES: usize = 9;

/// A record as it is found in a batch. Entries are not decoded for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// `offset` in the batch's payload, `len` with everything.
    Entry {
        id: LogId,
        offset: usize,
        len: usize,
    },
    Vote(Vote),
    Committed(LogId),
    Truncate(Option<LogId>),
    Purge(LogId),
    Seal(u64),
}

/// Appends an entry's record to `bytes`; answers with its length.
pub(super) fn put_entry(bytes: &mut Vec<u8>, entry: &Entry) -> io::Result<usize> {
    let payload = codec::encode(&entry.payload)?;
    let start = bytes.len();
    bytes.push(ENTRY);
    bytes.extend_from_slice(&u32::try_from(LOG_ID_BYTES + payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    put_log_id(bytes, entry.log_id);
    bytes.extend_from_slice(&payload);
    let sum = crc32c::crc32c(&bytes[start + ENTRY_HEADER_BYTES..]);
    bytes[start + 5..start + ENTRY_HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    Ok(bytes.len() - start)
}

/// Reads an entry's record.
pub(super) fn entry(bytes: &[u8]) -> io::Result<Entry> {
    let mut rest = bytes;
    let body = entry_body(&mut rest).filter(|_| rest.is_empty());
    let (body, sum) = body.ok_or_else(|| invalid("it is not an entry"))?;
    if crc32c::crc32c(body) != sum {
        return Err(invalid("its checksum does not match"));
    }
    let (id, payload) = body.split_at(LOG_ID_BYTES);
    let log_id = take_log_id(&mut &*id).ok_or_else(|| invalid("its id is too short"))?;
    Ok(Entry { log_id, payload: codec::decode(payload)? })
}

impl Record {
    /// Appends any record but an entry.
    pub(super) fn put(self, bytes: &mut Vec<u8>) {
        match self {
            // Entries are put in by `put_entry`, which has them.
            Self::Entry { .. } => {}
            Self::Vote(vote) => {
                bytes.push(VOTE);
                put_vote(bytes, vote);
            }
            Self::Committed(id) => {
                bytes.push(COMMITTED);
                put_log_id(bytes, id);
            }
            Self::Truncate(last) => {
                bytes.push(TRUNCATE);
                put_optional(bytes, last, put_log_id);
            }
            Self::Purge(id) => {
                bytes.push(PURGE);
                put_log_id(bytes, id);
            }
            Self::Seal(next) => {
                bytes.push(SEAL);
                bytes.extend_from_slice(&next.to_le_bytes());
            }
        }
    }

    /// The records of a batch whose sum is right; what cannot be read then was written by a newer program.
    pub(super) fn all(payload: &[u8]) -> io::Result<Vec<Self>> {
        let mut rest = payload;
        let mut records = Vec::new();
        while let Some((kind, after)) = rest.split_first() {
            let offset = payload.len() - rest.len();
            let mut after = after;
            let record = match *kind {
                ENTRY => entry_body(&mut rest).and_then(|(body, _)| {
                    after = rest;
                    let id = take_log_id(&mut &*body)?;
                    Some(Self::Entry { id, offset, len: payload.len() - rest.len() - offset })
                }),
                VOTE => take_vote(&mut after).map(Self::Vote),
                COMMITTED => take_log_id(&mut after).map(Self::Committed),
                TRUNCATE => take_optional(&mut after, take_log_id).map(Self::Truncate),
                PURGE => take_log_id(&mut after).map(Self::Purge),
                SEAL => take_u64(&mut after).map(Self::Seal),
                other => return Err(invalid(&format!("a record of the unknown kind {other}"))),
            };
            records.push(record.ok_or_else(|| invalid(&format!("a malformed record of kind {kind}")))?);
            rest = after;
        }
        Ok(records)
    }
}

/// Body and sum of the entry at the start of `rest`, which goes on behind it.
fn entry_body<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], u32)> {
    let (header, after) = rest.split_first_chunk::<ENTRY_HEADER_BYTES>()?;
    let [ENTRY, a, b, c, d, sum @ ..] = *header else { return None };
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    let valid = (LOG_ID_BYTES..=LOG_ID_BYTES + MAX_RECORD_BYTES).contains(&len) && len <= after.len();
    let (body, after) = valid.then(|| after.split_at(len))?;
    *rest = after;
    Some((body, u32::from_le_bytes(sum)))
}

pub(super) fn put_log_id(bytes: &mut Vec<u8>, id: LogId) {
    for number in [id.leader_id.term, id.leader_id.node_id, id.index] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
}

pub(super) fn take_log_id(bytes: &mut &[u8]) -> Option<LogId> {
    let (term, node, index) = (take_u64(bytes)?, take_u64(bytes)?, take_u64(bytes)?);
    Some(LogId::new(RaftLeaderId::new(term, node), index))
}

pub(super) fn put_vote(bytes: &mut Vec<u8>, vote: Vote) {
    bytes.extend_from_slice(&vote.leader_id.term.to_le_bytes());
    bytes.extend_from_slice(&vote.leader_id.node_id.to_le_bytes());
    bytes.push(u8::from(vote.committed));
}

pub(super) fn take_vote(bytes: &mut &[u8]) -> Option<Vote> {
    let (term, node) = (take_u64(bytes)?, take_u64(bytes)?);
    let committed = match take_u8(bytes)? {
        0 => false,
        1 => true,
        _ => return None,
    };
    Some(Vote::from_leader_id(RaftLeaderId::new(term, node), committed))
}

pub(super) fn put_optional<T>(bytes: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    bytes.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(bytes, value);
    }
}

pub(super) fn take_optional<T>(
    bytes: &mut &[u8],
    take: impl FnOnce(&mut &[u8]) -> Option<T>,
) -> Option<Option<T>> {
    match take_u8(bytes)? {
        0 => Some(None),
        1 => take(bytes).map(Some),
        _ => None,
    }
}

pub(super) fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*number))
}

fn take_u8(bytes: &mut &[u8]) -> Option<u8> {
    let (byte, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*byte)
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;

    use super::*;

    #[test]
    fn every_record_has_these_exact_bytes() {
        let id = LogId::new(RaftLeaderId::new(1, 2), 3);
        let mut bytes = Vec::new();
        let len = put_entry(&mut bytes, &Entry { log_id: id, payload: EntryPayload::Blank }).unwrap();
        let vote = Vote::from_leader_id(RaftLeaderId::new(4, 5), true);
        let others = [
            Record::Vote(vote),
            Record::Committed(id),
            Record::Truncate(None),
            Record::Truncate(Some(id)),
            Record::Purge(id),
            Record::Seal(6),
        ];
        others.into_iter().for_each(|record| record.put(&mut bytes));
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let id_hex = "010000000000000002000000000000000300000000000000";
        let expected = [
            &format!("011a000000a63b5ea8{id_hex}0100"),
            "020400000000000000050000000000000001",
            &format!("03{id_hex}"),
            "0400",
            &format!("0401{id_hex}"),
            &format!("05{id_hex}"),
            "060600000000000000",
        ];
        assert_eq!(hex, expected.concat());
        let all = Record::all(&bytes).unwrap();
        assert_eq!(all[0], Record::Entry { id, offset: 0, len });
        assert_eq!(all[1..], others);
        assert_eq!(entry(&bytes[..len]).unwrap().log_id, id);
    }

    #[test]
    fn damaged_and_unknown_records_are_refused() {
        let id = LogId::new(RaftLeaderId::new(1, 2), 3);
        let mut bytes = Vec::new();
        put_entry(&mut bytes, &Entry { log_id: id, payload: EntryPayload::Blank }).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            entry(&flipped).unwrap_err();
        }
        for malformed in [&[99][..], &[VOTE, 1], &[TRUNCATE, 2], &[0], &bytes[..20]] {
            Record::all(malformed).unwrap_err();
        }
    }
}

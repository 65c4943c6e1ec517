//! Records of the write-ahead log, as `raft-log` wants them.
//!
//! Everything of variable length is written as length, CRC32 of the length, bytes, and has a cap. `raft-log` checks a
//! record's sum only after it has read it whole, and takes a record that ends beyond the file for a torn tail: without
//! the sum over the length one flipped bit in it silently drops every acknowledged record that follows.

use std::io::{self, Read, Write};
use std::sync::Arc;

use openraft::type_config::alias::PayloadOf;
use raft_log::codeq::{Decode, Encode};

use super::flushed::Completion;
use crate::codec::{self, MAX_RECORD_BYTES};
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// The types `raft-log` is instantiated with.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Wal;

impl raft_log::Types for Wal {
    type LogId = WalLogId;
    type LogPayload = WalPayload;
    type Vote = WalVote;
    type Callback = Completion;
    type UserData = u64;

    fn log_index(log_id: &WalLogId) -> u64 {
        log_id.0.index
    }

    fn payload_size(payload: &WalPayload) -> u64 {
        payload.len as u64
    }
}

/// Term, node, index: 24 bytes, big endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WalLogId(pub(super) LogId);

/// Term, node, committed: 17 bytes, big endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) struct WalVote(pub(super) Vote);

/// What an entry carries. Kept decoded, because it is read several times (each follower, apply) and written once.
#[derive(Debug, Clone)]
pub(super) struct WalPayload {
    payload: Arc<PayloadOf<TypeConfig>>,
    len: usize,
}

impl WalPayload {
    /// Refuses a payload that would not fit, before anything of it is in the log.
    pub(super) fn new(payload: PayloadOf<TypeConfig>) -> io::Result<Self> {
        let len = codec::encoded_len(&payload)?;
        Ok(Self { payload: Arc::new(payload), len })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn into_entry(self, id: WalLogId) -> Entry {
        Entry { log_id: id.0, payload: Arc::unwrap_or_clone(self.payload) }
    }
}

impl Encode for WalLogId {
    fn encode<W: Write>(&self, mut w: W) -> io::Result<usize> {
        for number in [self.0.leader_id.term, self.0.leader_id.node_id, self.0.index] {
            w.write_all(&number.to_be_bytes())?;
        }
        Ok(24)
    }
}

impl Decode for WalLogId {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        let (term, node, index) = (read_u64(&mut r)?, read_u64(&mut r)?, read_u64(&mut r)?);
        Ok(Self(LogId::new(openraft::vote::RaftLeaderId::new(term, node), index)))
    }
}

impl Encode for WalVote {
    fn encode<W: Write>(&self, mut w: W) -> io::Result<usize> {
        w.write_all(&self.0.leader_id.term.to_be_bytes())?;
        w.write_all(&self.0.leader_id.node_id.to_be_bytes())?;
        w.write_all(&[u8::from(self.0.committed)])?;
        Ok(17)
    }
}

impl Decode for WalVote {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        let (term, node) = (read_u64(&mut r)?, read_u64(&mut r)?);
        let mut committed = [0];
        r.read_exact(&mut committed)?;
        let committed = match committed[0] {
            0 => false,
            1 => true,
            other => return Err(invalid(format!("a vote's committed byte is {other}"))),
        };
        let leader_id = openraft::vote::RaftLeaderId::new(term, node);
        Ok(Self(openraft::vote::RaftVote::from_leader_id(leader_id, committed)))
    }
}

impl Encode for WalPayload {
    fn encode<W: Write>(&self, mut w: W) -> io::Result<usize> {
        let bytes = codec::encode(&*self.payload)?;
        let len =
            u32::try_from(bytes.len()).map_err(|_| invalid("a payload of 4 GiB".to_owned()))?.to_be_bytes();
        w.write_all(&len)?;
        w.write_all(&crc32fast::hash(&len).to_be_bytes())?;
        w.write_all(&bytes)?;
        Ok(8 + bytes.len())
    }
}

impl Decode for WalPayload {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        let mut len = [0; 4];
        let mut sum = [0; 4];
        r.read_exact(&mut len)?;
        r.read_exact(&mut sum)?;
        if crc32fast::hash(&len) != u32::from_be_bytes(sum) {
            return Err(invalid("the length of a payload does not match its checksum".to_owned()));
        }
        let len = u32::from_be_bytes(len) as usize;
        if len > MAX_RECORD_BYTES {
            return Err(invalid(format!(
                "a payload of {len} bytes, at most {MAX_RECORD_BYTES} are possible"
            )));
        }
        let mut bytes = vec![0; len];
        r.read_exact(&mut bytes)?;
        Ok(Self { payload: Arc::new(codec::decode(&bytes)?), len })
    }
}

fn read_u64(r: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    r.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use openraft::vote::{RaftLeaderId, RaftVote};

    use super::*;

    #[test]
    fn log_ids_votes_and_payloads_have_these_exact_bytes() {
        let mut bytes = Vec::new();
        WalLogId(LogId::new(RaftLeaderId::new(1, 2), 3)).encode(&mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3]);
        let mut bytes = Vec::new();
        WalVote(Vote::from_leader_id(RaftLeaderId::new(1, 2), true)).encode(&mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
        let mut bytes = Vec::new();
        WalPayload::new(openraft::EntryPayload::Blank).unwrap().encode(&mut bytes).unwrap();
        // Length 2, CRC32 of the length, record version 1, variant 0.
        assert_eq!(bytes, [0, 0, 0, 2, 0xcf, 0x4a, 0xbe, 0x30, 1, 0]);
    }

    #[test]
    fn a_flipped_bit_in_a_length_is_damage_and_not_a_torn_tail() {
        let mut bytes = Vec::new();
        WalPayload::new(openraft::EntryPayload::Blank).unwrap().encode(&mut bytes).unwrap();
        for bit in 0..32 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(WalPayload::decode(&flipped[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}

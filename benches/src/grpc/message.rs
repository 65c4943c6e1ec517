//! The few protobuf messages of etcd's API that the benches send and read (etcd 3.4, `api/etcdserverpb/rpc.proto`), by
//! hand: no code generator is needed for them.

use anyhow::{Context, Result, bail};

/// `etcdserverpb.KV/Put`
pub(crate) const PUT: &str = "/etcdserverpb.KV/Put";
/// `etcdserverpb.KV/Range`
pub(crate) const RANGE: &str = "/etcdserverpb.KV/Range";
/// `etcdserverpb.KV/Txn`
pub(crate) const TXN: &str = "/etcdserverpb.KV/Txn";
/// `etcdserverpb.Maintenance/Status`
pub(crate) const STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// Wire types of protobuf.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED_32: u64 = 5;

/// `PutRequest { key = 1, value = 2 }`
pub(crate) fn put(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(key.len() + value.len() + 8);
    bytes(&mut message, 1, key);
    bytes(&mut message, 2, value);
    message
}

/// `RangeRequest { key = 1 }`: one key, linearizable.
pub(crate) fn range(key: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(key.len() + 4);
    bytes(&mut message, 1, key);
    message
}

/// `TxnRequest { success = 2: RequestOp { request_put = 2 } }`: puts without a condition.
pub(crate) fn puts<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let mut message = Vec::new();
    for (key, value) in pairs {
        let mut operation = Vec::new();
        bytes(&mut operation, 2, &put(key, value));
        bytes(&mut message, 2, &operation);
    }
    message
}

/// Whether the member that sent this `StatusResponse { header = 1: { member_id = 2 }, leader = 4 }` leads.
pub(crate) fn leads(status: &[u8]) -> Result<bool> {
    let header = field(status, 1)?.and_then(Field::bytes).context("a status without header")?;
    let member = field(header, 2)?.and_then(Field::number).context("a status without member")?;
    let leader = field(status, 4)?.and_then(Field::number).unwrap_or_default();
    Ok(member == leader)
}

/// Whether this `RangeResponse { count = 4 }` found something.
pub(crate) fn found(range: &[u8]) -> Result<bool> {
    Ok(field(range, 4)?.and_then(Field::number).unwrap_or_default() > 0)
}

#[derive(Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn number(self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(number),
            Self::Bytes(_) => None,
        }
    }

    fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Number(_) => None,
        }
    }
}

/// The first field `wanted` of a message.
fn field(message: &[u8], wanted: u64) -> Result<Option<Field<'_>>> {
    let mut rest = message;
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let value = match key & 7 {
            VARINT => Field::Number(varint(&mut rest)?),
            FIXED_64 => Field::Bytes(take(&mut rest, 8)?),
            LENGTH_DELIMITED => {
                let length = usize::try_from(varint(&mut rest)?)?;
                Field::Bytes(take(&mut rest, length)?)
            }
            FIXED_32 => Field::Bytes(take(&mut rest, 4)?),
            other => bail!("wire type {other} in a message"),
        };
        if key >> 3 == wanted {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length).context("a message that ends early")?;
    *rest = left;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    bail!("a number of more than 64 bits in a message")
}

fn bytes(message: &mut Vec<u8>, number: u64, value: &[u8]) {
    put_varint(message, number << 3 | LENGTH_DELIMITED);
    put_varint(message, value.len() as u64);
    message.extend_from_slice(value);
}

fn put_varint(message: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        message.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_bytes_protobuf_gives_them() {
        assert_eq!(put(b"k", b"vv"), b"\x0a\x01k\x12\x02vv");
        assert_eq!(range(b"k"), b"\x0a\x01k");
        let pair: (&[u8], &[u8]) = (b"k", b"v");
        assert_eq!(puts([pair].into_iter()), b"\x12\x08\x12\x06\x0a\x01k\x12\x01v");
        assert_eq!(put(b"", &[7; 200])[2..5], [0x12, 0xc8, 0x01]);
    }

    #[test]
    fn the_member_that_names_itself_leads() {
        // header { cluster_id: 1, member_id: 300 }, version "3", dbSize 5, leader 300
        let status = b"\x0a\x05\x08\x01\x10\xac\x02\x12\x013\x18\x05\x20\xac\x02";
        assert!(leads(status).unwrap());
        assert!(!leads(&status[..status.len() - 3]).unwrap(), "no leader known");
        assert!(leads(&status[..4]).is_err(), "cut off");
    }
}

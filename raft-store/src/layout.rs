//! Where everything stands in the sled checkpoint, and the version of all data of a node.
//!
//! One tree. A key is a kind byte, the length of the name (u16, big endian), the name, and the number of the part (u16,
//! big endian): names are prefix-free that way, and the parts of one record stand together. A record longer than one
//! value is cut into parts, because sled moves values above about 8 KiB into files of their own that it never syncs
//! (with 16 KiB values six power cuts of six left a database that did not open).
//!
//! A part is: total length of the record (u32, big endian), CRC32 of the record (u32, big endian), its bytes of it.

use allowlist::{DomainName, EntryId};

/// Version of the data directory's layout, in the identity file. A program refuses newer ones. What a state needs to be
/// read is said by its feature level.
pub(crate) const DATA_VERSION: u32 = 1;
/// Largest value given to sled, headers included.
pub(crate) const MAX_VALUE_BYTES: usize = 4 * 1024;
const PART_HEADER_BYTES: usize = 8;
const PART_BYTES: usize = MAX_VALUE_BYTES - PART_HEADER_BYTES;
/// Largest name: a domain has 253 bytes, a token's name is bounded by the API well below.
pub(crate) const MAX_NAME_BYTES: usize = u16::MAX as usize;

/// The key of the state's feature level, four bytes big endian. It has no kind, so that any later layout can still be
/// told: one that an older program cannot read comes with a feature level of its own.
pub(crate) const VERSION_KEY: &[u8] = b"version";

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The one [`super::machine::database::Meta`].
    Meta,
    /// [`allowlist::Entry`] by id.
    Entry,
    /// [`super::state::Resolution`] by domain.
    Resolution,
    /// [`super::command::Token`] by name.
    Token,
    /// [`super::kept::KeptAnswer`] by name.
    Kept,
    /// [`super::history::History`] by domain.
    History,
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::Meta, Self::Entry, Self::Resolution, Self::Token, Self::Kept, Self::History];

    const fn byte(self) -> u8 {
        match self {
            Self::Meta => b'm',
            Self::Entry => b'e',
            Self::Resolution => b'r',
            Self::Token => b't',
            Self::Kept => b'k',
            Self::History => b'h',
        }
    }
}

/// Kind and name of a record: a key without its part number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RecordKey(Vec<u8>);

impl RecordKey {
    pub(crate) fn meta() -> Self {
        Self::new(Kind::Meta, &[])
    }

    pub(crate) fn entry(id: EntryId) -> Self {
        Self::new(Kind::Entry, id.0.as_bytes())
    }

    pub(crate) fn resolution(domain: &DomainName) -> Self {
        Self::new(Kind::Resolution, domain.as_str().as_bytes())
    }

    pub(crate) fn token(name: &str) -> Self {
        Self::new(Kind::Token, name.as_bytes())
    }

    pub(crate) fn kept(name: &str) -> Self {
        Self::new(Kind::Kept, name.as_bytes())
    }

    pub(crate) fn history(domain: &DomainName) -> Self {
        Self::new(Kind::History, domain.as_str().as_bytes())
    }

    fn new(kind: Kind, name: &[u8]) -> Self {
        // A name that long cannot come in: a batch has less than 256 KiB and the API bounds names.
        let name = &name[..name.len().min(MAX_NAME_BYTES)];
        let len = u16::try_from(name.len()).unwrap_or(u16::MAX);
        let mut bytes = Vec::with_capacity(3 + name.len());
        bytes.push(kind.byte());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(name);
        Self(bytes)
    }

    /// The key of part `part`.
    pub(crate) fn part(&self, part: u16) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.extend_from_slice(&part.to_be_bytes());
        bytes
    }
}

/// Cuts a record into values. At least one.
pub(crate) fn split(record: &[u8]) -> Vec<Vec<u8>> {
    let len = u32::try_from(record.len()).unwrap_or(u32::MAX).to_be_bytes();
    let sum = crc32fast::hash(record).to_be_bytes();
    record
        .chunks(PART_BYTES)
        .map(|part| {
            let mut value = Vec::with_capacity(PART_HEADER_BYTES + part.len());
            value.extend_from_slice(&len);
            value.extend_from_slice(&sum);
            value.extend_from_slice(part);
            value
        })
        .collect()
}

/// Puts records together again from keys and values in the order of the keys.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    key: Vec<u8>,
    kind: Kind,
    len: usize,
    sum: u32,
    parts: u16,
    bytes: Vec<u8>,
}

impl Joiner {
    /// Takes the next value. Answers with a record when it was the last part of one.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<Option<(Kind, Vec<u8>)>, String> {
        let damaged = |what: &str| format!("key {key:02x?}: {what}");
        let (name, part) = key.split_last_chunk::<2>().ok_or_else(|| damaged("too short"))?;
        let part = u16::from_be_bytes(*part);
        let (header, bytes) =
            value.split_first_chunk::<8>().ok_or_else(|| damaged("its value is too short"))?;
        let [a, b, c, d, sum @ ..] = *header;
        let (len, sum) = (u32::from_be_bytes([a, b, c, d]) as usize, u32::from_be_bytes(sum));
        let mut open = match self.open.take() {
            None if part == 0 => {
                let kind =
                    name.first().and_then(|byte| Kind::ALL.into_iter().find(|kind| kind.byte() == *byte));
                let kind = kind.ok_or_else(|| damaged("unknown kind"))?;
                Open { key: name.to_owned(), kind, len, sum, parts: 0, bytes: Vec::new() }
            }
            None => return Err(damaged("a part without the ones before it")),
            Some(open) => open,
        };
        if open.key != name || open.parts != part || open.len != len || open.sum != sum {
            return Err(damaged("it does not continue the record before it"));
        }
        open.parts += 1;
        open.bytes.extend_from_slice(bytes);
        if open.bytes.len() < open.len {
            self.open = Some(open);
            return Ok(None);
        }
        if open.bytes.len() > open.len || crc32fast::hash(&open.bytes) != open.sum {
            return Err(damaged("its checksum does not match"));
        }
        Ok(Some((open.kind, open.bytes)))
    }

    /// Err when a record was begun and not ended.
    pub(crate) fn end(self) -> Result<(), String> {
        self.open.map_or(Ok(()), |open| Err(format!("key {:02x?}: its last part is missing", open.key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_these_exact_bytes() {
        let id = EntryId(uuid::Uuid::from_u128(0x0102));
        assert_eq!(RecordKey::meta().part(0), [b'm', 0, 0, 0, 0]);
        assert_eq!(
            RecordKey::entry(id).part(1),
            [b'e', 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 1]
        );
        let domain: DomainName = "a.example.com".parse().unwrap();
        assert_eq!(RecordKey::resolution(&domain).part(0), b"r\x00\x0da.example.com\x00\x00");
        assert_eq!(RecordKey::token("ops").part(258), b"t\x00\x03ops\x01\x02");
        assert_eq!(RecordKey::kept("ops\0k").part(0), b"k\x00\x05ops\x00k\x00\x00");
        assert_eq!(split(&[7, 8]), [[0, 0, 0, 2, 0x00, 0x43, 0x0c, 0x0a, 7, 8]]);
    }

    #[test]
    fn long_records_are_cut_below_four_kibibytes_and_joined_again() {
        let record: Vec<u8> = (0..20_000_u32).map(|n| n as u8).collect();
        let parts = split(&record);
        assert!(parts.len() == 5 && parts.iter().all(|part| part.len() <= MAX_VALUE_BYTES));
        let key = RecordKey::token("long");
        let mut joiner = Joiner::default();
        for (number, part) in parts.iter().enumerate() {
            let joined = joiner.push(&key.part(number as u16), part).unwrap();
            assert_eq!(joined.is_some(), number == 4);
            if let Some((kind, bytes)) = joined {
                assert_eq!((kind, bytes), (Kind::Token, record.clone()));
            }
        }
        joiner.end().unwrap();

        let mut joiner = Joiner::default();
        joiner.push(&key.part(0), &parts[0]).unwrap();
        joiner.push(&key.part(2), &parts[2]).unwrap_err();
        let mut joiner = Joiner::default();
        joiner.push(&key.part(0), &parts[0]).unwrap();
        joiner.end().unwrap_err();
    }
}

//! Bytes of every record this crate keeps: one version byte, then bincode 2 with its standard configuration (little
//! endian, variable integers). Decoding is bounded, and what is left over after a record is an error.
//!
//! Hard to change: a record's shape is frozen once written. Enums grow at their end; a new field means a new enum
//! variant or a new record version, because bincode has no optional trailing fields.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version this build writes. It reads this one only, there is no older.
pub const RECORD_VERSION: u8 = 1;
/// Largest record, version byte included. Batches are kept far below it by those who propose them.
pub const MAX_RECORD_BYTES: usize = 16 * 1024 * 1024;

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MAX_RECORD_BYTES>,
> = bincode::config::standard().with_limit::<MAX_RECORD_BYTES>();

/// Puts a record into bytes.
///
/// # Errors
/// [`RecordError::TooLarge`] beyond [`MAX_RECORD_BYTES`].
pub fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, RecordError> {
    let mut bytes = vec![RECORD_VERSION];
    bincode::serde::encode_into_std_write(record, &mut bytes, CONFIG)
        .map_err(|error| RecordError::Malformed(error.to_string()))?;
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(RecordError::TooLarge(bytes.len()));
    }
    Ok(bytes)
}

/// How long [`encode`]'s answer would be, without keeping it.
///
/// # Errors
/// Those of [`encode`].
pub fn encoded_len<T: Serialize>(record: &T) -> Result<usize, RecordError> {
    let body = bincode::serde::encode_into_std_write(record, &mut io::sink(), CONFIG)
        .map_err(|error| RecordError::Malformed(error.to_string()))?;
    match body + 1 {
        len if len > MAX_RECORD_BYTES => Err(RecordError::TooLarge(len)),
        len => Ok(len),
    }
}

/// Reads a record.
///
/// # Errors
/// [`RecordError`] for anything that is not exactly one record of a version this build knows.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(RecordError::TooLarge(bytes.len()));
    }
    let Some((&version, body)) = bytes.split_first() else { return Err(RecordError::Empty) };
    if version != RECORD_VERSION {
        return Err(RecordError::Version(version));
    }
    let (record, read) = bincode::serde::decode_from_slice(body, CONFIG)
        .map_err(|error| RecordError::Malformed(error.to_string()))?;
    if read != body.len() {
        return Err(RecordError::Trailing(body.len() - read));
    }
    Ok(record)
}

/// Why bytes are not a record, or a value cannot become one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// No bytes at all.
    #[error("empty record")]
    Empty,
    /// A record of another version.
    #[error("record version {0}, this build reads version {RECORD_VERSION}")]
    Version(u8),
    /// Over the limit.
    #[error("record of {0} bytes, at most {MAX_RECORD_BYTES} are allowed")]
    TooLarge(usize),
    /// Truncated or not bincode of this shape.
    #[error("malformed record: {0}")]
    Malformed(String),
    /// Bytes after the end of the record.
    #[error("{0} bytes after the end of the record")]
    Trailing(usize),
}

impl From<RecordError> for io::Error {
    fn from(error: RecordError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_decodes_and_its_length_is_known_beforehand() {
        let record = ("name".to_owned(), Some(7_u64));
        let bytes = encode(&record).unwrap();
        assert_eq!(encoded_len(&record).unwrap(), bytes.len());
        assert_eq!(decode::<(String, Option<u64>)>(&bytes).unwrap(), record);
    }

    #[test]
    fn other_versions_short_and_long_records_are_refused() {
        let mut bytes = encode(&5_u64).unwrap();
        assert!(matches!(decode::<u64>(&[]), Err(RecordError::Empty)));
        assert!(matches!(decode::<u64>(&bytes[..1]), Err(RecordError::Malformed(_))));
        bytes.push(0);
        assert_eq!(decode::<u64>(&bytes), Err(RecordError::Trailing(1)));
        bytes[0] = 9;
        assert_eq!(decode::<u64>(&bytes), Err(RecordError::Version(9)));
    }
}

//! The frame around a batch: what one write puts into a segment, and what one sync makes durable.
//!
//! ```text
//! magic       4   "OGB" 0x01
//! length      u32 of the payload, never 0
//! sequence    u64 one more than the batch before, over all segments
//! salt        u64 the segment's
//! sum         u32 CRC32C of the 24 bytes before and the payload
//! header sum  u32 CRC32C of the 28 bytes before
//! payload
//! ```
//! Little endian. The length has a sum of its own, because a flipped bit in it would otherwise make a batch look as if
//! it ended beyond the file, as torn ones do. The salt is random, so that neither the rest of a removed file nor what a
//! client wrote into a comment can pass for a batch.

pub(super) const HEADER_BYTES: usize = 32;
/// Longest payload: a batch is closed at [`super::queue::BATCH_BYTES`], and one record more fits.
pub(super) const MAX_PAYLOAD_BYTES: usize = 32 * 1024 * 1024;
const ZERO_BLOCK_BYTES: usize = 4096;
const MAGIC: [u8; 4] = *b"OGB\x01";

/// A header whose own sum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) len: usize,
    pub(super) sequence: u64,
    sum: u32,
}

/// Puts the header in front of a payload: `frame` begins with [`HEADER_BYTES`] that are overwritten.
pub(super) fn close(frame: &mut [u8], sequence: u64, salt: u64) {
    let (header, payload) = frame.split_at_mut(HEADER_BYTES);
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&len.to_le_bytes());
    header[8..16].copy_from_slice(&sequence.to_le_bytes());
    header[16..24].copy_from_slice(&salt.to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&header[..24]), payload);
    header[24..28].copy_from_slice(&sum.to_le_bytes());
    let header_sum = crc32c::crc32c(&header[..28]);
    header[28..].copy_from_slice(&header_sum.to_le_bytes());
}

/// The header at the start of `bytes`, if one of this segment is there. Its payload may still be damaged.
pub(super) fn header(bytes: &[u8], salt: u64) -> Option<Header> {
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
    let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let long = |at: usize| u64::from(number(at)) | u64::from(number(at + 4)) << 32;
    let len = number(4) as usize;
    let valid = header[..4] == MAGIC
        && number(28) == crc32c::crc32c(&header[..28])
        && long(16) == salt
        && (1..=MAX_PAYLOAD_BYTES).contains(&len);
    valid.then(|| Header { len, sequence: long(8), sum: number(24) })
}

impl Header {
    /// The payload, if all of it is there and right. `bytes` begin with this header.
    pub(super) fn payload<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let payload = bytes.get(HEADER_BYTES..HEADER_BYTES + self.len)?;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..24]), payload);
        (sum == self.sum).then_some(payload)
    }
}

/// The first intact header in `bytes` with a sequence other than `expected`, wherever it starts.
pub(super) fn find_other(bytes: &[u8], salt: u64, expected: u64) -> Option<u64> {
    let bytes = without_zeros(bytes);
    let starts = bytes.windows(MAGIC.len()).enumerate().filter(|(_, window)| **window == MAGIC);
    starts
        .filter_map(|(at, _)| header(&bytes[at..], salt))
        .map(|header| header.sequence)
        .find(|sequence| *sequence != expected)
}

/// Without the blocks of zeros at the end, of which there may be megabytes.
fn without_zeros(mut bytes: &[u8]) -> &[u8] {
    while let Some((rest, block)) = bytes.split_last_chunk::<ZERO_BLOCK_BYTES>()
        && *block == [0; ZERO_BLOCK_BYTES]
    {
        bytes = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Vec<u8> {
        let mut frame = vec![0; HEADER_BYTES];
        frame.extend_from_slice(b"payload");
        close(&mut frame, 0x0102, 0x0304);
        frame
    }

    #[test]
    fn a_frame_has_these_exact_bytes() {
        let hex: String = frame().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "4f4742010700000002010000000000000403000000000000e3a1d38bf6f6b3fa7061796c6f6164");
    }

    #[test]
    fn any_flipped_bit_is_seen_and_one_in_the_header_is_told_from_one_in_the_payload() {
        for bit in 0..frame().len() * 8 {
            let mut flipped = frame();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let seen = header(&flipped, 0x0304);
            assert_eq!(seen.is_some(), bit / 8 >= HEADER_BYTES);
            assert_eq!(seen.and_then(|header| header.payload(&flipped)), None);
        }
        assert_eq!(header(&frame(), 0x0304).unwrap().payload(&frame()), Some(&b"payload"[..]));
        assert_eq!(header(&frame(), 0x0305), None, "another segment's");
    }

    #[test]
    fn a_later_batch_is_found_behind_damage() {
        let mut bytes = vec![0x4f; 1001];
        bytes.extend_from_slice(&frame());
        assert_eq!(find_other(&bytes, 0x0304, 0x0101), Some(0x0102));
        assert_eq!(find_other(&bytes, 0x0304, 0x0102), None, "a torn batch is not behind itself");
        assert_eq!(find_other(&bytes, 0x0305, 0), None);
    }
}

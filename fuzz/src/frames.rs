//! The feed's frames: whatever decodes means one thing only, and nothing small asks for a lot of memory.

use std::fmt::Debug;

use allowlist::codec::{decode, encode};
use allowlist::feed::{ToGateway, ToServer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::allocation::peak;

/// What a list may reserve on the word of its length alone, before its elements come (serde's own limit), for each of the
/// lists that may be open at once.
const RESERVED_BYTES: usize = 4 * 1024 * 1024;
/// The smallest element takes 7 bytes on the wire and 28 in memory, in a list that doubles as it grows.
const BYTES_PER_BYTE: usize = 32;

/// A server's frame, as gateways read it.
pub fn to_gateway(bytes: &[u8]) {
    check::<ToGateway>(bytes);
}

/// A gateway's frame, as servers read it.
pub fn to_server(bytes: &[u8]) {
    check::<ToServer>(bytes);
}

fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let (frame, most) = peak(|| decode::<T>(bytes));
    let limit = RESERVED_BYTES + BYTES_PER_BYTE * bytes.len();
    assert!(most <= limit, "{} bytes made the decoder take {most}, over {limit}", bytes.len());
    let Ok(frame) = frame else { return };
    let again = match encode(&frame) {
        Ok(again) => again,
        Err(error) => unreachable!("what was read cannot be written: {error}: {frame:?}"),
    };
    assert_eq!(decode::<T>(&again).as_ref(), Ok(&frame), "written and read again it is something else");
}

//! Bytes of feed frames: one version byte, then bincode 2 with its standard configuration (little endian, variable
//! integers). Decoding is bounded, and what is left over after a frame is an error.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version this build writes.
pub const FRAME_VERSION: u8 = 1;
/// Largest frame, version byte included.
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MAX_FRAME_BYTES>,
> = bincode::config::standard().with_limit::<MAX_FRAME_BYTES>();

/// Puts a frame into bytes.
///
/// # Errors
/// [`CodecError::TooLarge`] when it would be longer than [`MAX_FRAME_BYTES`].
pub fn encode<T: Serialize>(frame: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![FRAME_VERSION];
    bincode::serde::encode_into_std_write(frame, &mut bytes, CONFIG)
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    if bytes.len() > MAX_FRAME_BYTES {
        return Err(CodecError::TooLarge(bytes.len()));
    }
    Ok(bytes)
}

/// Reads a frame.
///
/// # Errors
/// [`CodecError`] for anything that is not exactly one frame of a version this build knows.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_FRAME_BYTES {
        return Err(CodecError::TooLarge(bytes.len()));
    }
    let (&version, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if version != FRAME_VERSION {
        return Err(CodecError::Version(version));
    }
    let (frame, read) = bincode::serde::decode_from_slice(body, CONFIG)
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    match body.len() - read {
        0 => Ok(frame),
        trailing => Err(CodecError::Trailing(trailing)),
    }
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// No bytes at all.
    #[error("empty frame")]
    Empty,
    /// A frame of another version.
    #[error(
        "frame version {0}, this build reads version {FRAME_VERSION}: the two sides are releases too far apart"
    )]
    Version(u8),
    /// Over the limit.
    #[error("frame of {0} bytes, at most {MAX_FRAME_BYTES} are allowed")]
    TooLarge(usize),
    /// Truncated or not bincode of this shape.
    #[error("malformed frame: {0}")]
    Malformed(String),
    /// Bytes after the end of the frame.
    #[error("{0} bytes after the end of the frame")]
    Trailing(usize),
}

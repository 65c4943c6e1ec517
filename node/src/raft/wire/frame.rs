//! Values as frames and back.

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::codec::LengthDelimitedCodec;

use super::{MAX_FRAME_BYTES, WIRE_VERSION};

/// A frame that is none, or a value too large for one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WireError(String);

impl From<bincode::error::EncodeError> for WireError {
    fn from(error: bincode::error::EncodeError) -> Self {
        Self(format!("encode frame: {error}"))
    }
}

impl From<std::io::Error> for WireError {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

pub(super) fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_FRAME_BYTES>()
}

/// Cuts the byte stream into frames; a longer one ends the connection.
pub(crate) fn framing() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME_BYTES).new_codec()
}

/// One frame without its length.
///
/// # Errors
/// [`WireError`] when the value is larger than [`MAX_FRAME_BYTES`].
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, WireError> {
    let mut frame = BytesMut::with_capacity(256);
    frame.put_u8(WIRE_VERSION);
    let mut writer = frame.writer();
    bincode::serde::encode_into_std_write(value, &mut writer, config())?;
    let frame = writer.into_inner().freeze();
    if frame.len() > MAX_FRAME_BYTES {
        return Err(WireError(format!(
            "a frame of {} bytes, at most {MAX_FRAME_BYTES} can be sent",
            frame.len()
        )));
    }
    Ok(frame)
}

/// Reads one frame.
///
/// # Errors
/// [`WireError`] for another version, garbage or bytes left over.
pub(crate) fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, WireError> {
    match frame.split_first() {
        Some((&WIRE_VERSION, body)) => decode_whole(body),
        Some((version, _)) => Err(WireError(format!(
            "a frame of version {version}, this node speaks {WIRE_VERSION}: upgrade one node after the other"
        ))),
        None => Err(WireError("an empty frame".to_owned())),
    }
}

pub(super) fn decode_whole<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let (value, read) = bincode::serde::decode_from_slice(bytes, config())
        .map_err(|error| WireError(format!("decode frame: {error}")))?;
    match bytes.len() - read {
        0 => Ok(value),
        left => Err(WireError(format!("decode frame: {left} bytes left over"))),
    }
}

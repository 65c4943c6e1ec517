//! Messages to and from the kernel's netfilter subsystems: [`attribute`] writes and reads what they are made of,
//! [`socket`] carries them, [`answer`] parts what comes back, [`listener`] hears what the kernel tells unasked.

pub(super) mod answer;
pub(super) mod attribute;
pub(super) mod listener;
pub(super) mod socket;

/// `nlmsghdr`.
pub(super) const NLMSG_HEADER_BYTES: usize = 16;
/// `nlmsghdr` and `nfgenmsg`.
pub(super) const HEADERS_BYTES: usize = NLMSG_HEADER_BYTES + 4;

/// Begins a message to a subsystem's command. [`seal`] fills in length and number.
pub(super) fn begin(subsystem: u16, command: u16, flags: i32, family: u8) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(256);
    let kind = (subsystem << 8) | command;
    let flags = (flags | libc::NLM_F_REQUEST) as u16;
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(&flags.to_ne_bytes());
    buffer.extend_from_slice(&[0; 8]);
    buffer.extend_from_slice(&[family, 0, 0, 0]);
    buffer
}

/// The bytes to send, numbered `sequence`.
pub(super) fn seal(mut buffer: Vec<u8>, sequence: u32) -> Vec<u8> {
    let length = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
    buffer[0..4].copy_from_slice(&length.to_ne_bytes());
    buffer[8..12].copy_from_slice(&sequence.to_ne_bytes());
    buffer
}

//! Parts datagrams into answers. Whatever arrives, reading it ends and does not panic.

use super::attribute::Attributes;
use super::{HEADERS_BYTES, NLMSG_HEADER_BYTES};

/// `IPSET_ATTR_LINENO`: ipset alone writes into the request that it sends back.
const IPSET_ATTR_LINENO: u16 = 9;

/// One message of an answer.
#[derive(Debug, Clone, Copy)]
pub(in crate::firewall) enum Answer<'a> {
    /// End of a dump, or success.
    Done,
    /// Positive error code, and the line of the batch it struck.
    Refused { code: i32, line: Option<u32> },
    /// Attributes of a message of the subsystem.
    Data(Attributes<'a>),
}

/// Parts a datagram into the answers to `sequence`. Messages for others and of other subsystems are left out; a message
/// that does not fit ends it. The flag says that the dump was interrupted by a change.
pub(in crate::firewall) fn answers(
    datagram: &[u8],
    subsystem: u16,
    sequence: u32,
) -> (Vec<Answer<'_>>, bool) {
    let mut rest = datagram;
    let mut answers = Vec::new();
    let mut interrupted = false;
    while let Some(header) = rest.first_chunk::<NLMSG_HEADER_BYTES>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        let number = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let Some(payload) = rest.get(NLMSG_HEADER_BYTES..length) else { break };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        if number != sequence {
            continue;
        }
        interrupted |= flags & libc::NLM_F_DUMP_INTR as u16 != 0;
        if kind == libc::NLMSG_ERROR as u16 || kind == libc::NLMSG_DONE as u16 {
            answers.push(verdict(payload));
        } else if kind >> 8 == subsystem {
            answers.push(Answer::Data(Attributes(payload.get(4..).unwrap_or_default())));
        }
    }
    (answers, interrupted)
}

/// Reads an error or end message: a code and, in an error that struck a batch, the request with the line filled in.
pub(in crate::firewall) fn verdict(payload: &[u8]) -> Answer<'_> {
    let code = payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if code == 0 {
        return Answer::Done;
    }
    let request = payload.get(4 + HEADERS_BYTES..).unwrap_or_default();
    let line = Attributes(request).find(IPSET_ATTR_LINENO).and_then(|line| line.as_u32_native());
    Answer::Refused { code: code.saturating_neg(), line: line.filter(|line| *line != 0) }
}

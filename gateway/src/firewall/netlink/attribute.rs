//! Netlink attributes: type, length, value, padded to four bytes (`linux/netlink.h`).

/// Bytes of an attribute's header.
const HEADER_BYTES: usize = 4;
/// The value holds attributes.
const NESTED: u16 = 1 << 15;
/// The value is in network byte order.
const NET_BYTE_ORDER: u16 = 1 << 14;

/// Writes attributes to the end of a buffer.
pub(in crate::firewall) struct Writer<'a>(pub(in crate::firewall) &'a mut Vec<u8>);

/// Where an open nest began.
#[must_use]
pub(in crate::firewall) struct Nest(usize);

impl Writer<'_> {
    pub(in crate::firewall) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(HEADER_BYTES + value.len()).unwrap_or(u16::MAX);
        debug_assert_eq!(usize::from(length), HEADER_BYTES + value.len());
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// A string with its NUL.
    pub(in crate::firewall) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    pub(in crate::firewall) fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    /// The one integer ipset takes in the machine's order: a line number.
    pub(in crate::firewall) fn u32_native(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// Big-endian bytes, flagged as such; ipset refuses integers without the flag.
    pub(in crate::firewall) fn network(&mut self, kind: u16, value: &[u8]) {
        self.bytes(kind | NET_BYTE_ORDER, value);
    }

    pub(in crate::firewall) fn open(&mut self, kind: u16) -> Nest {
        let nest = Nest(self.0.len());
        self.bytes(kind | NESTED, &[]);
        nest
    }

    pub(in crate::firewall) fn close(&mut self, Nest(at): Nest) {
        let length = u16::try_from(self.0.len() - at).unwrap_or(u16::MAX);
        debug_assert_eq!(usize::from(length), self.0.len() - at);
        if let Some(field) = self.0.get_mut(at..at + 2) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
    }
}

/// One attribute as read.
#[derive(Debug, Clone, Copy)]
pub(in crate::firewall) struct Attribute<'a> {
    /// Without the flag bits.
    pub(in crate::firewall) kind: u16,
    pub(in crate::firewall) value: &'a [u8],
}

impl<'a> Attribute<'a> {
    pub(in crate::firewall) fn nested(&self) -> Attributes<'a> {
        Attributes(self.value)
    }

    pub(in crate::firewall) fn as_u8(&self) -> Option<u8> {
        self.value.first().copied()
    }

    pub(in crate::firewall) fn as_u16_network(&self) -> Option<u16> {
        self.value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    }

    pub(in crate::firewall) fn as_u32_network(&self) -> Option<u32> {
        self.value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    pub(in crate::firewall) fn as_u32_native(&self) -> Option<u32> {
        self.value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
    }

    pub(in crate::firewall) fn as_u64_network(&self) -> Option<u64> {
        self.value.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }

    pub(in crate::firewall) fn as_text(&self) -> Option<&'a str> {
        let text = self.value.split(|byte| *byte == 0).next()?;
        std::str::from_utf8(text).ok()
    }
}

/// Reads attributes one by one; stops at the first that does not fit into what is left.
#[derive(Debug, Clone, Copy)]
pub(in crate::firewall) struct Attributes<'a>(pub(in crate::firewall) &'a [u8]);

impl<'a> Attributes<'a> {
    pub(in crate::firewall) fn find(mut self, kind: u16) -> Option<Attribute<'a>> {
        Iterator::find(&mut self, |attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let length = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..4)?.first_chunk()?);
        let value = self.0.get(HEADER_BYTES..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute { kind: kind & !(NESTED | NET_BYTE_ORDER), value })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut buffer = Vec::new();
        let mut writer = Writer(&mut buffer);
        let nest = writer.open(7);
        writer.text(2, "og4o");
        writer.network(4, &443u16.to_be_bytes());
        writer.u32_native(9, 17);
        writer.close(nest);
        writer.u8(1, 7);
        assert_eq!(buffer.len() % 4, 0);
        let all = Attributes(&buffer);
        let nest = all.find(7).unwrap().nested();
        assert_eq!(nest.find(2).unwrap().as_text(), Some("og4o"));
        assert_eq!(nest.find(4).unwrap().as_u16_network(), Some(443));
        assert_eq!(nest.find(9).unwrap().as_u32_native(), Some(17));
        assert_eq!(all.find(1).unwrap().as_u8(), Some(7));
        assert_eq!(all.count(), 2);
    }

    proptest! {
        #[test]
        fn garbage_neither_panics_nor_loops(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let read = Attributes(&bytes).fold(0, |read, attribute| read + attribute.nested().count().min(1));
            prop_assert!(read <= bytes.len() / HEADER_BYTES + 1);
        }
    }
}

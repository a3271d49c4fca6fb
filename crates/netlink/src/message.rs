//! Netlink messages and their attributes (`netlink(7)`): building, and taking apart.

/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Size of `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// The bits of an attribute's type that are no flags.
const TYPE_MASK: u16 = 0x3fff;

/// Messages and attributes begin at multiples of four bytes.
fn aligned(len: usize) -> usize {
    len.saturating_add(3) & !3
}

/// A message to the kernel that is being built.
#[derive(Clone, Debug)]
pub struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
    oversized: bool,
}

impl Request {
    /// An empty message of type `kind` (`RTM_*`) with `flags` (`NLM_F_*`); what makes it a request
    /// with an answer is added when it is sent.
    #[must_use]
    pub fn new(kind: u16, flags: u16) -> Self {
        Self {
            kind,
            flags,
            body: Vec::with_capacity(128),
            oversized: false,
        }
    }

    /// Appends the fixed structure that begins the message.
    #[must_use]
    pub fn fixed(mut self, bytes: &[u8]) -> Self {
        self.body.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Appends an attribute.
    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let Ok(len) = u16::try_from(value.len().saturating_add(ATTRIBUTE)) else {
            self.oversized = true;
            return self;
        };
        self.body.extend(len.to_ne_bytes());
        self.body.extend(kind.to_ne_bytes());
        self.body.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends an attribute if there is a value.
    #[must_use]
    pub fn optional(self, kind: u16, value: Option<&[u8]>) -> Self {
        match value {
            Some(value) => self.attribute(kind, value),
            None => self,
        }
    }

    /// Appends an attribute made of attributes.
    #[must_use]
    pub fn nested(self, kind: u16, build: impl FnOnce(Self) -> Self) -> Self {
        let inner = build(Self::new(0, 0));
        let mut outer = self.attribute(kind, &inner.body);
        outer.oversized |= inner.oversized;
        outer
    }

    fn pad(&mut self) {
        self.body.resize(aligned(self.body.len()), 0);
    }

    /// What follows the header, for those who take it apart again.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The message's type.
    #[must_use]
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// The message as it is sent, or nothing if an attribute was too long for its length field.
    pub(crate) fn finish(&self, flags: u16, sequence: u32) -> Option<Vec<u8>> {
        let len = u32::try_from(self.body.len().checked_add(HEADER)?).ok()?;
        if self.oversized {
            return None;
        }
        let mut bytes = Vec::with_capacity(HEADER.saturating_add(self.body.len()));
        bytes.extend(len.to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((self.flags | flags).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend_from_slice(&self.body);
        Some(bytes)
    }
}

/// A message of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// `RTM_*` or `NLMSG_*`.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// That of the request it answers.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// The messages in a datagram, up to its end or the first one with an impossible length.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = usize::try_from(crate::u32_at(bytes, 0)?).ok()?;
        let message = Message {
            kind: crate::u16_at(bytes, 4)?,
            flags: crate::u16_at(bytes, 6)?,
            sequence: crate::u32_at(bytes, 8)?,
            payload: bytes.get(HEADER..len)?,
        };
        bytes = bytes.get(aligned(len)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes`: their types without flags, and their values; up to the end or the
/// first one with an impossible length.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(crate::u16_at(bytes, 0)?);
        let kind = crate::u16_at(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(ATTRIBUTE..len)?;
        bytes = bytes.get(aligned(len)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_taken_apart_is_what_was_built() {
        let request = Request::new(16, 5)
            .fixed(&[1, 2, 3, 4])
            .attribute(3, b"lo\0")
            .nested(18, |inner| inner.attribute(1, b"veth"));
        let bytes = request.finish(1, 7).unwrap();
        let mut all = messages(&bytes);
        let message = all.next().unwrap();
        assert_eq!(
            (message.kind, message.flags, message.sequence),
            (16, 5 | 1, 7)
        );
        assert!(all.next().is_none());
        let attributes: Vec<_> = super::attributes(&message.payload[4..]).collect();
        assert_eq!(attributes[0], (3, &b"lo\0"[..]));
        assert_eq!(attributes[1].0, 18);
        let inner: Vec<_> = super::attributes(attributes[1].1).collect();
        assert_eq!(inner, [(1, &b"veth"[..])]);
    }

    #[test]
    fn request_with_an_attribute_beyond_its_length_field_is_not_sent() {
        let long = vec![0; 70_000];
        let request = Request::new(16, 0).nested(1, |inner| inner.attribute(2, &long));
        assert!(request.finish(0, 1).is_none());
    }

    #[test]
    fn messages_with_a_length_below_the_header_end_the_list() {
        let mut bytes = Request::new(16, 0).finish(0, 1).unwrap();
        bytes[0] = 15;
        assert_eq!(messages(&bytes).count(), 0);
        bytes[0] = 0;
        assert_eq!(messages(&bytes).count(), 0);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_taken_apart_without_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            for message in messages(&bytes) {
                let _ = attributes(message.payload).count();
                let _ = crate::Link::parse(&message);
                let _ = crate::Address::parse(&message);
                let _ = crate::Route::parse(&message);
                let _ = crate::Neighbour::parse(&message);
            }
            let _ = attributes(&bytes).count();
        }

        #[test]
        fn any_payload_of_a_known_kind_is_read_without_panic(
            kind in proptest::sample::select(vec![16_u16, 20, 24, 28]),
            payload in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
        ) {
            let message = Message { kind, flags: 0, sequence: 0, payload: &payload };
            let _ = crate::Link::parse(&message);
            let _ = crate::Address::parse(&message);
            let _ = crate::Route::parse(&message);
            let _ = crate::Neighbour::parse(&message);
        }
    }
}

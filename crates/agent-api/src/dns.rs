//! How DNS messages travel between the agent and the host.
//!
//! A name server on a loopback address (RFC 1035; Docker has one at 127.0.0.11 in the network
//! namespace of a container) is another one in the guest, so the agent stands in for it there and the
//! host asks the real one. One stream joins the two: queries one way, answers the other, each after
//! a [`Head`]. The agent numbers the queries by the messages' own ids and the host answers in any
//! order, or not at all.

/// Bytes of a DNS message's header: there is no shorter message.
pub const HEADER: usize = 12;

/// Bytes of the longest query; longer ones get no answer.
pub const MAX_QUERY: usize = 4096;

/// Queries under way at a time; a further one takes the place of the oldest.
pub const OUTSTANDING: usize = 128;

/// Bytes of a [`Head`].
pub const HEAD: usize = 3;

/// How a client asked, and so how the server is asked: their answers differ in how long they may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Datagram,
    /// TCP.
    Stream,
}

/// What comes before a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// How it was asked.
    pub transport: Transport,
    /// Bytes of the message, at least [`HEADER`].
    pub length: u16,
}

impl Head {
    /// The head of a message; none if it is too short or too long to be one.
    #[must_use]
    pub fn of(transport: Transport, message: &[u8]) -> Option<Self> {
        let length = u16::try_from(message.len()).ok()?;
        (message.len() >= HEADER).then_some(Self { transport, length })
    }

    /// As it is sent: a byte for the transport, two for the length, the higher one first.
    #[must_use]
    pub fn encode(self) -> [u8; HEAD] {
        let transport = match self.transport {
            Transport::Datagram => 0,
            Transport::Stream => 1,
        };
        let [high, low] = self.length.to_be_bytes();
        [transport, high, low]
    }

    /// As it was received; none if it is no head.
    #[must_use]
    pub fn decode([transport, high, low]: [u8; HEAD]) -> Option<Self> {
        let transport = match transport {
            0 => Transport::Datagram,
            1 => Transport::Stream,
            _ => return None,
        };
        let length = u16::from_be_bytes([high, low]);
        (usize::from(length) >= HEADER).then_some(Self { transport, length })
    }
}

/// The id of a message; none if it is too short to be one.
#[must_use]
pub fn id(message: &[u8]) -> Option<u16> {
    let [high, low, ..] = *message.first_chunk::<HEADER>()?;
    Some(u16::from_be_bytes([high, low]))
}

/// Gives a message another id. One that is too short stays as it is.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some([high, low, ..]) = message.first_chunk_mut::<HEADER>() {
        [*high, *low] = id.to_be_bytes();
    }
}

/// Makes a query the answer that the server failed (`SERVFAIL`), upon which a resolver asks the
/// next one at once.
pub fn fail(query: &mut [u8]) {
    const RESPONSE: u8 = 0x80;
    const CODE: u8 = 0x0f;
    const SERVER_FAILURE: u8 = 2;
    if let Some([_, _, flags, code, ..]) = query.first_chunk_mut::<HEADER>() {
        *flags |= RESPONSE;
        *code = (*code & !CODE) | SERVER_FAILURE;
    }
}

/// What waits for an answer, by number. Holds [`OUTSTANDING`] at most and forgets the oldest first.
#[derive(Debug)]
pub struct Outstanding<T> {
    next: u16,
    slots: Vec<Option<(u16, T)>>,
}

impl<T> Default for Outstanding<T> {
    fn default() -> Self {
        Self {
            next: 0,
            slots: std::iter::repeat_with(|| None).take(OUTSTANDING).collect(),
        }
    }
}

impl<T> Outstanding<T> {
    /// Keeps `value` and returns its number, which no other kept one has.
    pub fn put(&mut self, value: T) -> u16 {
        let number = self.next;
        self.next = number.wrapping_add(1);
        if let Some(slot) = self.slot(number) {
            *slot = Some((number, value));
        }
        number
    }

    /// What was kept under that number, if it still is.
    pub fn take(&mut self, number: u16) -> Option<T> {
        let slot = self.slot(number)?;
        slot.take_if(|(kept, _)| *kept == number)
            .map(|(_, value)| value)
    }

    fn slot(&mut self, number: u16) -> Option<&mut Option<(u16, T)>> {
        self.slots.get_mut(usize::from(number) % OUTSTANDING)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn head_any_bytes_are_refused_or_come_back_the_same(bytes: [u8; HEAD]) {
            match Head::decode(bytes) {
                Some(head) => {
                    prop_assert_eq!(head.encode(), bytes);
                    prop_assert!(usize::from(head.length) >= HEADER);
                }
                None => prop_assert!(bytes[0] > 1 || (bytes[1] == 0 && bytes[2] < 12)),
            }
        }

        #[test]
        fn id_set_is_read_and_nothing_else_changes(
            bytes in prop::collection::vec(any::<u8>(), 0..64), new: u16,
        ) {
            let mut changed = bytes.clone();
            set_id(&mut changed, new);
            prop_assert_eq!(id(&changed), (bytes.len() >= HEADER).then_some(new));
            prop_assert_eq!(changed.get(2..), bytes.get(2..));
            set_id(&mut changed, id(&bytes).unwrap_or_default());
            prop_assert_eq!(changed, bytes);
        }

        #[test]
        fn outstanding_any_order_gives_each_its_own(
            steps in prop::collection::vec(prop::option::of(any::<prop::sample::Index>()), 0..2000),
            first: u16,
        ) {
            let mut outstanding = Outstanding { next: first, ..Outstanding::default() };
            let mut kept = HashMap::new();
            let mut order = Vec::new();
            for (step, taken) in steps.into_iter().enumerate() {
                let number = match taken {
                    Some(index) if !order.is_empty() => *index.get(&order),
                    _ => {
                        let number = outstanding.put(step);
                        kept.insert(number, step);
                        order.push(number);
                        continue;
                    }
                };
                let place = order.iter().rposition(|other| *other == number).unwrap();
                let expected = (order.len() - place <= OUTSTANDING)
                    .then(|| kept.remove(&number))
                    .flatten();
                prop_assert_eq!(outstanding.take(number), expected);
            }
        }
    }

    #[test]
    fn outstanding_full_forgets_the_oldest() {
        let mut outstanding = Outstanding::default();
        let numbers: Vec<u16> = (0..=OUTSTANDING).map(|n| outstanding.put(n)).collect();
        assert_eq!(outstanding.take(numbers[0]), None);
        for (value, number) in numbers.into_iter().enumerate().skip(1) {
            assert_eq!(outstanding.take(number), Some(value));
        }
    }

    #[test]
    fn fail_query_becomes_an_answer_to_it() {
        let mut message = b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\0\x01x\0\0\x01\0\x01".to_vec();
        fail(&mut message);
        assert_eq!(message[..4], [0x12, 0x34, 0x81, 0x22]);
        assert_eq!(message[12..], b"\x01x\0\0\x01\0\x01"[..]);
    }
}

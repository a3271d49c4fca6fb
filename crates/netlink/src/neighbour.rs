//! Entries of the neighbour table that somebody made by hand (`RTM_*NEIGH`).

use std::net::IpAddr;

use crate::message::{Message, Request, attributes};

const NEW: u16 = 28;
const GET: u16 = 30;
/// Size of `struct ndmsg`.
const INFO: usize = 12;
const CREATE_OR_REPLACE: u16 = 0x500;

const DESTINATION: u16 = 1;
const ADDRESS: u16 = 2;

/// `NUD_PERMANENT`: nobody asks whether it is still true.
const PERMANENT: u16 = 0x80;
/// `NTF_PROXY`: an address to answer for.
const PROXY: u8 = 0x8;

/// Who has an address, as somebody has decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface's number.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// The hardware address behind it.
    pub address: Vec<u8>,
}

impl Neighbour {
    /// The request for the list of all of them.
    #[must_use]
    pub fn list() -> Request {
        Request::new(GET, 0).fixed(&[0; INFO])
    }

    /// Reads one from a message; none if it is no such message, or of an entry the kernel made.
    #[must_use]
    pub fn parse(message: &Message<'_>) -> Option<Self> {
        if message.kind != NEW {
            return None;
        }
        let info: &[u8; INFO] = message.payload.first_chunk()?;
        let [family, .., flags, _] = *info;
        if crate::u16_at(info, 8)? != PERMANENT || flags & PROXY != 0 {
            return None;
        }
        let (mut ip, mut address) = (None, Vec::new());
        for (kind, value) in attributes(message.payload.get(INFO..)?) {
            match kind {
                DESTINATION => ip = crate::ip(family, value),
                ADDRESS => address = value.to_vec(),
                _ => {}
            }
        }
        Some(Self {
            index: crate::u32_at(info, 4)?,
            ip: ip?,
            address,
        })
    }

    /// The request that makes it.
    #[must_use]
    pub fn add(&self) -> Request {
        let mut info = vec![crate::family(self.ip), 0, 0, 0];
        info.extend(self.index.to_ne_bytes());
        info.extend(PERMANENT.to_ne_bytes());
        info.extend([0, 0]);
        Request::new(NEW, CREATE_OR_REPLACE)
            .fixed(&info)
            .attribute(DESTINATION, &crate::octets(self.ip))
            .attribute(ADDRESS, &self.address)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_neighbour_written_is_the_same_when_read(
            index in any::<u32>(),
            ip in any::<IpAddr>(),
            address in any::<[u8; 6]>(),
        ) {
            let neighbour = Neighbour { index, ip, address: address.to_vec() };
            let request = neighbour.add();
            let message = Message {
                kind: request.kind(),
                flags: 0,
                sequence: 0,
                payload: request.body(),
            };
            prop_assert_eq!(Neighbour::parse(&message), Some(neighbour));
        }
    }

    #[test]
    fn neighbour_that_the_kernel_found_is_not_read() {
        let mut info = vec![2, 0, 0, 0, 3, 0, 0, 0];
        info.extend(0x02u16.to_ne_bytes());
        info.extend([0, 0]);
        let request = Request::new(NEW, 0)
            .fixed(&info)
            .attribute(DESTINATION, &[10, 0, 0, 1]);
        let message = Message {
            kind: NEW,
            flags: 0,
            sequence: 0,
            payload: request.body(),
        };
        assert_eq!(Neighbour::parse(&message), None);
    }
}

//! Addresses of interfaces (`RTM_*ADDR`).

use std::net::{IpAddr, Ipv4Addr};

use crate::message::{Message, Request, attributes};

const NEW: u16 = 20;
const DELETE: u16 = 21;
const GET: u16 = 22;
/// Size of `struct ifaddrmsg`.
const INFO: usize = 8;
const CREATE_OR_REPLACE: u16 = 0x500;

const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const BROADCAST: u16 = 4;
const CACHE_INFO: u16 = 6;
const FLAGS: u16 = 8;

/// The kernel is not to look for others with that address: it is in use already, by the interface it
/// is copied from.
const NO_DUPLICATE_DETECTION: u32 = 0x2;
/// Another one was found to have it.
const DUPLICATE: u32 = 0x8;
/// The kernel is not to make a route of it: routes are copied, too.
const NO_PREFIX_ROUTE: u32 = 0x200;

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface's number.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// The other end's, on a point-to-point connection.
    pub peer: Option<IpAddr>,
    /// Length of the network's prefix, bits.
    pub prefix_len: u8,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// The broadcast address.
    pub broadcast: Option<Ipv4Addr>,
    /// For how long it is valid, seconds; `u32::MAX` for ever.
    pub valid_s: u32,
    /// For how long it is used for new connections, seconds; `u32::MAX` for ever.
    pub preferred_s: u32,
}

impl Address {
    /// The request for the list of all of them.
    #[must_use]
    pub fn list() -> Request {
        Request::new(GET, 0).fixed(&[0; INFO])
    }

    /// Reads one from a message; none if it is no such message, or of an address that another
    /// machine has already.
    #[must_use]
    pub fn parse(message: &Message<'_>) -> Option<Self> {
        if message.kind != NEW {
            return None;
        }
        let info: &[u8; INFO] = message.payload.first_chunk()?;
        let [family, prefix_len, short_flags, scope, ..] = *info;
        let mut flags = u32::from(short_flags);
        let (mut local, mut address) = (None, None);
        let mut broadcast = None;
        let (mut preferred_s, mut valid_s) = (u32::MAX, u32::MAX);
        for (kind, value) in attributes(message.payload.get(INFO..)?) {
            match kind {
                LOCAL => local = crate::ip(family, value),
                ADDRESS => address = crate::ip(family, value),
                BROADCAST => broadcast = <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from),
                CACHE_INFO => {
                    preferred_s = crate::u32_at(value, 0)?;
                    valid_s = crate::u32_at(value, 4)?;
                }
                FLAGS => flags = crate::u32_of(value)?,
                _ => {}
            }
        }
        if flags & DUPLICATE != 0 {
            return None;
        }
        let ip = local.or(address)?;
        Some(Self {
            index: crate::u32_at(info, 4)?,
            ip,
            peer: address.filter(|peer| *peer != ip),
            prefix_len,
            scope,
            broadcast,
            valid_s,
            preferred_s,
        })
    }

    /// The request that gives it to its interface, without a route and without a look for others
    /// that have it.
    #[must_use]
    pub fn add(&self) -> Request {
        let mut cache_info = self.preferred_s.to_ne_bytes().to_vec();
        cache_info.extend(self.valid_s.to_ne_bytes());
        // When it was made and changed: the kernel's business.
        cache_info.extend([0; 8]);
        let flags = NO_PREFIX_ROUTE
            | match self.ip {
                IpAddr::V4(_) => 0,
                IpAddr::V6(_) => NO_DUPLICATE_DETECTION,
            };
        let broadcast = self.broadcast.map(|address| address.octets());
        self.named(NEW, CREATE_OR_REPLACE)
            .optional(BROADCAST, broadcast.as_ref().map(|octets| &octets[..]))
            .attribute(FLAGS, &flags.to_ne_bytes())
            .attribute(CACHE_INFO, &cache_info)
    }

    /// The request that takes it from its interface.
    #[must_use]
    pub fn remove(&self) -> Request {
        self.named(DELETE, 0)
    }

    fn named(&self, kind: u16, flags: u16) -> Request {
        let mut info = vec![crate::family(self.ip), self.prefix_len, 0, self.scope];
        info.extend(self.index.to_ne_bytes());
        Request::new(kind, flags)
            .fixed(&info)
            .attribute(LOCAL, &crate::octets(self.ip))
            .attribute(ADDRESS, &crate::octets(self.peer.unwrap_or(self.ip)))
    }

    /// Whether it is an IPv6 link-local address.
    #[must_use]
    pub fn is_ipv6_link_local(&self) -> bool {
        matches!(self.ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_address() -> impl Strategy<Value = Address> {
        let v4 = (
            any::<Ipv4Addr>(),
            any::<Option<Ipv4Addr>>(),
            any::<Option<Ipv4Addr>>(),
        );
        let v4 = v4.prop_map(|(ip, peer, b)| (IpAddr::V4(ip), peer.map(IpAddr::V4), b));
        let v6 = any::<(std::net::Ipv6Addr, Option<std::net::Ipv6Addr>)>();
        let v6 = v6.prop_map(|(ip, peer)| (IpAddr::V6(ip), peer.map(IpAddr::V6), None));
        let rest = any::<(u32, u8, u8, u32, u32)>();
        (prop_oneof![v4, v6], rest).prop_map(
            |((ip, peer, broadcast), (index, prefix_len, scope, valid_s, preferred_s))| Address {
                index,
                ip,
                peer: peer.filter(|peer| *peer != ip),
                prefix_len,
                scope,
                broadcast,
                valid_s,
                preferred_s,
            },
        )
    }

    proptest! {
        #[test]
        fn any_address_written_is_the_same_when_read(address in any_address()) {
            let request = address.add();
            let message = Message {
                kind: request.kind(),
                flags: 0,
                sequence: 0,
                payload: request.body(),
            };
            prop_assert_eq!(Address::parse(&message), Some(address));
        }
    }

    #[test]
    fn address_that_is_a_duplicate_is_not_read() {
        let request = Request::new(NEW, 0)
            .fixed(&[10, 64, 8, 0, 2, 0, 0, 0])
            .attribute(ADDRESS, &[0xfe; 16]);
        let message = Message {
            kind: NEW,
            flags: 0,
            sequence: 0,
            payload: request.body(),
        };
        assert_eq!(Address::parse(&message), None);
    }
}

//! Interfaces (`RTM_*LINK`).

use crate::message::{Message, Request, attributes};

const NEW: u16 = 16;
const GET: u16 = 18;
/// Size of `struct ifinfomsg`.
const INFO: usize = 16;

const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;
const LINK: u16 = 5;
const MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const AF_SPEC: u16 = 26;
const LINK_NETNS: u16 = 37;

/// `IFLA_INET6_CONF`, an array of numbers, and the index of `disable_ipv6` in it.
const INET6_CONF: u16 = 2;
const DISABLE_IPV6: usize = 26;
/// `IFLA_INET6_ADDR_GEN_MODE` and its value for "make no link-local address".
const INET6_GENERATE: u16 = 8;
const GENERATE_NONE: u8 = 1;

const FLAG_UP: u32 = 0x1;
const FLAG_LOOPBACK: u32 = 0x8;
const FLAG_NO_ARP: u32 = 0x80;

/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `ARPHRD_*`.
    pub hardware: u16,
    /// `IFF_*`.
    pub flags: u32,
    /// Bytes.
    pub mtu: u32,
    /// Hardware address.
    pub address: Vec<u8>,
    /// What made it: `veth`, `macvlan`, …; none for a driver of a piece of hardware.
    pub kind: Option<String>,
    /// The interface it stands on, or a veth's other end.
    pub lower: Option<u32>,
    /// Whether that one is in another namespace.
    pub lower_elsewhere: bool,
    /// The bridge or bond it is a port of.
    pub master: Option<u32>,
    /// Whether the kernel gives it an IPv6 link-local address when it comes up.
    pub makes_link_local: bool,
}

impl Link {
    /// The request for the list of all of them.
    #[must_use]
    pub fn list() -> Request {
        Request::new(GET, 0).fixed(&[0; INFO])
    }

    /// Reads one from a message; none if it is no such message.
    #[must_use]
    pub fn parse(message: &Message<'_>) -> Option<Self> {
        if message.kind != NEW {
            return None;
        }
        let mut link = Self {
            hardware: crate::u16_at(message.payload, 2)?,
            index: crate::u32_at(message.payload, 4)?,
            flags: crate::u32_at(message.payload, 8)?,
            name: String::new(),
            mtu: 0,
            address: Vec::new(),
            kind: None,
            lower: None,
            lower_elsewhere: false,
            master: None,
            makes_link_local: false,
        };
        for (kind, value) in attributes(message.payload.get(INFO..)?) {
            match kind {
                ADDRESS => link.address = value.to_vec(),
                NAME => link.name = crate::text(value),
                MTU => link.mtu = crate::u32_of(value)?,
                LINK => link.lower = crate::u32_of(value).filter(|index| *index != 0),
                LINK_NETNS => link.lower_elsewhere = true,
                MASTER => link.master = crate::u32_of(value).filter(|index| *index != 0),
                LINK_INFO => {
                    link.kind = attributes(value)
                        .find(|(kind, _)| *kind == INFO_KIND)
                        .map(|(_, name)| crate::text(name));
                }
                AF_SPEC => link.makes_link_local = makes_link_local(value),
                _ => {}
            }
        }
        Some(link)
    }

    /// Whether it carries Ethernet frames.
    #[must_use]
    pub fn is_ethernet(&self) -> bool {
        self.hardware == ETHERNET
    }

    /// Whether it is the loopback.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.flags & FLAG_LOOPBACK != 0
    }

    /// Whether it was switched on.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.flags & FLAG_UP != 0
    }

    /// Whether it does without ARP and neighbour discovery.
    #[must_use]
    pub fn has_no_arp(&self) -> bool {
        self.flags & FLAG_NO_ARP != 0
    }
}

fn makes_link_local(families: &[u8]) -> bool {
    let inet6 = attributes(families).find(|(family, _)| *family == u16::from(crate::AF_INET6));
    let Some((_, inet6)) = inet6 else {
        return false;
    };
    let mut makes = true;
    for (kind, value) in attributes(inet6) {
        match kind {
            INET6_CONF => {
                makes &= crate::u32_at(value, DISABLE_IPV6 * 4).is_none_or(|off| off == 0);
            }
            INET6_GENERATE => makes &= value.first() != Some(&GENERATE_NONE),
            _ => {}
        }
    }
    makes
}

/// What is to become of an interface.
#[derive(Clone, Debug)]
pub struct LinkChange {
    index: u32,
    flags: u32,
    change: u32,
    rest: Request,
}

impl LinkChange {
    /// Nothing so far, of the interface with this number.
    #[must_use]
    pub fn of(index: u32) -> Self {
        Self {
            index,
            flags: 0,
            change: 0,
            rest: Request::new(NEW, 0),
        }
    }

    /// Gives it a name; it must be down.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        let mut bytes = name.as_bytes().to_vec();
        bytes.push(0);
        self.rest = self.rest.attribute(NAME, &bytes);
        self
    }

    /// Sets its hardware address.
    #[must_use]
    pub fn address(mut self, address: &[u8]) -> Self {
        self.rest = self.rest.attribute(ADDRESS, address);
        self
    }

    /// Sets its MTU, bytes.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.rest = self.rest.attribute(MTU, &mtu.to_ne_bytes());
        self
    }

    /// Keeps the kernel from giving it an IPv6 link-local address.
    #[must_use]
    pub fn no_link_local(mut self) -> Self {
        self.rest = self.rest.nested(AF_SPEC, |families| {
            families.nested(u16::from(crate::AF_INET6), |inet6| {
                inet6.attribute(INET6_GENERATE, &[GENERATE_NONE])
            })
        });
        self
    }

    /// Switches it on or off.
    #[must_use]
    pub fn up(self, up: bool) -> Self {
        self.flag(FLAG_UP, up)
    }

    /// Whether it is to do without ARP and neighbour discovery.
    #[must_use]
    pub fn no_arp(self, without: bool) -> Self {
        self.flag(FLAG_NO_ARP, without)
    }

    fn flag(mut self, flag: u32, on: bool) -> Self {
        self.change |= flag;
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
        self
    }

    /// The request that does it.
    #[must_use]
    pub fn request(&self) -> Request {
        let mut info = vec![0; 4];
        info.extend(self.index.to_ne_bytes());
        info.extend(self.flags.to_ne_bytes());
        info.extend(self.change.to_ne_bytes());
        info.extend_from_slice(self.rest.body());
        Request::new(NEW, 0).fixed(&info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(request: &Request) -> Link {
        let message = Message {
            kind: request.kind(),
            flags: 0,
            sequence: 0,
            payload: request.body(),
        };
        Link::parse(&message).unwrap()
    }

    #[test]
    fn change_read_back_is_what_was_asked_for() {
        let change = LinkChange::of(7)
            .name("eth0")
            .address(&[2, 0, 0, 0, 0, 9])
            .mtu(9000)
            .up(true)
            .no_arp(true);
        let link = parsed(&change.request());
        assert_eq!(
            (link.index, link.name.as_str(), link.mtu),
            (7, "eth0", 9000)
        );
        assert_eq!(link.address, [2, 0, 0, 0, 0, 9]);
        assert!(link.is_up() && link.has_no_arp() && !link.is_loopback());
        assert!(!parsed(&change.up(false).request()).is_up());
    }

    #[test]
    fn link_local_is_made_unless_switched_off() {
        let conf = |disabled: u32| {
            let mut bytes = vec![0; DISABLE_IPV6 * 4];
            bytes.extend(disabled.to_ne_bytes());
            bytes
        };
        let link = |disabled: u32, mode: u8| {
            let body = Request::new(NEW, 0).fixed(&[0; INFO]).nested(AF_SPEC, |f| {
                f.nested(2, |inet| inet.attribute(1, &[0; 8]))
                    .nested(10, |inet6| {
                        inet6
                            .attribute(INET6_CONF, &conf(disabled))
                            .attribute(INET6_GENERATE, &[mode])
                    })
            });
            parsed(&body).makes_link_local
        };
        assert!(link(0, 0));
        assert!(!link(1, 0));
        assert!(!link(0, 1));
        assert!(!parsed(&LinkChange::of(1).request()).makes_link_local);
    }

    #[test]
    fn kind_and_lower_interface_are_read() {
        let body = Request::new(NEW, 0)
            .fixed(&[0; INFO])
            .attribute(LINK, &5u32.to_ne_bytes())
            .attribute(LINK_NETNS, &0u32.to_ne_bytes())
            .nested(LINK_INFO, |info| info.attribute(INFO_KIND, b"macvlan\0"));
        let link = parsed(&body);
        assert_eq!(link.kind.as_deref(), Some("macvlan"));
        assert_eq!((link.lower, link.lower_elsewhere), (Some(5), true));
    }
}

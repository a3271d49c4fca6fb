//! Routes of the main table (`RTM_*ROUTE`).

use std::net::IpAddr;

use crate::message::{Message, Request, attributes};

const NEW: u16 = 24;
const DELETE: u16 = 25;
const GET: u16 = 26;
/// Size of `struct rtmsg`.
const INFO: usize = 12;
const CREATE: u16 = 0x400;
/// Behind those to the same destination, which is the order they are listed in.
const APPEND: u16 = 0x800;

const DESTINATION: u16 = 1;
const OUTPUT: u16 = 4;
const GATEWAY: u16 = 5;
const PRIORITY: u16 = 6;
const PREFERRED_SOURCE: u16 = 7;
const METRICS: u16 = 8;
const MULTIPATH: u16 = 9;
const TABLE: u16 = 15;
const VIA: u16 = 18;
const ENCAPSULATION: u16 = 22;

const MAIN: u32 = 254;
const UNICAST: u8 = 1;
/// A route the kernel derived from another one.
const CLONED: u32 = 0x200;
/// `RTNH_F_ONLINK`: the gateway is reached directly, whatever the addresses say.
const ONLINK: u32 = 0x4;

/// A route of the main table to where packets can be sent (`RTN_UNICAST`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The number of the interface it leads out of; 0 if it has several next hops.
    pub index: u32,
    /// The network it is for; unspecified, with length 0, for the default route.
    pub destination: IpAddr,
    /// Length of the network's prefix, bits.
    pub prefix_len: u8,
    /// The next hop; none if the destination is on the interface's own network.
    pub gateway: Option<IpAddr>,
    /// Whether the gateway is reached directly, whatever the addresses say.
    pub onlink: bool,
    /// The address to send from.
    pub source: Option<IpAddr>,
    /// The smaller, the better.
    pub metric: Option<u32>,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// Who made it: `RTPROT_*`.
    pub protocol: u8,
    /// Type of service it is for.
    pub tos: u8,
    /// MTU, window and the like: the attributes `RTAX_*` as the kernel wrote them.
    pub metrics: Vec<u8>,
    /// What of it cannot be expressed here.
    pub unsupported: Option<&'static str>,
}

impl Route {
    /// The request for the list of all routes of both families.
    #[must_use]
    pub fn list() -> Request {
        Request::new(GET, 0).fixed(&[0; INFO])
    }

    /// Reads one from a message; none if it is no such message, or of another table or type.
    #[must_use]
    pub fn parse(message: &Message<'_>) -> Option<Self> {
        if message.kind != NEW {
            return None;
        }
        let info: &[u8; INFO] = message.payload.first_chunk()?;
        let [
            family,
            prefix_len,
            source_len,
            tos,
            table,
            protocol,
            scope,
            kind,
            ..,
        ] = *info;
        let flags = crate::u32_at(info, 8)?;
        if kind != UNICAST || flags & CLONED != 0 {
            return None;
        }
        let mut table = u32::from(table);
        let mut route = Self {
            index: 0,
            destination: crate::unspecified(family)?,
            prefix_len,
            gateway: None,
            onlink: flags & ONLINK != 0,
            source: None,
            metric: None,
            scope,
            protocol,
            tos,
            metrics: Vec::new(),
            unsupported: (source_len != 0).then_some("it is for one source network only"),
        };
        for (kind, value) in attributes(message.payload.get(INFO..)?) {
            match kind {
                DESTINATION => route.destination = crate::ip(family, value)?,
                OUTPUT => route.index = crate::u32_of(value)?,
                GATEWAY => route.gateway = crate::ip(family, value),
                VIA => route.gateway = via(value),
                PRIORITY => route.metric = crate::u32_of(value),
                PREFERRED_SOURCE => route.source = crate::ip(family, value),
                METRICS => route.metrics = value.to_vec(),
                TABLE => table = crate::u32_of(value)?,
                MULTIPATH => route.unsupported = Some("it has several next hops"),
                ENCAPSULATION => route.unsupported = Some("it encapsulates packets"),
                _ => {}
            }
        }
        (table == MAIN).then_some(route)
    }

    /// The request that makes it, beside others to the same destination.
    #[must_use]
    pub fn add(&self) -> Request {
        let flags = match self.destination {
            IpAddr::V4(_) => CREATE | APPEND,
            // Appending would make one route with several next hops of two.
            IpAddr::V6(_) => CREATE,
        };
        let mut request = self
            .named(NEW, flags)
            .optional(PREFERRED_SOURCE, self.source.map(crate::octets).as_deref());
        if !self.metrics.is_empty() {
            request = request.attribute(METRICS, &self.metrics);
        }
        request
    }

    /// The request that removes it.
    #[must_use]
    pub fn remove(&self) -> Request {
        self.named(DELETE, 0)
    }

    fn named(&self, kind: u16, flags: u16) -> Request {
        let mut info = vec![
            crate::family(self.destination),
            self.prefix_len,
            0,
            self.tos,
        ];
        info.extend([MAIN.to_le_bytes()[0], self.protocol, self.scope, UNICAST]);
        info.extend((if self.onlink { ONLINK } else { 0 }).to_ne_bytes());
        let mut request = Request::new(kind, flags)
            .fixed(&info)
            .attribute(OUTPUT, &self.index.to_ne_bytes());
        if self.prefix_len != 0 {
            request = request.attribute(DESTINATION, &crate::octets(self.destination));
        }
        if let Some(gateway) = self.gateway {
            let octets = crate::octets(gateway);
            request = if crate::family(gateway) == crate::family(self.destination) {
                request.attribute(GATEWAY, &octets)
            } else {
                let mut via = u16::from(crate::family(gateway)).to_ne_bytes().to_vec();
                via.extend(octets);
                request.attribute(VIA, &via)
            };
        }
        if let Some(metric) = self.metric {
            request = request.attribute(PRIORITY, &metric.to_ne_bytes());
        }
        request
    }
}

/// A next hop of the other family: `struct rtvia`.
fn via(value: &[u8]) -> Option<IpAddr> {
    let family = u8::try_from(crate::u16_at(value, 0)?).ok()?;
    crate::ip(family, value.get(2..)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(request: &Request) -> Option<Route> {
        Route::parse(&Message {
            kind: request.kind(),
            flags: 0,
            sequence: 0,
            payload: request.body(),
        })
    }

    fn any_route() -> impl Strategy<Value = Route> {
        let net = any::<(IpAddr, u8)>();
        let hop = any::<(Option<IpAddr>, bool, bool, Option<u32>)>();
        let rest = any::<(u32, u8, u8, u8, Vec<u8>)>();
        (net, hop, rest).prop_map(
            |((to, len), (gateway, onlink, from, metric), (index, scope, protocol, tos, raw))| {
                let default = crate::unspecified(crate::family(to)).unwrap();
                Route {
                    index,
                    destination: if len == 0 { default } else { to },
                    prefix_len: len,
                    gateway,
                    onlink,
                    source: from.then_some(to),
                    metric,
                    scope,
                    protocol,
                    tos,
                    metrics: raw,
                    unsupported: None,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn any_route_written_is_the_same_when_read(route in any_route()) {
            prop_assert_eq!(read(&route.add()), Some(route));
        }
    }

    #[test]
    fn route_of_another_table_or_type_is_not_read() {
        let info = |table: u8, kind: u8| [2, 0, 0, 0, table, 2, 0, kind, 0, 0, 0, 0];
        let request = |table, kind| Request::new(NEW, 0).fixed(&info(table, kind));
        assert!(read(&request(254, 1)).is_some());
        assert!(read(&request(255, 1)).is_none());
        assert!(read(&request(254, 2)).is_none());
        let table = request(252, 1).attribute(TABLE, &1000u32.to_ne_bytes());
        assert!(read(&table).is_none());
    }

    #[test]
    fn route_with_several_next_hops_says_that_it_is_not_supported() {
        let request = Request::new(NEW, 0)
            .fixed(&[2, 0, 0, 0, 254, 2, 0, 1, 0, 0, 0, 0])
            .attribute(MULTIPATH, &[0; 16]);
        assert!(read(&request).unwrap().unsupported.is_some());
    }
}

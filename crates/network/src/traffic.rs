//! Traffic control (`tc(8)`): what comes in on one interface goes out of another, and the host's
//! network stack does not see it.

use bulkhead_netlink::{Message, Netlink, NetlinkError, Request, attributes};

const NEW_QDISC: u16 = 36;
const DELETE_QDISC: u16 = 37;
const GET_QDISC: u16 = 38;
const NEW_FILTER: u16 = 44;
const GET_FILTER: u16 = 46;
/// Of the requests.
const CREATE_EXCLUSIVELY: u16 = 0x600;

/// Size of `struct tcmsg`.
const INFO: usize = 20;
const KIND: u16 = 1;
const OPTIONS: u16 = 2;

/// Where the queueing discipline for incoming frames hangs, and its fixed name.
const INGRESS_PARENT: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;

/// Priority of our filters, by which we know them again.
const PRIORITY: u32 = 0x6268;
/// `ETH_P_ALL` in network byte order.
const ALL_PROTOCOLS: u32 = 0x0300;

const U32_SELECTOR: u16 = 5;
const U32_ACTIONS: u16 = 7;
const ACTION_KIND: u16 = 1;
const ACTION_OPTIONS: u16 = 2;
const MIRRED_PARAMETERS: u16 = 2;
/// Where `struct tc_mirred` has the target interface.
const MIRRED_TARGET: usize = 24;

/// Whose filters an interface has for its incoming frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ingress {
    /// Nobody's.
    None,
    /// Ours, and the tap they lead to is no more.
    Stale,
    /// Ours, and the tap is there.
    Live,
    /// Somebody else's.
    Foreign,
}

/// Makes every frame that comes in on `from` go out of `to`.
pub(crate) fn redirect(netlink: &mut Netlink, from: u32, to: u32) -> Result<(), NetlinkError> {
    let qdisc = Request::new(NEW_QDISC, CREATE_EXCLUSIVELY)
        .fixed(&info(from, INGRESS_HANDLE, INGRESS_PARENT, 0))
        .attribute(KIND, b"ingress\0");
    netlink.request(&qdisc)?;
    netlink.request(&filter(from, to))
}

/// Removes what [`redirect`] made.
pub(crate) fn remove(netlink: &mut Netlink, from: u32) -> Result<(), NetlinkError> {
    let qdisc = Request::new(DELETE_QDISC, 0)
        .fixed(&info(from, INGRESS_HANDLE, INGRESS_PARENT, 0))
        .attribute(KIND, b"ingress\0");
    netlink.request(&qdisc)
}

/// Looks whose filters an interface has.
pub(crate) fn ingress(netlink: &mut Netlink, index: u32) -> Result<Ingress, NetlinkError> {
    let list = Request::new(GET_QDISC, 0).fixed(&info(index, 0, 0, 0));
    // Not every kernel heeds the interface's number in this request.
    let qdiscs = netlink.list(&list, parse_qdisc)?;
    let Some((_, kind)) = qdiscs.into_iter().find(|(found, _)| *found == index) else {
        return Ok(Ingress::None);
    };
    if kind != b"ingress\0" {
        return Ok(Ingress::Foreign);
    }
    let list = Request::new(GET_FILTER, 0).fixed(&info(index, 0, INGRESS_HANDLE, 0));
    let filters = netlink.list(&list, parse_filter)?;
    Ok(verdict(&filters))
}

/// What the filters below a queueing discipline make it.
fn verdict(filters: &[Filter]) -> Ingress {
    if filters.iter().any(|filter| filter.priority != PRIORITY) {
        Ingress::Foreign
    } else if filters.iter().any(|filter| filter.target != 0) {
        Ingress::Live
    } else {
        // Without any filter it has no effect: a killed sandbox had only begun.
        Ingress::Stale
    }
}

/// A filter, as far as it matters whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Filter {
    priority: u32,
    /// The interface it leads to; 0 for none, or one that is no more.
    target: u32,
}

fn info(index: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    for number in [index, handle, parent, info] {
        bytes.extend(number.to_ne_bytes());
    }
    bytes
}

/// A filter that every frame passes (one key, of which no bit counts), and its one action.
fn filter(from: u32, to: u32) -> Request {
    const TERMINAL: u8 = 1;
    const KEYS: u8 = 1;
    const STOLEN: u32 = 4;
    const REDIRECT_OUT: u32 = 1;
    let mut selector = vec![TERMINAL, 0, KEYS, 0];
    selector.extend([0; 12]);
    selector.extend([0; 16]);
    let mut mirred = Vec::new();
    // Index, capabilities, what becomes of the frame, two counters, what is done, with which one.
    for number in [0, 0, STOLEN, 0, 0, REDIRECT_OUT, to] {
        mirred.extend(number.to_ne_bytes());
    }
    Request::new(NEW_FILTER, CREATE_EXCLUSIVELY)
        .fixed(&info(
            from,
            0,
            INGRESS_HANDLE,
            PRIORITY << 16 | ALL_PROTOCOLS,
        ))
        .attribute(KIND, b"u32\0")
        .nested(OPTIONS, |options| {
            options
                .attribute(U32_SELECTOR, &selector)
                .nested(U32_ACTIONS, |actions| {
                    actions.nested(1, |action| {
                        action
                            .attribute(ACTION_KIND, b"mirred\0")
                            .nested(ACTION_OPTIONS, |options| {
                                options.attribute(MIRRED_PARAMETERS, &mirred)
                            })
                    })
                })
        })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

/// The interface and the kind of a queueing discipline for incoming frames.
fn parse_qdisc(message: &Message<'_>) -> Option<(u32, Vec<u8>)> {
    if message.kind != NEW_QDISC || u32_at(message.payload, 12)? != INGRESS_PARENT {
        return None;
    }
    let kind = find(message.payload.get(INFO..)?, KIND)?;
    Some((u32_at(message.payload, 4)?, kind.to_vec()))
}

fn parse_filter(message: &Message<'_>) -> Option<Filter> {
    if message.kind != NEW_FILTER {
        return None;
    }
    let priority = u32_at(message.payload, 16)? >> 16;
    let options = find(message.payload.get(INFO..)?, OPTIONS);
    // A u32 filter comes with an entry for its hash table, which has no selector.
    if priority == PRIORITY && options.and_then(|o| find(o, U32_SELECTOR)).is_none() {
        return None;
    }
    let target = options
        .and_then(|options| find(options, U32_ACTIONS))
        .and_then(|actions| attributes(actions).next())
        .and_then(|(_, action)| find(action, ACTION_OPTIONS))
        .and_then(|options| find(options, MIRRED_PARAMETERS))
        .and_then(|parameters| u32_at(parameters, MIRRED_TARGET));
    Some(Filter {
        priority,
        target: target.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(request: &Request) -> Message<'_> {
        Message {
            kind: request.kind(),
            flags: 0,
            sequence: 0,
            payload: request.body(),
        }
    }

    #[test]
    fn own_filter_is_known_again_with_its_target() {
        let request = filter(3, 9);
        let found = parse_filter(&message(&request)).unwrap();
        assert_eq!(
            found,
            Filter {
                priority: PRIORITY,
                target: 9
            }
        );
        assert_eq!(verdict(&[found]), Ingress::Live);
        let gone = Filter { target: 0, ..found };
        assert_eq!(verdict(&[gone]), Ingress::Stale);
        assert_eq!(verdict(&[]), Ingress::Stale);
    }

    #[test]
    fn filter_of_another_priority_is_foreign() {
        let other = Filter {
            priority: 1,
            target: 0,
        };
        let ours = Filter {
            priority: PRIORITY,
            target: 4,
        };
        assert_eq!(verdict(&[ours, other]), Ingress::Foreign);
    }

    proptest::proptest! {
        #[test]
        fn any_payload_is_read_without_panic(
            kind in proptest::sample::select(vec![NEW_QDISC, NEW_FILTER, 0]),
            payload in proptest::collection::vec(proptest::num::u8::ANY, 0..160),
        ) {
            let message = Message { kind, flags: 0, sequence: 0, payload: &payload };
            let _ = parse_qdisc(&message);
            let _ = parse_filter(&message);
        }
    }
}

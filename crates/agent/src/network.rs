//! The container's network, which is the guest's: cards become what the host says.
//!
//! Everything is asked of the kernel by netlink, on this thread: an answer takes microseconds.

use std::net::IpAddr;

use bulkhead_agent_api::messages;
use bulkhead_netlink::{
    Address, Link, LinkChange, Neighbour, Netlink, NetlinkError, Request, Route,
};

/// Where the driver of network cards lets go of one.
const UNBIND: &str = "/sys/bus/virtio/drivers/virtio_net/unbind";

/// What could not be done to the network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel does not talk or list.
    #[error("Cannot list the guest's network configuration")]
    List(#[source] NetlinkError),
    /// The host names a card the guest does not have.
    #[error("Cannot find the network card for interface {interface}: no device has its address")]
    NoCard {
        /// What it was to become.
        interface: String,
    },
    /// The host says something about an interface that means nothing.
    #[error("Cannot configure network interface {interface}: invalid {field}")]
    Value {
        /// The interface.
        interface: String,
        /// The field of the protocol.
        field: &'static str,
    },
    /// The kernel refused a step.
    #[error("Cannot {step} network interface {interface}")]
    Step {
        /// What was attempted.
        step: &'static str,
        /// The interface.
        interface: String,
        /// The kernel's answer.
        #[source]
        source: NetlinkError,
    },
    /// A card that is not needed could not be removed.
    #[error("Cannot remove a network card that is not used")]
    Unused(#[source] std::io::Error),
}

/// Makes every card what it is to be. One that was configured before loses what it is not to have; what it
/// keeps is not touched, as programs may be using it.
pub fn configure(interfaces: &[messages::Interface]) -> Result<(), NetworkError> {
    if interfaces.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::open().map_err(NetworkError::List)?;
    let links = netlink
        .list(&Link::list(), Link::parse)
        .map_err(NetworkError::List)?;
    let mut cards = interfaces
        .iter()
        .map(|interface| Card::find(interface, &links))
        .collect::<Result<Vec<_>, _>>()?;
    // Names may be exchanged among cards: first all that change get out of each other's way.
    for card in cards.iter().filter(|card| card.renamed) {
        let temporary = format!("bhcard{}", card.index);
        let change = LinkChange::of(card.index).name(&temporary);
        card.change(&mut netlink, "make room for", &change)?;
    }
    cards
        .iter_mut()
        .try_for_each(|card| card.make(&mut netlink))
}

/// Removes cards, by their hardware addresses.
pub fn remove(cards: &[Vec<u8>]) -> Result<(), NetworkError> {
    if cards.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::open().map_err(NetworkError::List)?;
    let links = netlink
        .list(&Link::list(), Link::parse)
        .map_err(NetworkError::List)?;
    for link in links.iter().filter(|link| cards.contains(&link.address)) {
        unbind(&link.name).map_err(NetworkError::Unused)?;
    }
    Ok(())
}

fn unbind(name: &str) -> std::io::Result<()> {
    let device = std::fs::read_link(format!("/sys/class/net/{name}/device"))?;
    let device = device.file_name().unwrap_or_default();
    std::fs::write(UNBIND, device.as_encoded_bytes())
}

/// One card on its way.
struct Card<'i> {
    interface: &'i messages::Interface,
    index: u32,
    /// It has another name now.
    renamed: bool,
    /// It has another hardware address now.
    moved: bool,
    /// It was configured before.
    known: bool,
}

impl<'i> Card<'i> {
    fn find(interface: &'i messages::Interface, links: &[Link]) -> Result<Self, NetworkError> {
        let known = links.iter().find(|link| {
            link.is_up() && link.name == interface.name && link.address == interface.mac
        });
        let link = known
            .or_else(|| links.iter().find(|link| link.address == interface.card))
            .ok_or_else(|| NetworkError::NoCard {
                interface: interface.name.clone(),
            })?;
        Ok(Self {
            interface,
            index: link.index,
            renamed: link.name != interface.name,
            moved: link.address != interface.mac,
            known: known.is_some(),
        })
    }

    fn make(&mut self, netlink: &mut Netlink) -> Result<(), NetworkError> {
        let interface = self.interface;
        let addresses = self.read("addresses", &interface.addresses, address)?;
        let routes = self.read("routes", &interface.routes, route)?;
        let neighbours = self.read("neighbours", &interface.neighbours, neighbour)?;
        let present = if self.known {
            self.trim(netlink, &addresses, &routes)?
        } else {
            Vec::new()
        };
        if self.renamed {
            let change = LinkChange::of(self.index).name(&interface.name);
            self.change(netlink, "name", &change)?;
        }
        if self.moved {
            let change = LinkChange::of(self.index).address(&interface.mac);
            self.change(netlink, "set the hardware address of", &change)?;
        }
        let change = LinkChange::of(self.index).mtu(interface.mtu);
        self.change(netlink, "set the MTU of", &change)?;
        if !interface.make_link_local {
            let change = LinkChange::of(self.index).no_link_local();
            match netlink.request(&change.request()) {
                // A kernel without IPv6 makes none anyway.
                Err(error) if error.errno() != Some(libc::EAFNOSUPPORT) => {
                    return Err(self.failed("keep IPv6 from starting on")(error));
                }
                _ => {}
            }
        }
        let change = LinkChange::of(self.index).no_arp(interface.no_arp).up(true);
        self.change(netlink, "switch on", &change)?;
        let is_new = |address: &&Address| !present.iter().any(|had| is_same(had, address));
        for address in addresses.iter().filter(is_new) {
            let step = "give an address to";
            self.ask_unless_foreign(netlink, step, &address.add(), address.ip)?;
        }
        // Some went with their addresses.
        let present = if self.known {
            self.routes(netlink)?
        } else {
            Vec::new()
        };
        for route in routes.iter().filter(|route| !present.contains(route)) {
            let step = "make a route over";
            self.ask_unless_foreign(netlink, step, &route.add(), route.destination)?;
        }
        for neighbour in &neighbours {
            self.ask(netlink, "enter a neighbour of", &neighbour.add())?;
        }
        Ok(())
    }

    /// Takes away addresses and routes it is not to have; returns the addresses that are left.
    fn trim(
        &self,
        netlink: &mut Netlink,
        addresses: &[Address],
        routes: &[Route],
    ) -> Result<Vec<Address>, NetworkError> {
        for route in self.routes(netlink)? {
            if !routes.contains(&route) {
                self.ask(netlink, "remove a route over", &route.remove())?;
            }
        }
        let present = netlink.list(&Address::list(), Address::parse);
        let mut present = present.map_err(NetworkError::List)?;
        present.retain(|address| address.index == self.index);
        let (kept, gone): (Vec<_>, Vec<_>) = present
            .into_iter()
            .partition(|had| addresses.iter().any(|address| is_same(had, address)));
        for address in gone {
            self.ask(netlink, "take an address from", &address.remove())?;
        }
        Ok(kept)
    }

    fn routes(&self, netlink: &mut Netlink) -> Result<Vec<Route>, NetworkError> {
        let routes = netlink.list(&Route::list(), Route::parse);
        let mut routes = routes.map_err(NetworkError::List)?;
        routes.retain(|route| route.index == self.index);
        Ok(routes)
    }

    fn read<M, T>(
        &self,
        field: &'static str,
        messages: &[M],
        read: impl Fn(u32, &M) -> Option<T>,
    ) -> Result<Vec<T>, NetworkError> {
        let all = messages.iter().map(|message| read(self.index, message));
        all.collect::<Option<_>>()
            .ok_or_else(|| NetworkError::Value {
                interface: self.interface.name.clone(),
                field,
            })
    }

    fn change(
        &self,
        netlink: &mut Netlink,
        step: &'static str,
        change: &LinkChange,
    ) -> Result<(), NetworkError> {
        self.ask(netlink, step, &change.request())
    }

    fn ask(
        &self,
        netlink: &mut Netlink,
        step: &'static str,
        request: &Request,
    ) -> Result<(), NetworkError> {
        netlink.request(request).map_err(self.failed(step))
    }

    /// As [`Self::ask`]. A kernel without IPv6 goes without what the host's kernel has made by itself, for the
    /// link alone; whatever somebody asked for must not be missing.
    fn ask_unless_foreign(
        &self,
        netlink: &mut Netlink,
        step: &'static str,
        request: &Request,
        of: IpAddr,
    ) -> Result<(), NetworkError> {
        let for_the_link = matches!(of, IpAddr::V6(of) if of.is_unicast_link_local());
        match netlink.request(request) {
            Err(error)
                if for_the_link
                    && matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) =>
            {
                Ok(())
            }
            other => other.map_err(self.failed(step)),
        }
    }

    fn failed(&self, step: &'static str) -> impl FnOnce(NetlinkError) -> NetworkError {
        let interface = self.interface.name.clone();
        move |source| NetworkError::Step {
            step,
            interface,
            source,
        }
    }
}

/// Whether two addresses are one, for however long.
fn is_same(one: &Address, other: &Address) -> bool {
    let timeless = |address: &Address| Address {
        valid_s: u32::MAX,
        preferred_s: u32::MAX,
        ..address.clone()
    };
    timeless(one) == timeless(other)
}

/// An address of 4 or 16 bytes.
pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// An address that may be none; fails if it is something else.
fn optional_ip(bytes: &[u8]) -> Option<Option<IpAddr>> {
    if bytes.is_empty() {
        Some(None)
    } else {
        ip(bytes).map(Some)
    }
}

fn address(index: u32, message: &messages::Address) -> Option<Address> {
    let broadcast = match optional_ip(&message.broadcast)? {
        Some(IpAddr::V4(address)) => Some(address),
        Some(IpAddr::V6(_)) => return None,
        None => None,
    };
    Some(Address {
        index,
        ip: ip(&message.ip)?,
        peer: optional_ip(&message.peer)?,
        prefix_len: u8::try_from(message.prefix_len).ok()?,
        scope: u8::try_from(message.scope).ok()?,
        broadcast,
        valid_s: message.valid_s,
        preferred_s: message.preferred_s,
    })
}

fn route(index: u32, message: &messages::Route) -> Option<Route> {
    Some(Route {
        index,
        destination: ip(&message.destination)?,
        prefix_len: u8::try_from(message.prefix_len).ok()?,
        gateway: optional_ip(&message.gateway)?,
        onlink: message.onlink,
        source: optional_ip(&message.source)?,
        metric: (message.metric != 0).then_some(message.metric),
        scope: u8::try_from(message.scope).ok()?,
        protocol: u8::try_from(message.protocol).ok()?,
        tos: u8::try_from(message.tos).ok()?,
        metrics: message.metrics.clone(),
        unsupported: None,
    })
}

fn neighbour(index: u32, message: &messages::Neighbour) -> Option<Neighbour> {
    Some(Neighbour {
        index,
        ip: ip(&message.ip)?,
        address: message.mac.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, address: &[u8], up: bool) -> Link {
        Link {
            index,
            name: name.to_owned(),
            hardware: 1,
            flags: u32::from(up),
            mtu: 1500,
            address: address.to_vec(),
            kind: None,
            lower: None,
            lower_elsewhere: false,
            master: None,
            makes_link_local: false,
        }
    }

    fn interface(card: &[u8], name: &str, mac: &[u8]) -> messages::Interface {
        let mut interface = messages::Interface::new();
        interface.card = card.to_vec();
        interface.name = name.to_owned();
        interface.mac = mac.to_vec();
        interface
    }

    #[test]
    fn card_is_found_by_its_address_whatever_its_name() {
        let links = [
            link(2, "eth0", b"aaaaaa", false),
            link(3, "eth1", b"bbbbbb", false),
        ];
        let wanted = interface(b"bbbbbb", "eth0", b"bbbbbb");
        let card = Card::find(&wanted, &links).unwrap();
        assert_eq!(
            (card.index, card.renamed, card.moved, card.known),
            (3, true, false, false)
        );
    }

    #[test]
    fn card_that_was_configured_is_known_again() {
        let links = [link(2, "net0", b"mmmmmm", true)];
        let wanted = interface(b"cccccc", "net0", b"mmmmmm");
        let card = Card::find(&wanted, &links).unwrap();
        assert_eq!(
            (card.index, card.renamed, card.moved, card.known),
            (2, false, false, true)
        );
    }

    #[test]
    fn card_that_is_not_there_is_named_by_its_interface() {
        let wanted = interface(b"cccccc", "net7", b"cccccc");
        let Err(error) = Card::find(&wanted, &[]) else {
            panic!("there is no card");
        };
        assert!(error.to_string().contains("net7"), "{error}");
    }

    #[test]
    fn address_that_lasts_longer_is_the_same_and_one_of_another_network_is_not() {
        let mut message = messages::Address::new();
        message.ip = vec![10, 0, 0, 1];
        message.prefix_len = 24;
        message.valid_s = 60;
        let before = address(1, &message).unwrap();
        message.valid_s = 3600;
        assert!(is_same(&before, &address(1, &message).unwrap()));
        message.prefix_len = 16;
        assert!(!is_same(&before, &address(1, &message).unwrap()));
    }

    #[test]
    fn addresses_of_other_lengths_are_refused() {
        let mut message = messages::Address::new();
        message.ip = vec![10, 0, 0, 1];
        assert!(address(1, &message).is_some());
        for bad in [vec![], vec![1], vec![0; 5], vec![0; 17]] {
            message.ip = bad;
            assert!(address(1, &message).is_none());
        }
        message.ip = vec![10, 0, 0, 1];
        message.broadcast = vec![0; 16];
        assert!(address(1, &message).is_none());
        message.broadcast = vec![];
        message.prefix_len = 256;
        assert!(address(1, &message).is_none());
    }
}

//! What a network namespace holds, and what of it a virtual machine can have.

use bulkhead_netlink::{Address, Link, Neighbour, Netlink, NetlinkError, Route};

use crate::{Mac, NetworkError, tap};

/// Interfaces that work with frames passed to and from a tap.
///
/// A macvlan or ipvlan takes what its lower interface hands to it, a VLAN likewise; a dummy takes
/// nothing, as ever.
const KINDS: [&str; 6] = ["veth", "macvlan", "ipvlan", "vlan", "tun", "dummy"];

/// An interface of a container: what the guest is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number in the namespace.
    pub index: u32,
    /// Its hardware address.
    pub mac: Mac,
    /// Bytes.
    pub mtu: u32,
    /// Whether it does without ARP and neighbour discovery.
    pub no_arp: bool,
    /// Whether the kernel would give it an IPv6 link-local address, which it does not have yet.
    pub makes_link_local: bool,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// The routes that lead out of it; those without a gateway first, by which gateways are reached.
    pub routes: Vec<Route>,
    /// The neighbours that were entered by hand.
    pub neighbours: Vec<Neighbour>,
}

impl Interface {
    /// Whether it is the same as `other`, but for how long its addresses will last.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let timeless = |interface: &Self| {
            let mut interface = interface.clone();
            for address in &mut interface.addresses {
                (address.valid_s, address.preferred_s) = (u32::MAX, u32::MAX);
            }
            interface
        };
        timeless(self) == timeless(other)
    }
}

/// The interfaces of the calling thread's network namespace that are switched on, without loopback
/// and our own taps.
///
/// # Errors
/// When the kernel does not list them, or one has something a virtual machine cannot have.
pub(crate) fn inspect(netlink: &mut Netlink) -> Result<Vec<Interface>, NetworkError> {
    let list = |what| move |source: NetlinkError| NetworkError::List { what, source };
    let links = netlink
        .list(&Link::list(), Link::parse)
        .map_err(list("interfaces"))?;
    let candidates =
        |link: &&Link| link.is_up() && !link.is_loopback() && !link.name.starts_with(tap::PREFIX);
    if !links.iter().any(|link| candidates(&link)) {
        return Ok(Vec::new());
    }
    let addresses = netlink
        .list(&Address::list(), Address::parse)
        .map_err(list("addresses"))?;
    let routes = netlink
        .list(&Route::list(), Route::parse)
        .map_err(list("routes"))?;
    let neighbours = netlink
        .list(&Neighbour::list(), Neighbour::parse)
        .map_err(list("neighbours"))?;
    links
        .iter()
        .filter(candidates)
        .map(|link| {
            let mac = usable(link, &links)?;
            let mut routes: Vec<Route> = routes
                .iter()
                // A route with several next hops leads out of none in particular.
                .filter(|route| route.index == link.index || route.index == 0)
                .cloned()
                .collect();
            if let Some((route, reason)) = routes
                .iter()
                .find_map(|route| Some((route, route.unsupported?)))
            {
                return Err(NetworkError::Refused {
                    interface: link.name.clone(),
                    reason: format!(
                        "the route to {}/{} cannot be copied to the virtual machine, as {reason}",
                        route.destination, route.prefix_len
                    ),
                    alternative: "replace it by plain routes",
                });
            }
            routes.sort_by_key(|route| route.gateway.is_some());
            let addresses: Vec<Address> = addresses
                .iter()
                .filter(|address| address.index == link.index)
                .cloned()
                .collect();
            let has_link_local = addresses.iter().any(Address::is_ipv6_link_local);
            Ok(Interface {
                name: link.name.clone(),
                index: link.index,
                mac,
                mtu: link.mtu,
                no_arp: link.has_no_arp(),
                makes_link_local: link.makes_link_local && !has_link_local,
                addresses,
                routes,
                neighbours: neighbours
                    .iter()
                    .filter(|neighbour| neighbour.index == link.index)
                    .cloned()
                    .collect(),
            })
        })
        .collect()
}

/// The hardware address of an interface that can be passed on, or why it cannot.
fn usable(link: &Link, links: &[Link]) -> Result<Mac, NetworkError> {
    let refused = |reason: String, alternative| NetworkError::Refused {
        interface: link.name.clone(),
        reason,
        alternative,
    };
    let name_of = |index: u32| {
        let found = links.iter().find(|other| other.index == index);
        found.map_or_else(|| index.to_string(), |other| other.name.clone())
    };
    if let Some(master) = link.master {
        return Err(refused(
            format!(
                "it is a port of {}, which would get none of its frames",
                name_of(master)
            ),
            "build bridges and bonds outside of the container's namespace",
        ));
    }
    let kind = link.kind.as_deref();
    if !link.is_ethernet() {
        return Err(refused(
            "it carries no Ethernet frames, and the virtual machine's card carries nothing else"
                .to_owned(),
            "use a veth or a tap",
        ));
    }
    if let Some(kind) = kind.filter(|kind| !KINDS.contains(kind)) {
        return Err(refused(
            format!("frames of an interface of type {kind} cannot be passed on"),
            "use a veth, macvlan, ipvlan, vlan or tap",
        ));
    }
    // A veth's other end may be anywhere.
    let stacked = link.lower.filter(|lower| {
        !link.lower_elsewhere
            && kind != Some("veth")
            && links.iter().any(|other| other.index == *lower)
    });
    if let Some(lower) = stacked {
        return Err(refused(
            format!(
                "it stands on {} of the same namespace, whose frames all go to the virtual machine",
                name_of(lower)
            ),
            "keep the lower interface in another namespace",
        ));
    }
    Mac::try_from(link.address.as_slice()).map_err(|_| {
        refused(
            "its hardware address is not one of six bytes".to_owned(),
            "use a veth",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            hardware: 1,
            flags: 1,
            mtu: 1500,
            address: vec![2, 0, 0, 0, 0, 1],
            kind: kind.map(str::to_owned),
            lower: None,
            lower_elsewhere: false,
            master: None,
            makes_link_local: false,
        }
    }

    fn reason(link: &Link, others: &[Link]) -> String {
        usable(link, others).unwrap_err().to_string()
    }

    #[test]
    fn usual_kinds_are_usable() {
        for kind in ["veth", "macvlan", "ipvlan", "vlan", "tun"] {
            let link = link(2, "eth0", Some(kind));
            assert_eq!(usable(&link, &[]).unwrap(), [2, 0, 0, 0, 0, 1]);
        }
        assert!(usable(&link(2, "eth0", None), &[]).is_ok());
    }

    #[test]
    fn interface_without_ethernet_is_refused_by_name() {
        let tun = Link {
            hardware: 0xfffe,
            ..link(2, "wg0", Some("wireguard"))
        };
        let reason = reason(&tun, &[]);
        assert!(
            reason.contains("wg0") && reason.contains("Ethernet"),
            "{reason}"
        );
    }

    #[test]
    fn port_of_a_bridge_is_refused_with_the_bridge() {
        let port = Link {
            master: Some(9),
            ..link(2, "eth0", Some("veth"))
        };
        let reason = reason(&port, &[link(9, "br0", Some("bridge"))]);
        assert!(reason.contains("br0"), "{reason}");
    }

    #[test]
    fn interface_on_one_of_the_same_namespace_is_refused_with_that_one() {
        let eth0 = link(2, "eth0", Some("veth"));
        let vlan = Link {
            lower: Some(2),
            ..link(3, "eth0.7", Some("vlan"))
        };
        let reason = reason(&vlan, std::slice::from_ref(&eth0));
        assert!(reason.contains("stands on eth0"), "{reason}");
        let elsewhere = Link {
            lower_elsewhere: true,
            ..vlan
        };
        assert!(usable(&elsewhere, &[eth0]).is_ok());
    }

    #[test]
    fn interface_of_an_unknown_kind_is_refused_by_its_kind() {
        let reason = reason(&link(2, "br0", Some("bridge")), &[]);
        assert!(reason.contains("type bridge"), "{reason}");
    }
}

//! The container's network on its way to the guest.

use std::net::IpAddr;

use bulkhead_agent_api::messages;
use bulkhead_network::{Address, Change, Neighbour, Route};

/// What a card is to become, as the agent is told.
#[must_use]
pub fn message(change: &Change) -> messages::Interface {
    let interface = &change.interface;
    messages::Interface {
        card: change.card.to_vec(),
        name: interface.name.clone(),
        mac: interface.mac.to_vec(),
        mtu: interface.mtu,
        no_arp: interface.no_arp,
        make_link_local: interface.makes_link_local,
        addresses: interface.addresses.iter().map(address).collect(),
        routes: interface.routes.iter().map(route).collect(),
        neighbours: interface.neighbours.iter().map(neighbour).collect(),
        ..Default::default()
    }
}

pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn optional(ip: Option<IpAddr>) -> Vec<u8> {
    ip.map(octets).unwrap_or_default()
}

fn address(address: &Address) -> messages::Address {
    messages::Address {
        ip: octets(address.ip),
        peer: optional(address.peer),
        prefix_len: address.prefix_len.into(),
        scope: address.scope.into(),
        broadcast: optional(address.broadcast.map(IpAddr::V4)),
        valid_s: address.valid_s,
        preferred_s: address.preferred_s,
        ..Default::default()
    }
}

fn route(route: &Route) -> messages::Route {
    messages::Route {
        destination: octets(route.destination),
        prefix_len: route.prefix_len.into(),
        gateway: optional(route.gateway),
        onlink: route.onlink,
        source: optional(route.source),
        metric: route.metric.unwrap_or(0),
        scope: route.scope.into(),
        protocol: route.protocol.into(),
        tos: route.tos.into(),
        metrics: route.metrics.clone(),
        ..Default::default()
    }
}

fn neighbour(neighbour: &Neighbour) -> messages::Neighbour {
    messages::Neighbour {
        ip: octets(neighbour.ip),
        mac: neighbour.address.clone(),
        ..Default::default()
    }
}

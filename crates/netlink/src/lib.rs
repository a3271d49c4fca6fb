//! The part of rtnetlink (`rtnetlink(7)`) that is needed to read the configuration of a network
//! namespace on the host and to make the same one in a guest: interfaces, addresses, routes,
//! neighbours.
//!
//! [`Request`] builds a message, [`messages`] and [`attributes`] take one apart without ever
//! trusting a length, [`Netlink`] is the conversation with the kernel. Each kind of object has a
//! type that can be read from a message and written into one.

mod address;
mod link;
mod message;
mod neighbour;
mod route;
mod socket;
mod watch;

pub use address::Address;
pub use link::{Link, LinkChange};
pub use message::{Message, Request, attributes, messages};
pub use neighbour::Neighbour;
pub use route::Route;
pub use socket::{Netlink, NetlinkError};
pub use watch::Watch;

use std::net::IpAddr;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An address of `family` from the bytes of an attribute.
fn ip(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        AF_INET6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn unspecified(family: u8) -> Option<IpAddr> {
    match family {
        AF_INET => Some(IpAddr::from([0; 4])),
        AF_INET6 => Some(IpAddr::from([0; 16])),
        _ => None,
    }
}

fn u32_of(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    u32_of(bytes.get(at..at.checked_add(4)?)?)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

/// Text up to its NUL byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default())
        .into_owned()
}

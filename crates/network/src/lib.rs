//! A container's network on the host.
//!
//! An engine prepares a network namespace: interfaces with addresses, routes, neighbours. The
//! container's kernel is another one, so each of those interfaces is joined to a tap, frame by frame
//! in both directions (traffic control: what comes in on one goes out of the other), and the
//! container's virtual machine gets a network card behind that tap, with everything the interface
//! has. To the engine nothing has changed: the interface, its address and what it did with them
//! stay; only the host's own network stack no longer sees the frames.
//!
//! All of this happens on short-lived threads that have entered the namespace. The taps vanish with
//! the descriptors that [`Network::plug`] hands out; what is left on the engine's interfaces then is
//! a filter that leads nowhere, which [`Network`] removes when it is dropped, and [`clean`] when
//! nobody was left to drop it.

mod error;
mod inspect;
mod namespace;
mod network;
mod tap;
mod traffic;

pub use bulkhead_netlink::{Address, Neighbour, Route, Watch};
pub use error::NetworkError;
pub use inspect::Interface;
pub use namespace::Namespace;
pub use network::{Cards, Change, Network, Port, Update, clean, is_populated, is_same};

/// A hardware address.
pub type Mac = [u8; 6];

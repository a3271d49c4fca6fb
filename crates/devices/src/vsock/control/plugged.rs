//! Devices that come while the machine runs, as the channel carries them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{MESSAGE_LEN, pack};
use crate::process::DeviceError;
use crate::tally::Tally;

/// Message tags; the channel has others.
const NET: u8 = 5;
const BLOCK: u8 = 6;
const GONE: u8 = 7;

/// Names a device that came while the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// The network card of that number.
    Net(u32),
    /// The disk of that number.
    Block(u32),
}

/// A device that comes while the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugged {
    /// A network card.
    Net {
        /// Tells its counts from those of others.
        number: u32,
        /// Its hardware address.
        mac: [u8; 6],
        /// What its driver is told of the network's MTU, bytes; none: nothing.
        mtu: Option<u16>,
    },
    /// A disk.
    Block {
        /// Names it to the guest, see [`crate::block::serial`], and tells its counts from those of others.
        number: u32,
        /// Whether the guest may only read.
        read_only: bool,
    },
}

/// Who serves further devices.
pub trait Plug: std::fmt::Debug + Send + Sync {
    /// Serves `device` to whoever connects to `socket`; returns what it is called and what it counts.
    ///
    /// # Errors
    /// When its descriptors are of no use or there is no thread for it.
    fn plug(
        &mut self,
        device: Plugged,
        socket: OwnedFd,
        medium: OwnedFd,
    ) -> Result<(String, Arc<Tally>), DeviceError>;

    /// Serves that device no longer, if it does.
    fn unplug(&mut self, slot: Slot);
}

impl Slot {
    pub(super) fn encode(self) -> [u8; MESSAGE_LEN] {
        match self {
            Slot::Net(number) => pack(GONE, 0, number, 0),
            Slot::Block(number) => pack(GONE, 0, number, 1),
        }
    }

    pub(super) fn decode((tag, flags, number, value): (u8, u8, u32, u64)) -> Option<Self> {
        match (tag, flags, value) {
            (GONE, 0, 0) => Some(Slot::Net(number)),
            (GONE, 0, 1) => Some(Slot::Block(number)),
            _ => None,
        }
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Slot::Net(number) => write!(f, "net{number}"),
            Slot::Block(number) => write!(f, "block{number}"),
        }
    }
}

impl Plugged {
    /// Its name.
    #[must_use]
    pub fn slot(self) -> Slot {
        match self {
            Plugged::Net { number, .. } => Slot::Net(number),
            Plugged::Block { number, .. } => Slot::Block(number),
        }
    }

    pub(super) fn encode(self) -> [u8; MESSAGE_LEN] {
        match self {
            Plugged::Net { number, mac, mtu } => {
                let [a, b] = mtu.unwrap_or(0).to_ne_bytes();
                let [m0, m1, m2, m3, m4, m5] = mac;
                let value = u64::from_ne_bytes([m0, m1, m2, m3, m4, m5, a, b]);
                pack(NET, 0, number, value)
            }
            Plugged::Block { number, read_only } => pack(BLOCK, 0, number, u64::from(read_only)),
        }
    }

    pub(super) fn decode((tag, flags, number, value): (u8, u8, u32, u64)) -> Option<Self> {
        match (tag, flags, value) {
            (NET, 0, value) => {
                let [mac @ .., a, b] = value.to_ne_bytes();
                let mtu = u16::from_ne_bytes([a, b]);
                let mtu = (mtu != 0).then_some(mtu);
                Some(Plugged::Net { number, mac, mtu })
            }
            (BLOCK, 0, 0 | 1) => Some(Plugged::Block {
                number,
                read_only: value == 1,
            }),
            _ => None,
        }
    }
}

//! virtio-net: Ethernet frames between a guest's network card and a tap of the host.
//!
//! [`header`] checks what the guest says of a frame before the host's kernel is told, [`frames`] is
//! the tap, [`used`] returns several buffers to a ring at once, [`Net`] is the virtio device around
//! them.

mod device;
pub mod frames;
pub mod header;
#[cfg(test)]
mod tests;
mod used;

pub use device::Net;

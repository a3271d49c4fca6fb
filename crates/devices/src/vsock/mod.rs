//! virtio-vsock: byte streams between ports of the guest and descriptors of the host.
//!
//! The layers, from the inside out: [`packet`] (headers) and [`stream`] (one stream's state) are
//! pure; [`crate::guest`] and [`host`] are the two memories and descriptors a payload moves between, in
//! one copy by the kernel; a connection joins them; [`mux`] holds all connections and speaks
//! [`control`] with the sandbox process; [`Vsock`] is the virtio device around it.

mod connection;
pub mod control;
mod device;
pub mod host;
pub mod mux;
pub mod packet;
pub mod stream;
#[cfg(test)]
mod tests;

pub use device::Vsock;

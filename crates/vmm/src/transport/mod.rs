//! Virtio over memory-mapped registers (virtio 1.2, section 4.2), without what is behind it.
//!
//! Every access comes from the guest, so every offset, length and value is checked here; what makes no
//! sense is ignored, as a device without such a register would. The rings are never looked at: they
//! are the back end's, in another process.

mod registers;
#[cfg(test)]
mod tests;
mod vhost_user;

pub use registers::{Registers, Ring};
pub(crate) use vhost_user::VhostUser;

use crate::VmmError;

/// What a device is, as its registers tell it, and what follows when the driver has set it up.
pub trait Backend: Send {
    /// Virtio device type (virtio 1.2, section 5).
    fn device_type(&self) -> u32;

    /// Features the driver may choose from.
    fn features(&self) -> u64;

    /// How many rings there are, and how long each may be.
    fn rings(&self) -> (usize, u16);

    /// Fills `bytes` from the device's own configuration at `offset`; what is beyond its end reads as
    /// zero.
    fn configuration(&self, offset: usize, bytes: &mut [u8]);

    /// The driver writes `bytes` to the device's own configuration at `offset`. Most have nothing that
    /// can be written.
    fn set_configuration(&mut self, _offset: usize, _bytes: &[u8]) {}

    /// The driver is ready: these are its features and its rings, by their numbers.
    ///
    /// # Errors
    /// When the back end refuses; the driver is told that the device needs a reset.
    fn start(&mut self, features: u64, rings: &[(usize, Ring)]) -> Result<(), VmmError>;

    /// The driver has something in ring `number`, and told so by the register instead of the event.
    fn kick(&mut self, number: usize);

    /// The driver resets a device that was started. The rings are the driver's again on return.
    ///
    /// # Errors
    /// When the back end does not answer.
    fn stop(&mut self) -> Result<(), VmmError>;

    /// Whether `length` bytes at `address` are memory of the guest.
    fn is_memory(&self, address: u64, length: u64) -> bool;

    /// Interrupts the guest over a change of the device's state.
    fn notify(&mut self);
}

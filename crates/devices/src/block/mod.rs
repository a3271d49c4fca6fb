//! The virtio block device: a block device or file of the host, as it is (virtio 1.2, section 5.2).

mod device;
mod request;
#[cfg(test)]
mod tests;

pub use device::{Block, Medium};
pub use request::Failed;

/// Size of what the guest counts in, bytes.
pub const SECTOR: u64 = 512;

/// Length of the name the guest can ask a disk for, bytes.
pub const SERIAL_LEN: usize = 20;

/// The name by which the guest tells its `number`th disk.
#[must_use]
pub fn serial(number: u32) -> String {
    format!("bulkhead-{number}")
}

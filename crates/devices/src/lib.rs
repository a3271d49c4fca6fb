//! Virtio devices over vhost-user, and the process that serves them.

pub mod balloon;
pub mod block;
pub mod entropy;
pub mod fs;
pub mod guest;
pub mod net;
pub mod process;
#[cfg(any(test, feature = "rig"))]
#[allow(
    clippy::expect_used,
    reason = "a rig that cannot be built is a failed test"
)]
pub mod rig;
mod ring;
pub mod session;
pub mod tally;
pub mod vsock;
mod workers;

pub use process::{
    BlockConfig, DeviceConfig, DeviceError, FsConfig, NetConfig, Resources, VsockConfig, run, serve,
};

/// The part of a device's configuration space that the front end asks for; beyond its end there
/// are zeros. The result is empty, which the front end takes as a refusal, when more is asked for
/// than a vhost-user message may carry.
fn config_space(space: &[u8], offset: u32, size: u32) -> Vec<u8> {
    const MAX: usize = 256;
    let (Ok(offset), Ok(size)) = (usize::try_from(offset), usize::try_from(size)) else {
        return Vec::new();
    };
    if size > MAX {
        return Vec::new();
    }
    space
        .iter()
        .copied()
        .skip(offset)
        .chain(std::iter::repeat(0))
        .take(size)
        .collect()
}

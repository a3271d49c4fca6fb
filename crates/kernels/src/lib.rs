//! Installed guest kernels and their manifests.
//!
//! Kernels live side by side under `<lib>/kernels/<name>/`, each directory
//! holding one image and the `manifest.json` that describes it. The manifest
//! carries the kernel's whole configuration as a set of features, so that what
//! a container needs can be compared with what a kernel has before anything is
//! booted.
//!
//! * [`Store`] finds, lists, adds and removes kernels.
//! * [`Manifest`] describes one; [`Config`] reads the configuration it is made
//!   from, out of a file or out of the image itself.
//! * [`check`] compares needs with features and names what is missing.

mod config;
mod error;
mod image;
mod manifest;
mod requirements;
mod store;

use std::path::{Path, PathBuf};

pub use config::Config;
pub use error::KernelsError;
pub use image::{Addition, MAX_IMAGE_BYTES, describe};
pub use manifest::{Flavour, Kernel, Manifest, sha256_hex, validate_name};
pub use requirements::{Need, base_features, check};
pub use store::{Entry, Store};

/// Result of this crate's operations.
pub type Result<T, E = KernelsError> = std::result::Result<T, E>;

/// Environment variable that overrides [`lib_dir`].
pub const LIB_ENV: &str = "BULKHEAD_LIB";

/// Directory with `kernels/` and `initramfs.cpio`.
///
/// `BULKHEAD_LIB` if set; otherwise `lib/bulkhead` beside the directory of the
/// running executable (an installation prefix or the build tree); otherwise
/// `/usr/local/lib/bulkhead`, then `/usr/lib/bulkhead`. The last is returned
/// even if it does not exist, so that the error of the caller names it.
pub fn lib_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os(LIB_ENV).filter(|dir| !dir.is_empty()) {
        return PathBuf::from(dir);
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.parent()?.join("lib/bulkhead")));
    beside
        .into_iter()
        .chain([PathBuf::from("/usr/local/lib/bulkhead")])
        .find(|dir| dir.is_dir())
        .unwrap_or_else(|| PathBuf::from("/usr/lib/bulkhead"))
}

/// The initramfs that belongs to the kernels under `lib`: the agent as `/init`.
pub fn initramfs(lib: &Path) -> PathBuf {
    lib.join("initramfs.cpio")
}

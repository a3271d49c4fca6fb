//! Where things are.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

/// Root of the source tree.
pub fn root() -> &'static Path {
    // The manifest directory is `<root>/xtask`.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
}

/// The build tree: laid out like an installation prefix.
pub fn build() -> PathBuf {
    root().join("build")
}

/// Kernels and initramfs in the build tree.
pub fn build_lib() -> PathBuf {
    build().join("lib/bulkhead")
}

/// As [`build_lib`], with the kernel for tests on a host whose KVM interprets guest kernels; not part of
/// what is installed.
pub fn build_emulated_lib() -> PathBuf {
    build().join("lib-emulated")
}

/// Directory for what is expensive to make and does not depend on this tree
/// alone: `$BULKHEAD_CACHE`, else `$XDG_CACHE_HOME/bulkhead`, else
/// `~/.cache/bulkhead`.
pub fn cache() -> Result<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("BULKHEAD_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("bulkhead")))
        .or_else(|| Some(set("HOME")?.join(".cache/bulkhead")))
        .context("There is no place for the cache: set BULKHEAD_CACHE or HOME")
}

/// Taken by whoever adds to a directory of the cache; a second one says under the name of `what` that it
/// waits.
pub fn lock(cache: &Path, what: &str) -> Result<File> {
    let path = cache.join(".lock");
    let file = File::create(&path).with_context(|| format!("Cannot create {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        println!(
            "{what}: waiting for another build that uses {}",
            cache.display()
        );
        flock(&file, FlockOperation::LockExclusive)
            .with_context(|| format!("Cannot lock {}", path.display()))?;
    }
    Ok(file)
}

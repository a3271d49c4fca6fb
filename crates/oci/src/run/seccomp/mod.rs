//! `--security-opt seccomp=…`: the default profile, a file, or none.

mod default;
mod profile;

use std::path::PathBuf;

use oci_spec::runtime::{Arch, Capabilities, LinuxSeccomp};

use super::error::RunError;

/// Which system calls a container may make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SeccompChoice {
    /// The default profile.
    #[default]
    Default,
    /// A profile in the format of docker and podman.
    File(PathBuf),
    /// All of them.
    Unconfined,
}

/// Makes the filter for a container with these capabilities.
///
/// `compat_32_bit` says whether the guest's kernel runs 32-bit programs: only then the
/// filter has a part for them.
pub(super) fn filter(
    choice: &SeccompChoice,
    granted: &Capabilities,
    compat_32_bit: bool,
) -> Result<Option<LinuxSeccomp>, RunError> {
    match choice {
        SeccompChoice::Unconfined => Ok(None),
        SeccompChoice::Default => Ok(Some(default::filter(granted, architectures(compat_32_bit)))),
        SeccompChoice::File(path) => profile::filter(path, granted).map(Some),
    }
}

/// The architectures of this machine, its own first.
fn architectures(compat_32_bit: bool) -> Vec<Arch> {
    let (own, compat) = if cfg!(target_arch = "x86_64") {
        (Arch::ScmpArchX86_64, Arch::ScmpArchX86)
    } else if cfg!(target_arch = "aarch64") {
        (Arch::ScmpArchAarch64, Arch::ScmpArchArm)
    } else {
        (Arch::ScmpArchNative, Arch::ScmpArchNative)
    };
    if compat_32_bit && own != compat {
        vec![own, compat]
    } else {
        vec![own]
    }
}

/// The machine's architecture as profiles and images name it.
pub(crate) fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

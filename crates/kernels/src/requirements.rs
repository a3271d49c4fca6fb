//! What a kernel must have, compared with what it has.

use crate::{Flavour, Kernel, KernelsError, Result, Store};

/// A kernel feature and what it is needed for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// Configuration option without the `CONFIG_` prefix, e.g. `CGROUP_PIDS`.
    pub feature: String,
    /// Who needs it, in the user's words: `linux.resources.pids`.
    pub reason: String,
}

impl Need {
    /// `feature` without the `CONFIG_` prefix, needed for `reason`.
    pub fn new(feature: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            feature: feature.into(),
            reason: reason.into(),
        }
    }
}

/// Features without which a guest does not even come up: the agent's own needs
/// and those of the hypervisors that run the flavour.
pub fn base_features(flavour: Flavour) -> impl Iterator<Item = &'static str> {
    const AGENT: &[&str] = &[
        "BLK_DEV_INITRD",
        "BINFMT_ELF",
        "PROC_FS",
        "SYSFS",
        "DEVTMPFS",
        "TMPFS",
        "UNIX98_PTYS",
        "VIRTIO_FS",
        "VIRTIO_VSOCKETS",
        "CGROUPS",
        "NAMESPACES",
        "PID_NS",
        "UTS_NS",
        "IPC_NS",
        "EPOLL",
        "SIGNALFD",
        "EVENTFD",
        "TIMERFD",
        "MULTIUSER",
    ];
    let machine: &[&str] = match flavour {
        Flavour::Uml => &["UML", "VIRTIO_UML"],
        Flavour::Vm => &["X86_64", "PVH", "VIRTIO_MMIO", "SERIAL_8250_CONSOLE"],
    };
    AGENT.iter().chain(machine).copied()
}

/// Checks that `kernel` has all of `needs`.
///
/// # Errors
/// [`KernelsError::MissingFeatures`] with everything that is missing and the
/// kernels of `store` (same flavour) that lack nothing.
pub fn check(kernel: &Kernel, needs: &[Need], store: &Store) -> Result<()> {
    let missing: Vec<Need> = needs
        .iter()
        .filter(|need| !kernel.has(&need.feature))
        .cloned()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let suitable = store
        .list()?
        .into_iter()
        .filter(|other| other.manifest.flavour == kernel.manifest.flavour)
        .filter(|other| needs.iter().all(|need| other.has(&need.feature)))
        .map(|other| other.manifest.name)
        .collect();
    Err(KernelsError::MissingFeatures {
        kernel: kernel.manifest.name.clone(),
        missing,
        suitable,
    })
}

//! What a test runs its containers on.

use std::fmt;
use std::path::{Path, PathBuf};

use super::product::{product, source_tree};
use super::wait;

/// A hypervisor of ours, or a peer runtime that proves the test itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Driver {
    /// User-Mode Linux.
    Uml,
    /// QEMU.
    Qemu,
    /// Our own machine on KVM, with the library directory that has a kernel for this host's KVM.
    Kvm(PathBuf),
    /// Another OCI runtime with runc's command line: a test of the bundle form that fails on it is
    /// wrong.
    Peer(PathBuf),
}

impl Driver {
    /// The driver named by a module that [`crate::suite!`] makes, or why tests cannot run on it.
    ///
    /// # Errors
    /// The reason, for the list of skipped tests.
    ///
    /// # Panics
    /// On a name no suite uses.
    pub fn named(name: &str) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("needs root".into());
        }
        let chosen = chosen();
        if !chosen.is_empty() && chosen != name {
            return Err(format!("restricted to {chosen}"));
        }
        match name {
            "uml" => Ok(Self::Uml),
            "qemu" => qemu(),
            "kvm" => kvm(),
            "peer" => peer(),
            other => panic!("no driver is called {other}"),
        }
    }

    /// The value of `--hypervisor`.
    ///
    /// # Panics
    /// For a peer: such a test must not run on one.
    #[must_use]
    pub fn hypervisor(&self) -> &'static str {
        match self {
            Self::Uml => "uml",
            Self::Qemu => "qemu",
            Self::Kvm(_) => "kvm",
            Self::Peer(path) => panic!("{} has no hypervisor", path.display()),
        }
    }

    /// The flavour of its kernels.
    ///
    /// # Panics
    /// For a peer.
    #[must_use]
    pub fn flavour(&self) -> &'static str {
        match self {
            Self::Uml => "uml",
            Self::Qemu | Self::Kvm(_) => "vm",
            Self::Peer(path) => panic!("{} has no kernels", path.display()),
        }
    }

    /// What `config.toml` has to say for it, besides the choice of the hypervisor.
    #[must_use]
    pub fn settings(&self) -> &'static str {
        match self {
            // Each page is a matter of instructions there, and each boot one of patience.
            Self::Kvm(_) if !virtualises() => "memory_mib = 64\nstart_timeout_s = 300\n",
            _ => "",
        }
    }

    /// A `config.toml` that chooses it: some of engines' verbs have no option for that.
    ///
    /// # Panics
    /// For a peer.
    #[must_use]
    pub fn config(&self) -> String {
        format!("hypervisor = {:?}\n{}", self.hypervisor(), self.settings())
    }

    /// Kernels and initramfs for it.
    #[must_use]
    pub fn lib(&self) -> &Path {
        match self {
            Self::Kvm(lib) => lib,
            _ => &product().lib,
        }
    }

    /// Whether it is a peer.
    #[must_use]
    pub fn is_peer(&self) -> bool {
        matches!(self, Self::Peer(_))
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(path) => write!(f, "{}", path.display()),
            own => f.write_str(own.hypervisor()),
        }
    }
}

/// What the tests of this run are restricted to; empty: nothing.
fn chosen() -> String {
    std::env::var("BULKHEAD_TEST_HYPERVISOR").unwrap_or_default()
}

/// Whether this run is for one driver alone, and it is this one.
#[must_use]
pub fn only(name: &str) -> bool {
    chosen() == name
}

fn qemu() -> Result<Driver, String> {
    if in_path("qemu-system-x86_64").is_none() {
        return Err("qemu-system-x86_64 is not installed".into());
    }
    if !product().has_kernel("vm") {
        return Err("no kernel of flavour vm is built".into());
    }
    Ok(Driver::Qemu)
}

/// With the ordinary kernel where the processor virtualises, else with the one for a KVM that
/// interprets.
fn kvm() -> Result<Driver, String> {
    if !Path::new("/dev/kvm").exists() {
        return Err("there is no /dev/kvm".into());
    }
    if virtualises() {
        return Ok(Driver::Kvm(product().lib.clone()));
    }
    wait::be_patient();
    let lib = emulated_lib();
    if !lib.join("kernels").is_dir() {
        return Err("no kernel for a KVM that interprets: cargo xtask kernel --emulated".into());
    }
    Ok(Driver::Kvm(lib))
}

/// The library directory with the kernel for a KVM that interprets.
#[must_use]
pub fn emulated_lib() -> PathBuf {
    source_tree().join("build/lib-emulated")
}

/// Whether the processor has virtualisation.
#[must_use]
pub fn virtualises() -> bool {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split(' ').any(|flag| flag == "vmx" || flag == "svm"))
}

fn peer() -> Result<Driver, String> {
    let named = std::env::var_os("BULKHEAD_TEST_RUNTIME").map(PathBuf::from);
    named
        .or_else(|| in_path("runc"))
        .map(Driver::Peer)
        .ok_or_else(|| "runc is not installed".into())
}

/// Finds a program as a shell would, and where Debian has those for root.
#[must_use]
pub fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|dir| Path::new(dir).join(program))
        .find(|candidate| candidate.is_file())
}

//! What can go wrong with a hypervisor.

use std::io;
use std::path::PathBuf;

use bulkhead_jail::JailError;
use bulkhead_kernels::Flavour;

use crate::Kind;

/// A failure to choose, start or command a hypervisor.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// The wanted hypervisor is not on this machine.
    #[error("Could not find {program}; install it with `{remedy}` or choose another hypervisor")]
    NotInstalled {
        /// What was looked for.
        program: &'static str,
        /// The command that installs it.
        remedy: &'static str,
    },
    /// The kernel is for another hypervisor.
    #[error(
        "Kernel {kernel:?} is of flavour {flavour}, but hypervisor {driver} boots {wanted}; choose another with --kernel"
    )]
    Flavour {
        /// The kernel's name.
        kernel: String,
        /// What it is for.
        flavour: Flavour,
        /// The driver that was to boot it.
        driver: Kind,
        /// What that one boots.
        wanted: Flavour,
    },
    /// More processors than the driver can give.
    #[error(
        "{asked} processors are more than hypervisor {driver} gives a machine ({most}); ask for fewer or choose another with --hypervisor"
    )]
    Vcpus {
        /// The driver.
        driver: Kind,
        /// What was asked for.
        asked: u32,
        /// Its limit.
        most: u32,
    },
    /// Too little memory for any kernel.
    #[error("A machine needs at least {least_mib} MiB of memory, not {asked_mib}")]
    Memory {
        /// What was asked for.
        asked_mib: u64,
        /// The least.
        least_mib: u64,
    },
    /// The driver's machines have no huge pages.
    #[error(
        "Hypervisor {driver} cannot make memory of huge pages; set huge_pages = false in /etc/bulkhead/config.toml or choose kvm or qemu"
    )]
    NoHugePages {
        /// The driver.
        driver: Kind,
    },
    /// The host has too few huge pages.
    #[error(
        "The memory needs {wanted} huge pages of 2 MiB, and {free} are free on this host; give it more (sysctl vm.nr_hugepages) or set huge_pages = false in /etc/bulkhead/config.toml"
    )]
    HugePages {
        /// How many the machine is made of.
        wanted: u64,
        /// How many there are.
        free: u64,
    },
    /// A word for the kernel's command line would be taken apart by the kernel.
    #[error(
        "The kernel's command line cannot carry {word:?}: white space, quotes and control characters are not allowed"
    )]
    CommandLine {
        /// The word.
        word: String,
    },
    /// The host refused something.
    #[error("Could not {step} {path:?}")]
    Host {
        /// What was attempted.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A file the hypervisor cannot do without is missing.
    #[error("Could not find {file} of {program}; reinstall it with `{remedy}`")]
    Incomplete {
        /// The missing file.
        file: String,
        /// What it belongs to.
        program: &'static str,
        /// The command that may help.
        remedy: &'static str,
    },
    /// The configuration of the jail could not be written down, e.g. for a path that is not UTF-8.
    #[error("Could not describe the jail of the hypervisor")]
    Describe(#[source] serde_json::Error),
    /// The jailed process could not be started.
    #[error("Could not start the hypervisor process")]
    Start(#[from] JailError),
    /// The jail of a running hypervisor could not be changed.
    #[error("Could not {step} the hypervisor process; it may have ended")]
    Jail {
        /// What was attempted.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: JailError,
    },
    /// The monitor connection failed.
    #[error("Could not {step} on QEMU's monitor; the machine may have ended")]
    Monitor {
        /// What was attempted.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The machine did not do as told.
    #[error("Could not {command} the machine")]
    Control {
        /// What was attempted.
        command: &'static str,
        /// Why it failed.
        #[source]
        source: bulkhead_vmm::control::ControlError,
    },
    /// The host's KVM interprets guest kernels, which only some kernels bear.
    #[error(
        "Kernel {kernel:?} cannot run on this host's KVM, which emulates guest kernels instruction by \
         instruction; choose one built for that with --kernel, or another hypervisor with --hypervisor"
    )]
    EmulatedKernel {
        /// The kernel's name.
        kernel: String,
    },
    /// There is no KVM to open.
    #[error("Hypervisor kvm cannot be used: {evidence}; choose another with --hypervisor")]
    NoKvm {
        /// What is wrong, with the remedy.
        evidence: String,
    },
    /// QEMU refused a command.
    #[error("QEMU refused the command {command}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's words.
        reason: String,
    },
}

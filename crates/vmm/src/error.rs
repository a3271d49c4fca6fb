//! What can go wrong with a machine.

use std::fmt::Write as _;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;

use bulkhead_jail::JailError;

use crate::config::DeviceKind;

/// A failure to make or run a machine.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// A file the machine starts from cannot be opened.
    #[error("Could not open {path:?}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// A descriptor that should have been inherited is not open.
    #[error("Descriptor {fd} is not open; start `bulkhead vmm` from the sandbox")]
    Descriptor {
        /// The number.
        fd: RawFd,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// A file the machine starts from cannot be read.
    #[error("Could not read {what}")]
    Read {
        /// What it is.
        what: &'static str,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The jail could not be entered.
    #[error("Could not enter the jail of the machine")]
    Jail(#[from] JailError),
    /// The host's KVM refused something.
    #[error("Could not {step}: this host's KVM refused; `bulkhead doctor` tells what it can do")]
    Kvm {
        /// What was attempted.
        step: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// A resource of the process itself could not be had.
    #[error("Could not {step}")]
    Host {
        /// What was attempted.
        step: &'static str,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The guest's memory could not be made.
    #[error("Could not {step} the guest's memory")]
    Memory {
        /// What was attempted.
        step: &'static str,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The host has too few huge pages.
    #[error(
        "Could not get {pages} huge pages for the guest's memory; give the host more (sysctl vm.nr_hugepages) or set huge_pages = false"
    )]
    HugePages {
        /// How many were asked for, of 2 MiB.
        pages: u64,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel is none that this machine boots.
    #[error("Could not load the kernel: {reason}; choose another with --kernel")]
    Kernel {
        /// What is wrong with it.
        reason: String,
        /// The host's answer, if it was asked.
        #[source]
        source: Option<io::Error>,
    },
    /// Something does not fit in the guest's memory.
    #[error(
        "Could not place {what} at {address:#x}: the memory ends before; give the machine more"
    )]
    TooSmall {
        /// What.
        what: &'static str,
        /// Where it was to be.
        address: u64,
    },
    /// The command line is too long.
    #[error("Could not pass the kernel a command line of {length} bytes; it takes {most}")]
    CommandLine {
        /// Its length.
        length: usize,
        /// The longest.
        most: usize,
    },
    /// The machine has no place for so many devices.
    #[error("Could not connect {count} devices; a machine has {most} at most")]
    TooManyDevices {
        /// How many were asked for.
        count: usize,
        /// The limit.
        most: usize,
    },
    /// A back end did not do as asked.
    #[error("Could not {step} the {kind} device; the device process may have ended")]
    Device {
        /// The device.
        kind: DeviceKind,
        /// What was attempted.
        step: &'static str,
        /// The front end's complaint.
        #[source]
        source: vhost::Error,
    },
    /// A back end lacks a part of the protocol.
    #[error(
        "Could not use the {kind} device: it does not speak all of the protocol that is needed"
    )]
    DeviceProtocol {
        /// The device.
        kind: DeviceKind,
    },
    /// A processor stopped for a reason that no guest in order gives.
    #[error(
        "Processor {number} of the guest stopped: {reason}\nregisters: {registers}\nexits: {exits}"
    )]
    Processor {
        /// Which.
        number: u8,
        /// Why.
        reason: String,
        /// Its registers then.
        registers: String,
        /// How often it had left the guest, by reason.
        exits: String,
    },
    /// The guest's kernel told of its panic; its last words are on the console.
    #[error(
        "The guest's kernel panicked on processor {number}; its last console lines say why\nregisters: {registers}\nexits: {exits}"
    )]
    Panicked {
        /// The processor that told it.
        number: u8,
        /// Its registers then.
        registers: String,
        /// How often it had left the guest, by reason.
        exits: String,
    },
    /// A value that is always right was not.
    #[error("Could not make {what}; please report this")]
    Internal {
        /// What.
        what: &'static str,
    },
}

impl VmmError {
    /// A refusal of KVM.
    pub(crate) fn kvm(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm {
            step,
            source: io::Error::from_raw_os_error(error.errno()),
        }
    }
}

/// The message of an error and of all that caused it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string does not fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

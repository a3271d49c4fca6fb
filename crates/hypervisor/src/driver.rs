//! What a driver is, and what some can and others cannot.

use std::fmt;
use std::os::fd::OwnedFd;

use bulkhead_kernels::{Flavour, Kernel};

use crate::cpu::CpuLease;
use crate::{HypervisorError, LaunchIo, Machine, MachineStatistics, Pluggable};

/// The drivers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// User-Mode Linux.
    Uml,
    /// QEMU's microvm machine.
    Qemu,
    /// Our own machine on KVM.
    Kvm,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uml => "uml",
            Self::Qemu => "qemu",
            Self::Kvm => "kvm",
        })
    }
}

/// What keeps the guest's kernel apart from the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// The processor's virtualisation.
    HardwareVm,
    /// An emulated processor: a jailed process that interprets the guest.
    EmulatedVm,
    /// A kernel that is itself a jailed process, and traces the guest's programs.
    UserModeKernel,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HardwareVm => "hardware-vm",
            Self::EmulatedVm => "emulated-vm",
            Self::UserModeKernel => "user-mode-kernel",
        })
    }
}

/// Devices that not every driver's machines have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackEnds {
    /// Random bytes.
    pub entropy: bool,
    /// Memory that goes back to the host.
    pub balloon: bool,
}

/// Boots machines.
pub trait Driver: fmt::Debug + Send + Sync {
    /// Which driver this is.
    fn kind(&self) -> Kind;

    /// What the guests of this driver are kept by.
    fn isolation(&self) -> Isolation;

    /// The kernels it boots.
    fn flavour(&self) -> Flavour;

    /// The most processors a machine may have.
    fn max_vcpus(&self) -> u32;

    /// The devices for which its machines take a vhost-user back end, besides those all have.
    fn back_ends(&self) -> BackEnds;

    /// Whether its machines' memory can be made of huge pages.
    fn has_huge_pages(&self) -> bool;

    /// Whether its machines with `kernel` are [`Pluggable`].
    fn can_plug(&self, kernel: &Kernel) -> bool;

    /// Starts `machine` in a jailed process and returns when that process exists; the guest boots
    /// meanwhile. The process is killed when the calling thread ends.
    ///
    /// # Errors
    /// When the machine is beyond the driver, something needed is missing, or the process cannot
    /// be started; nothing is left behind. What goes wrong later, in the jail or the guest, is
    /// told on the console, and ends the process.
    fn launch(&self, machine: &Machine, io: LaunchIo) -> Result<Vm, HypervisorError>;
}

/// A running machine. Dropping it leaves the process running: it is the caller's to kill and reap.
#[derive(Debug)]
pub struct Vm {
    /// The hypervisor process.
    pub pid: u32,
    /// Becomes readable when the hypervisor process has exited; to be waited for by the caller.
    pub pidfd: OwnedFd,
    /// The channel to a hypervisor that takes orders.
    pub(crate) control: Option<Box<dyn Control>>,
    /// The host processor the machine is pinned to; keep it as long as the machine runs.
    pub cpu: Option<CpuLease>,
}

impl Vm {
    /// The machine as one that can be paused, if its driver can.
    pub fn as_pausable(&self) -> Option<&dyn Pausable> {
        self.control.as_ref()?.as_pausable()
    }

    /// The machine as one whose memory can be made smaller, if its driver can.
    pub fn as_resizable(&self) -> Option<&dyn Resizable> {
        self.control.as_ref()?.as_resizable()
    }

    /// The machine as one that tells what it has cost, if its driver can.
    pub fn as_measurable(&self) -> Option<&dyn Measurable> {
        self.control.as_ref()?.as_measurable()
    }

    /// The machine as one to which devices can come, if its driver and its kernel can.
    pub fn as_pluggable(&self) -> Option<&dyn Pluggable> {
        self.control.as_ref()?.as_pluggable()
    }
}

/// The channel to a hypervisor, and what can be done by it.
pub(crate) trait Control: fmt::Debug + Send + Sync {
    fn as_pausable(&self) -> Option<&dyn Pausable>;

    fn as_measurable(&self) -> Option<&dyn Measurable>;

    fn as_resizable(&self) -> Option<&dyn Resizable>;

    fn as_pluggable(&self) -> Option<&dyn Pluggable>;
}

/// A machine that can be asked for some of its memory while it runs, and be given it again. It never has
/// more than it was started with.
pub trait Resizable {
    /// Asks the guest to make do with `bytes`. It follows in its own time, as far as it can, and takes
    /// memory back before it kills for want of it.
    ///
    /// # Errors
    /// When the hypervisor does not answer within some seconds, or refuses.
    fn set_memory(&self, bytes: u64) -> Result<(), HypervisorError>;

    /// How much memory the guest says it has at this moment, bytes.
    ///
    /// # Errors
    /// As [`set_memory`](Self::set_memory).
    fn memory(&self) -> Result<u64, HypervisorError>;
}

/// A machine that counts what its guest costs the host.
pub trait Measurable {
    /// The counts since the machine's start. They come from a process that reads guest bytes: good for
    /// telling a person, not for deciding.
    ///
    /// # Errors
    /// When the hypervisor does not answer within some seconds, or refuses.
    fn statistics(&self) -> Result<MachineStatistics, HypervisorError>;

    /// What the processors are about, a line for each of the first ones, with its registers; they are stopped for
    /// a moment. For telling a person, like the counts.
    ///
    /// # Errors
    /// As [`statistics`](Self::statistics).
    fn registers(&self) -> Result<Vec<String>, HypervisorError>;
}

/// A machine whose processors can be stopped and started again.
pub trait Pausable {
    /// Stops the guest's processors; its memory and devices stay. Returns when they stand still.
    ///
    /// # Errors
    /// When the hypervisor does not answer within some seconds, or refuses.
    fn pause(&self) -> Result<(), HypervisorError>;

    /// Lets the guest go on.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    fn resume(&self) -> Result<(), HypervisorError>;

    /// Whether the guest's processors run.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    fn is_running(&self) -> Result<bool, HypervisorError>;
}

/// What one driver can do, for documentation and `doctor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// The driver.
    pub kind: Kind,
    /// One line on what it is.
    pub summary: &'static str,
    /// [`Driver::max_vcpus`].
    pub max_vcpus: u32,
    /// Whether its machines are [`Pausable`].
    pub pause: bool,
    /// Whether memory the guest has freed goes back to the host, and its machines are [`Resizable`].
    pub memory: bool,
    /// Whether its machines are [`Measurable`].
    pub statistics: bool,
    /// Whether its machines are [`Pluggable`], with a kernel that can.
    pub plug: bool,
    /// Whether it needs a usable `/dev/kvm`.
    pub needs_kvm: bool,
}

impl Abilities {
    /// Those of `kind`.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        let [kvm, uml, qemu] = capabilities();
        match kind {
            Kind::Kvm => kvm,
            Kind::Uml => uml,
            Kind::Qemu => qemu,
        }
    }
}

/// What can be done with the machine: one line for people. No driver adds processors to a machine that
/// runs; there is no trait for that, so that nobody can ask for it.
impl fmt::Display for Abilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.max_vcpus {
            1 => f.write_str("1 processor")?,
            most => write!(f, "up to {most} processors")?,
        }
        let words = [
            (self.pause, "pause"),
            (self.memory, "memory given back and resized"),
            (self.statistics, "counts of what it costs"),
            (self.plug, "network cards and disks plugged while it runs"),
        ];
        for (_, word) in words.iter().filter(|(able, _)| *able) {
            write!(f, ", {word}")?;
        }
        f.write_str(if self.plug {
            "; processors stay those of the start"
        } else {
            "; processors and devices stay those of the start"
        })
    }
}

/// The table of all drivers.
pub fn capabilities() -> [Abilities; 3] {
    [
        Abilities {
            kind: Kind::Kvm,
            summary: "our own machine on hardware KVM: few exits, one small jailed process",
            max_vcpus: crate::kvm::MAX_VCPUS,
            pause: true,
            memory: true,
            statistics: true,
            plug: true,
            needs_kvm: true,
        },
        Abilities {
            kind: Kind::Uml,
            summary: "a Linux kernel that is an ordinary process; boots in tens of milliseconds",
            max_vcpus: crate::uml::MAX_VCPUS,
            pause: false,
            memory: false,
            statistics: false,
            plug: true,
            needs_kvm: false,
        },
        Abilities {
            kind: Kind::Qemu,
            summary: "QEMU's microvm: hardware KVM where it is usable, otherwise emulation",
            max_vcpus: crate::qemu::MAX_VCPUS,
            pause: true,
            memory: true,
            statistics: false,
            plug: false,
            needs_kvm: false,
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abilities_are_found_by_kind_and_told_in_one_line() {
        for kind in [Kind::Kvm, Kind::Uml, Kind::Qemu] {
            assert_eq!(Abilities::of(kind).kind, kind);
        }
        assert_eq!(
            Abilities::of(Kind::Uml).to_string(),
            "1 processor, network cards and disks plugged while it runs; processors stay those of the start"
        );
        let kvm = Abilities::of(Kind::Kvm).to_string();
        assert!(
            kvm.starts_with("up to 64 processors, pause, memory"),
            "{kvm}"
        );
    }
}

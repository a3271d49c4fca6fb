//! Our own machine (`bulkhead_vmm`): the built-in driver for KVM.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use bulkhead_jail::{Command, Jail, JailError, Namespaces, Profile};
use bulkhead_kernels::{Flavour, Kernel};
use bulkhead_vmm::control::{self, Client, ControlError};
use bulkhead_vmm::{DeviceConfig, DeviceKind, VmmConfig};

pub use bulkhead_vmm::Metrics as MachineStatistics;

use crate::cpu::CpuLease;
use crate::driver::{BackEnds, Measurable, Pausable, Resizable};
use crate::{
    Driver, HypervisorError, Isolation, Kind, LaunchIo, Machine, PlugKind, Pluggable, Plugged, Vm,
    launch,
};

pub(crate) const MAX_VCPUS: u32 = bulkhead_vmm::MAX_VCPUS as u32;

/// The hat that is the machine.
const HAT: &str = "vmm";

/// Descriptors of the machine's process: the control channel, then the devices.
const CONTROL_FD: i32 = 4;
const FIRST_DEVICE_FD: i32 = 5;

/// How a kernel that runs where the guest's kernel mode is interpreted is told apart: by a patch it was
/// built with.
const EMULATION_PATCH: &str = "emulated-kvm";

/// What keeps a kernel from instructions that no such host interprets, or only byte by byte. The
/// processor's list of features cannot: user mode, and with it CPUID, is the host's own.
const EMULATION_WORD: &str = "clearcpuid=xsave,smap,smep,cx16,fsgsbase,pcid,invpcid,popcnt,rdrand,\
                              rdseed,rdpid,umip,erms,fsrm";

/// Tells the agent, as an environment variable, that this machine is ended by its reset line.
const END: &str = "BULKHEAD_END=reset";

/// The driver for our own machine.
#[derive(Clone, Copy, Debug)]
pub struct BuiltIn {
    emulated: bool,
}

impl BuiltIn {
    /// The driver for a host whose KVM runs guests natively, or, with `emulated`, interprets their
    /// kernels.
    pub fn new(emulated: bool) -> Self {
        Self { emulated }
    }

    /// What the kernel is told besides what the machine is.
    fn words(self, machine: &Machine) -> Vec<String> {
        let mut words = vec![END.to_owned()];
        if self.emulated {
            words.push(EMULATION_WORD.to_owned());
        }
        words.extend(machine.cmdline.iter().cloned());
        words
    }
}

impl Driver for BuiltIn {
    fn kind(&self) -> Kind {
        Kind::Kvm
    }

    fn isolation(&self) -> Isolation {
        if self.emulated {
            Isolation::EmulatedVm
        } else {
            Isolation::HardwareVm
        }
    }

    fn flavour(&self) -> Flavour {
        Flavour::Vm
    }

    fn max_vcpus(&self) -> u32 {
        // A kernel built for such hosts knows one processor.
        if self.emulated { 1 } else { MAX_VCPUS }
    }

    fn back_ends(&self) -> BackEnds {
        BackEnds {
            entropy: true,
            balloon: true,
        }
    }

    fn has_huge_pages(&self) -> bool {
        true
    }

    fn can_plug(&self, kernel: &Kernel) -> bool {
        launch::takes_devices(kernel)
    }

    fn launch(&self, machine: &Machine, io: LaunchIo) -> Result<Vm, HypervisorError> {
        let memory_mib = launch::check(self, machine)?;
        let patches = &machine.kernel.manifest.patches;
        if self.emulated && !patches.iter().any(|name| name.contains(EMULATION_PATCH)) {
            return Err(HypervisorError::EmulatedKernel {
                kernel: machine.kernel.manifest.name.clone(),
            });
        }
        let (client, theirs) = control::pair().map_err(|source| HypervisorError::Host {
            step: "make a control channel for",
            path: io.bulkhead.clone(),
            source,
        })?;
        let mut fds = vec![(theirs, CONTROL_FD)];
        let mut devices = Vec::new();
        let sockets = [
            (DeviceKind::Fs, machine.fs_socket.as_deref()),
            (DeviceKind::Vsock, machine.vsock_socket.as_deref()),
            (DeviceKind::Entropy, machine.entropy_socket.as_deref()),
            (DeviceKind::Balloon, machine.balloon_socket.as_deref()),
        ];
        let cards = machine
            .nets
            .iter()
            .map(|net| (DeviceKind::Net, Some(net.socket.as_path())));
        let disks = machine.disks.iter();
        let disks = disks.map(|socket| (DeviceKind::Block, Some(socket.as_path())));
        let present = sockets
            .into_iter()
            .chain(cards)
            .chain(disks)
            .filter_map(|(kind, path)| Some((kind, path?)));
        for ((kind, path), fd) in present.zip(FIRST_DEVICE_FD..) {
            fds.push((launch::connect(path)?, fd));
            devices.push(DeviceConfig { kind, fd });
        }
        let config = VmmConfig {
            jail: Jail {
                cpus: machine.cpu.into_iter().collect(),
                without_paths: true,
                ..Jail::new(&machine.id, machine.uid, machine.gid, Profile::Vmm)
            },
            kernel: machine.kernel.image.clone(),
            initramfs: machine.initramfs.clone(),
            cmdline: self.words(machine),
            memory_mib,
            huge_pages: machine.huge_pages,
            vcpus: u8::try_from(machine.vcpus).unwrap_or(bulkhead_vmm::MAX_VCPUS),
            devices,
            control_fd: CONTROL_FD,
        };
        let child = spawn(&config, io, fds)?;
        Ok(Vm {
            pid: child.pid,
            pidfd: child.pidfd,
            control: Some(Box::new(Commanded {
                client,
                has_balloon: machine.balloon_socket.is_some(),
                can_plug: self.can_plug(&machine.kernel),
            })),
            cpu: machine.cpu.map(CpuLease::given),
        })
    }
}

fn spawn(
    config: &VmmConfig,
    io: LaunchIo,
    mut fds: Vec<(OwnedFd, i32)>,
) -> Result<bulkhead_jail::Child, HypervisorError> {
    let json = serde_json::to_string(config).map_err(HypervisorError::Describe)?;
    let string = |text: &str| {
        CString::new(text).map_err(|_| JailError::Nul {
            what: "the machine's configuration",
        })
    };
    let args = vec![string(HAT)?, string(&json)?];
    fds.extend(launch::console(io.console, &io.bulkhead)?);
    let command = Command {
        program: io.bulkhead,
        args,
        fds,
        namespaces: Namespaces::default(),
    };
    Ok(bulkhead_jail::spawn(command)?)
}

fn failed(command: &'static str) -> impl Fn(ControlError) -> HypervisorError {
    move |source| HypervisorError::Control { command, source }
}

impl Pausable for Client {
    fn pause(&self) -> Result<(), HypervisorError> {
        Client::pause(self).map_err(failed("stop"))
    }

    fn resume(&self) -> Result<(), HypervisorError> {
        Client::resume(self).map_err(failed("resume"))
    }

    fn is_running(&self) -> Result<bool, HypervisorError> {
        Client::is_running(self).map_err(failed("ask after"))
    }
}

impl Measurable for Client {
    fn statistics(&self) -> Result<MachineStatistics, HypervisorError> {
        self.metrics().map_err(failed("measure"))
    }

    fn registers(&self) -> Result<Vec<String>, HypervisorError> {
        Client::registers(self).map_err(failed("read the registers of"))
    }
}

impl Resizable for Client {
    fn set_memory(&self, bytes: u64) -> Result<(), HypervisorError> {
        self.resize(bytes).map_err(failed("resize"))
    }

    fn memory(&self) -> Result<u64, HypervisorError> {
        Client::memory(self).map_err(failed("ask after the memory of"))
    }
}

impl Pluggable for Client {
    fn plug(&self, kind: PlugKind, socket: &Path) -> Result<Plugged, HypervisorError> {
        let kind = match kind {
            PlugKind::Net => DeviceKind::Net,
            PlugKind::Block => DeviceKind::Block,
        };
        let connection = launch::connect(socket)?;
        let number = Client::plug(self, kind, connection).map_err(failed("plug a device into"))?;
        let number = usize::from(number);
        Ok(Plugged {
            driver: "virtio-mmio",
            words: bulkhead_vmm::place_of(number).unwrap_or_default(),
            name: format!("virtio-mmio.{number}"),
            number,
        })
    }

    fn unplug(&self, device: &Plugged) -> Result<(), HypervisorError> {
        match u8::try_from(device.number) {
            Ok(number) => Client::unplug(self, number).map_err(failed("unplug a device of")),
            Err(_) => Ok(()),
        }
    }
}

/// The channel to a machine with a balloon or without, with a kernel that takes devices or does not.
#[derive(Debug)]
struct Commanded {
    client: Client,
    has_balloon: bool,
    can_plug: bool,
}

impl crate::driver::Control for Commanded {
    fn as_pausable(&self) -> Option<&dyn Pausable> {
        Some(&self.client)
    }

    fn as_measurable(&self) -> Option<&dyn Measurable> {
        Some(&self.client)
    }

    fn as_resizable(&self) -> Option<&dyn Resizable> {
        self.has_balloon.then_some(&self.client)
    }

    fn as_pluggable(&self) -> Option<&dyn Pluggable> {
        self.can_plug.then_some(&self.client)
    }
}

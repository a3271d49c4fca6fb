//! QEMU's microvm machine, with KVM where that is usable, otherwise interpreting (TCG).

mod arguments;
mod files;
mod qmp;
mod tsc;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use bulkhead_jail::exec::ExecConfig;
use bulkhead_jail::{Jail, Profile, Root};
use bulkhead_kernels::{Flavour, Kernel};

use crate::cpu::CpuLease;
use crate::{BackEnds, Driver, HypervisorError, Isolation, Kind, LaunchIo, Machine, Vm, launch};

use qmp::Monitor;

pub(crate) const MAX_VCPUS: u32 = 64;

/// The program and how to get it.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
pub(crate) const REMEDY: &str = "apt-get install qemu-system-x86";

/// QEMU is one process with a thread for each processor and a few for itself.
const PROCESSES: u64 = 256;

/// Descriptors of the QEMU process: connections that are open when it starts.
pub(crate) const MONITOR_FD: i32 = 4;
pub(crate) const FS_FD: i32 = 5;
pub(crate) const VSOCK_FD: i32 = 6;
pub(crate) const ENTROPY_FD: i32 = 7;

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// The driver for QEMU.
#[derive(Clone, Debug)]
pub struct Qemu {
    program: PathBuf,
    accelerator: Accelerator,
}

impl Qemu {
    /// The QEMU in the usual directories for programs.
    ///
    /// # Errors
    /// [`HypervisorError::NotInstalled`] if there is none.
    pub fn locate(accelerator: Accelerator) -> Result<Self, HypervisorError> {
        ["/usr/local/bin", "/usr/bin", "/bin", "/usr/libexec"]
            .into_iter()
            .map(|dir| Path::new(dir).join(PROGRAM))
            .find(|path| path.is_file())
            .map(|program| Self {
                program,
                accelerator,
            })
            .ok_or(HypervisorError::NotInstalled {
                program: PROGRAM,
                remedy: REMEDY,
            })
    }

    /// The QEMU at `program`.
    pub fn at(program: PathBuf, accelerator: Accelerator) -> Self {
        Self {
            program,
            accelerator,
        }
    }
}

impl Driver for Qemu {
    fn kind(&self) -> Kind {
        Kind::Qemu
    }

    fn isolation(&self) -> Isolation {
        match self.accelerator {
            Accelerator::Kvm => Isolation::HardwareVm,
            Accelerator::Tcg => Isolation::EmulatedVm,
        }
    }

    fn flavour(&self) -> Flavour {
        Flavour::Vm
    }

    fn max_vcpus(&self) -> u32 {
        MAX_VCPUS
    }

    fn back_ends(&self) -> BackEnds {
        BackEnds {
            entropy: true,
            // It has one itself, and takes no other.
            balloon: false,
        }
    }

    fn has_huge_pages(&self) -> bool {
        true
    }

    fn can_plug(&self, _kernel: &Kernel) -> bool {
        false
    }

    fn launch(&self, machine: &Machine, io: LaunchIo) -> Result<Vm, HypervisorError> {
        let memory_mib = launch::check(self, machine)?;
        let rate = tsc::Measurement::begin();
        let files = files::collect(&self.program, machine, self.accelerator)?;
        let config = ExecConfig {
            jail: Jail {
                root: Root {
                    tmpfs_bytes: 1 << 20,
                    exec: false,
                    entries: files.entries,
                },
                cpus: machine.cpu.into_iter().collect(),
                ..Jail::new(&machine.id, machine.uid, machine.gid, Profile::Qemu)
            },
            program: files::QEMU.into(),
            args: arguments::list(machine, memory_mib, self.accelerator, rate),
            env: files::ENVIRONMENT.map(str::to_owned).to_vec(),
            personality: 0,
            processes: Some(PROCESSES),
        };
        let (ours, theirs) = UnixStream::pair().map_err(|source| HypervisorError::Host {
            step: "make a monitor connection for",
            path: self.program.clone(),
            source,
        })?;
        let mut fds = vec![(OwnedFd::from(theirs), MONITOR_FD)];
        let sockets = [
            (&machine.fs_socket, FS_FD),
            (&machine.vsock_socket, VSOCK_FD),
            (&machine.entropy_socket, ENTROPY_FD),
        ];
        for (path, number) in sockets {
            if let Some(path) = path {
                // Connections, not addresses: then QEMU needs no way to the file system.
                fds.push((launch::connect(path)?, number));
            }
        }
        let child = launch::start(&config, io.bulkhead, io.console, fds)?;
        let cpu = machine.cpu.map(CpuLease::given);
        Ok(Vm {
            pid: child.pid,
            pidfd: child.pidfd,
            control: Some(Box::new(Monitor::new(ours, !machine.huge_pages))),
            cpu,
        })
    }
}

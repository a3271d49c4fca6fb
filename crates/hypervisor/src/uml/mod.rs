//! User-Mode Linux: the guest's kernel as a jailed process of the host.
//!
//! The kernel traces the guest's programs (ptrace): each has a process of its own on the host,
//! whose system calls never reach the host. The jail therefore is the second wall, behind a kernel
//! that can do no more than any process; it holds for a guest that has taken its kernel over.

mod cmdline;
mod plug;

use std::path::Path;

use bulkhead_jail::exec::ExecConfig;
use bulkhead_jail::{Entry, Jail, Profile, Root};
use bulkhead_kernels::{Flavour, Kernel};

use crate::cpu::CpuLease;
use crate::{BackEnds, Driver, HypervisorError, Isolation, Kind, LaunchIo, Machine, Vm, launch};

use plug::Sockets;

pub(crate) const MAX_VCPUS: u32 = 1;

/// Paths inside the jail.
pub(crate) const KERNEL: &str = "/linux";
pub(crate) const INITRAMFS: &str = "/initramfs";
pub(crate) const SCRATCH: &str = "/tmp";
pub(crate) const FS_SOCKET: &str = "/fs";
pub(crate) const VSOCK_SOCKET: &str = "/vsock";

/// The same for the `number`th network card.
pub(crate) fn net_socket(number: usize) -> String {
    format!("/net{number}")
}

/// The same for the `number`th disk.
pub(crate) fn disk_socket(number: usize) -> String {
    format!("/disk{number}")
}

/// Room on the scratch file system beside the guest's memory: a page for the kernel's test whether
/// it may map memory executable, and its directory of run-time files.
const SCRATCH_SLACK: u64 = 1 << 20;

/// `ADDR_NO_RANDOMIZE` of `personality(2)`. With a heap at a random distance from its data, the
/// kernel enlarges its memory by that distance, by half a gigabyte of page structures at worst.
const PERSONALITY: u32 = 0x0004_0000;

/// Each process of the guest has one on the host. A guest out for damage must not use up the
/// host's; one out for work has no memory for more than this.
fn processes(memory_mib: u64) -> u64 {
    memory_mib.saturating_mul(16).clamp(1024, 16_384)
}

/// Environment of the kernel process.
///
/// The C library must not register restartable sequences: the registration is inherited by the
/// processes of guest programs, from whose memory its target is then unmapped, and the host kills
/// them for it at their first interruption.
const ENVIRONMENT: [&str; 2] = ["TMPDIR=/tmp", "GLIBC_TUNABLES=glibc.pthread.rseq=0"];

/// The driver for User-Mode Linux.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uml;

impl Driver for Uml {
    fn kind(&self) -> Kind {
        Kind::Uml
    }

    fn isolation(&self) -> Isolation {
        Isolation::UserModeKernel
    }

    fn flavour(&self) -> Flavour {
        Flavour::Uml
    }

    fn max_vcpus(&self) -> u32 {
        MAX_VCPUS
    }

    fn back_ends(&self) -> BackEnds {
        // Its kernel asks the host for random bytes itself, and its memory is its process's own.
        BackEnds::default()
    }

    fn has_huge_pages(&self) -> bool {
        false
    }

    fn can_plug(&self, kernel: &Kernel) -> bool {
        launch::takes_devices(kernel)
    }

    fn launch(&self, machine: &Machine, io: LaunchIo) -> Result<Vm, HypervisorError> {
        let memory_mib = launch::check(self, machine)?;
        // Tracer and traced take turns: on two processors each system call costs four times more.
        let cpu = machine.cpu.map(CpuLease::given).or_else(CpuLease::take);
        let config = ExecConfig {
            jail: jail(machine, memory_mib, cpu.as_ref())?,
            program: KERNEL.into(),
            args: cmdline::words(machine, memory_mib),
            env: ENVIRONMENT.map(str::to_owned).to_vec(),
            personality: PERSONALITY,
            processes: Some(processes(memory_mib)),
        };
        let child = launch::start(&config, io.bulkhead, io.console, Vec::new())?;
        let sockets = Sockets::new(machine, &child.pidfd)?;
        Ok(Vm {
            pid: child.pid,
            pidfd: child.pidfd,
            control: self
                .can_plug(&machine.kernel)
                .then_some(Box::new(sockets) as _),
            cpu,
        })
    }
}

fn jail(
    machine: &Machine,
    memory_mib: u64,
    cpu: Option<&CpuLease>,
) -> Result<Jail, HypervisorError> {
    let mut entries = vec![
        launch::file(&machine.kernel.image, KERNEL, true),
        launch::file(&machine.initramfs, INITRAMFS, false),
        Entry::Device {
            source: "/dev/null".into(),
            target: "/dev/null".into(),
        },
        // The guest's memory is a file here; the kernel maps it executable.
        Entry::Tmpfs {
            target: SCRATCH.into(),
            bytes: (memory_mib << 20).saturating_add(SCRATCH_SLACK),
            mode: 0o700,
            exec: true,
        },
    ];
    let sockets = [
        (&machine.fs_socket, FS_SOCKET),
        (&machine.vsock_socket, VSOCK_SOCKET),
    ];
    for (source, target) in sockets {
        if let Some(source) = source {
            entries.push(launch::socket(source, target, machine)?);
        }
    }
    for (number, net) in machine.nets.iter().enumerate() {
        entries.push(launch::socket(&net.socket, &net_socket(number), machine)?);
    }
    for (number, socket) in machine.disks.iter().enumerate() {
        entries.push(launch::socket(socket, &disk_socket(number), machine)?);
    }
    Ok(Jail {
        root: Root {
            tmpfs_bytes: 0,
            exec: false,
            entries,
        },
        cpus: cpu.map(CpuLease::cpu).into_iter().collect(),
        ..Jail::new(&machine.id, machine.uid, machine.gid, Profile::Uml)
    })
}

/// Whether the host has what UML needs besides its kernel: nothing, on this architecture.
pub(crate) fn available() -> bool {
    cfg!(target_arch = "x86_64") && Path::new("/dev/null").exists()
}

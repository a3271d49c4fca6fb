//! The machine to boot, as all drivers understand it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use bulkhead_kernels::Kernel;

/// Description of a virtual machine. Paths are of the host.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Names the machine in messages.
    pub id: String,
    /// Size of the guest's memory; rounded down to whole MiB.
    pub memory_bytes: u64,
    /// Whether the memory is made of the host's huge pages of 2 MiB, all of them taken at the start and
    /// none given back before the end; its size is rounded down to a whole number of them.
    pub huge_pages: bool,
    /// Number of processors, at most the driver's [`max_vcpus`](crate::Driver::max_vcpus).
    pub vcpus: u32,
    /// The kernel to boot, of the driver's flavour.
    pub kernel: Kernel,
    /// The initial file system: a cpio archive.
    pub initramfs: PathBuf,
    /// Words to add to the kernel's command line.
    pub cmdline: Vec<String>,
    /// Socket of the vhost-user virtio-fs back end, if the machine has such a device.
    pub fs_socket: Option<PathBuf>,
    /// The tag under which the guest mounts the shared file system.
    pub fs_tag: String,
    /// Socket of the vhost-user vsock back end, if the machine has such a device.
    pub vsock_socket: Option<PathBuf>,
    /// The guest's vsock address. The back end tells it to the guest.
    pub guest_cid: u64,
    /// Socket of the vhost-user back end for random bytes, if the driver takes one.
    pub entropy_socket: Option<PathBuf>,
    /// Socket of the vhost-user balloon, if the driver takes one.
    pub balloon_socket: Option<PathBuf>,
    /// The machine's network cards.
    pub nets: Vec<Net>,
    /// Sockets of the vhost-user back ends of the machine's disks.
    pub disks: Vec<PathBuf>,
    /// Host user the hypervisor process runs as; to be given to no other process.
    pub uid: u32,
    /// Host group the hypervisor process runs as.
    pub gid: u32,
    /// Host processor to run on; none: the driver chooses if it wants the machine on one.
    pub cpu: Option<usize>,
}

/// A network card. Its back end tells the guest the same hardware address.
#[derive(Clone, Debug)]
pub struct Net {
    /// Socket of its vhost-user back end.
    pub socket: PathBuf,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// What its driver is told of the network's MTU, bytes; none: nothing.
    pub mtu: Option<u16>,
}

/// What a machine is connected to at its start.
#[derive(Debug)]
pub struct LaunchIo {
    /// Receives the guest's console and the hypervisor's own messages; the write end of a pipe.
    pub console: OwnedFd,
    /// The executable that provides the hat `jailed` (see `bulkhead_jail::exec`).
    pub bulkhead: PathBuf,
}

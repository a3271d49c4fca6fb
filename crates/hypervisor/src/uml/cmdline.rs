//! The command line of a User-Mode Linux kernel, which is both its own and its guest's.

use super::{FS_SOCKET, INITRAMFS, SCRATCH, VSOCK_SOCKET, disk_socket, net_socket};
use crate::Machine;

/// Virtio device types (virtio 1.2, section 5).
pub(super) const VIRTIO_NET: u32 = 1;
pub(super) const VIRTIO_BLOCK: u32 = 2;
const VIRTIO_VSOCK: u32 = 19;
const VIRTIO_FS: u32 = 26;

pub(super) fn words(machine: &Machine, memory_mib: u64) -> Vec<String> {
    let mut words = vec![
        format!("mem={memory_mib}M"),
        format!("initrd={INITRAMFS}"),
        // Its run-time files: a directory named after umid.
        format!("uml_dir={SCRATCH}/"),
        "umid=vm".to_owned(),
        // The console's input has no end, its output is standard output; there are no others.
        "con0=null,fd:1".to_owned(),
        "con=null".to_owned(),
        "ssl=null".to_owned(),
        // Errors and panics are shown, the story of an ordinary boot is not: each line costs.
        "quiet".to_owned(),
        // A panic ends the process at once.
        "panic=-1".to_owned(),
        // Loops per tick for delays, of which there are hardly any here. Measuring would take four
        // ticks; a number too high makes delays too long, which is the harmless direction.
        "lpj=50000000".to_owned(),
        // A benchmark of RAID algorithms nobody waits for, and 256 terminals of 1985.
        "initcall_blacklist=raid6_select_algo".to_owned(),
        "pty.legacy_count=0".to_owned(),
    ];
    let devices = [
        (&machine.fs_socket, FS_SOCKET, VIRTIO_FS),
        (&machine.vsock_socket, VSOCK_SOCKET, VIRTIO_VSOCK),
    ];
    for (source, path, id) in devices {
        if source.is_some() {
            words.push(format!("virtio_uml.device={path}:{id}"));
        }
    }
    for number in 0..machine.nets.len() {
        let path = net_socket(number);
        words.push(format!("virtio_uml.device={path}:{VIRTIO_NET}"));
    }
    for number in 0..machine.disks.len() {
        let path = disk_socket(number);
        words.push(format!("virtio_uml.device={path}:{VIRTIO_BLOCK}"));
    }
    words.extend(machine.cmdline.iter().cloned());
    words
}

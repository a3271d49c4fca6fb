//! The device process of a machine: what it serves, and its jail.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use bulkhead_agent_api::{GUEST_CID, SHARE_TAG};
use bulkhead_devices::{BlockConfig, DeviceConfig, FsConfig, NetConfig, VsockConfig};
use bulkhead_jail::{Capability, Entry, Jail, Namespaces, Profile, Root};
use bulkhead_network::Port;
use bulkhead_oci::plan::Disk;

use super::{Layer, VmError, file, own_executable, step};
use crate::disks;
use crate::paths::{Paths, socket_path};
use crate::plan::Plan;

pub(super) fn listen(dir: &OwnedFd, name: &str, uid: u32) -> Result<OwnedFd, VmError> {
    let path = socket_path(dir, name);
    // The name we use for it holds only in this process.
    let shown = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    let shown = shown.unwrap_or_default().join(name);
    let listener = UnixListener::bind(&path).map_err(file("bind the device socket", shown))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        .and_then(|()| std::os::unix::fs::chown(&path, Some(uid), Some(uid)))
        .map_err(step("hand a device socket to the hypervisor's user"))?;
    Ok(listener.into())
}

/// Where the hypervisor connects for what each machine has at most one of.
pub(super) struct MachineWide {
    pub(super) fs: OwnedFd,
    pub(super) vsock: OwnedFd,
    pub(super) entropy: Option<OwnedFd>,
    pub(super) balloon: Option<OwnedFd>,
}

/// A network card to be served: its tap, and where the hypervisor connects.
pub(super) struct Card {
    pub(super) port: Port,
    pub(super) listener: OwnedFd,
}

pub(super) fn cards(ports: Vec<Port>, dir: &OwnedFd, uid: u32) -> Result<Vec<Card>, VmError> {
    let numbered = ports.into_iter().enumerate();
    numbered
        .map(|(number, port)| {
            let listener = listen(dir, &format!("net{number}.sock"), uid)?;
            Ok(Card { port, listener })
        })
        .collect()
}

/// A disk to be served: what is on it, and where the hypervisor connects.
pub(super) struct OpenDisk {
    pub(super) file: fs::File,
    pub(super) read_only: bool,
    pub(super) listener: OwnedFd,
}

pub(super) fn disks(wanted: &[Disk], dir: &OwnedFd, uid: u32) -> Result<Vec<OpenDisk>, VmError> {
    let numbered = wanted.iter().enumerate();
    numbered
        .map(|(number, disk)| {
            Ok(OpenDisk {
                file: disks::open(disk)?,
                read_only: disk.read_only,
                listener: listen(dir, &format!("disk{number}.sock"), uid)?,
            })
        })
        .collect()
}

pub(super) fn spawn_device(
    jail: Jail,
    machine_wide: MachineWide,
    control: OwnedFd,
    cards: Vec<Card>,
    disks: Vec<OpenDisk>,
    log: &fs::File,
) -> Result<bulkhead_jail::Child, VmError> {
    const FS_FD: i32 = 4;
    const VSOCK_FD: i32 = 5;
    const CONTROL_FD: i32 = 6;
    const ENTROPY_FD: i32 = 7;
    const BALLOON_FD: i32 = 8;
    const FIRST_CARD_FD: i32 = 9;
    let mut fds = vec![
        (machine_wide.fs, FS_FD),
        (machine_wide.vsock, VSOCK_FD),
        (control, CONTROL_FD),
    ];
    let entropy_fd = machine_wide.entropy.as_ref().map(|_| ENTROPY_FD);
    let balloon_fd = machine_wide.balloon.as_ref().map(|_| BALLOON_FD);
    fds.extend(machine_wide.entropy.zip(entropy_fd));
    fds.extend(machine_wide.balloon.zip(balloon_fd));
    let mut nets = Vec::with_capacity(cards.len());
    let mut pairs = (FIRST_CARD_FD..).step_by(2);
    for (card, listener_fd) in cards.into_iter().zip(pairs.by_ref()) {
        let tap_fd = listener_fd.saturating_add(1);
        nets.push(NetConfig {
            listener_fd,
            tap_fd,
            mac: card.port.mac,
            mtu: card.port.mtu,
        });
        fds.extend([(card.listener, listener_fd), (card.port.tap, tap_fd)]);
    }
    let mut blocks = Vec::with_capacity(disks.len());
    for (number, (disk, listener_fd)) in (0_u32..).zip(disks.into_iter().zip(pairs)) {
        let file_fd = listener_fd.saturating_add(1);
        blocks.push(BlockConfig {
            listener_fd,
            file_fd,
            read_only: disk.read_only,
            serial: bulkhead_devices::block::serial(number),
        });
        fds.extend([(disk.listener, listener_fd), (disk.file.into(), file_fd)]);
    }
    let config = DeviceConfig {
        jail,
        fs: FsConfig {
            listener_fd: FS_FD,
            tag: SHARE_TAG.to_owned(),
            root: PathBuf::from("/"),
        },
        vsock: VsockConfig {
            listener_fd: VSOCK_FD,
            guest_cid: u64::from(GUEST_CID),
            control_fd: CONTROL_FD,
        },
        entropy_fd,
        balloon_fd,
        nets,
        blocks,
    };
    let log = log
        .as_fd()
        .try_clone_to_owned()
        .map_err(step("share the sandbox's log"))?;
    let out = log.try_clone().map_err(step("share the sandbox's log"))?;
    fds.extend([(out, 1), (log, 2)]);
    let command = bulkhead_jail::Command {
        program: own_executable(),
        args: crate::spawn::arguments("device", &config)
            .map_err(step("describe the device process"))?,
        fds,
        namespaces: Namespaces::default(),
    };
    bulkhead_jail::spawn(command).map_err(VmError::Device)
}

/// The container's files in the file system shared with the guest, the root file system first.
pub(super) fn shares(plan: &Plan) -> Vec<Entry> {
    let root = Path::new("/");
    let rootfs = root.join(&plan.guest.rootfs_target);
    let mut entries = vec![bind(plan.rootfs(), &rootfs, false, true)];
    entries.extend(plan.guest.shares.iter().map(|share| {
        let target = root.join(&share.target);
        bind(&share.source, &target, share.read_only, share.recursive)
    }));
    entries
}

pub(super) fn device_jail(
    plan: &Plan,
    layer: Option<&Layer>,
    paths: &Paths,
    cpu: Option<usize>,
) -> Jail {
    let mut entries = shares(plan);
    if let (Some(layer), Some(rootfs)) = (layer, entries.first_mut()) {
        *rootfs = Entry::Overlay {
            lower: vec![layer.lower.clone()],
            upper: layer.writable.join("upper"),
            work: layer.writable.join("work"),
            target: Path::new("/").join(&plan.guest.rootfs_target),
        };
    }
    Jail {
        hostname: paths.id().to_string(),
        root: Root {
            tmpfs_bytes: 1 << 20,
            exec: false,
            entries,
        },
        uid: 0,
        gid: 0,
        // What a file server needs to act for the guest's users, and nothing else.
        capabilities: vec![
            Capability::Chown,
            Capability::DacOverride,
            Capability::Fowner,
            Capability::Fsetid,
            Capability::Setgid,
            Capability::Setuid,
            Capability::Mknod,
            Capability::Setfcap,
        ],
        seccomp: Profile::Device,
        cpus: cpu.into_iter().collect(),
        without_paths: false,
    }
}

fn bind(source: &Path, target: &Path, read_only: bool, recursive: bool) -> Entry {
    Entry::Bind {
        source: source.to_owned(),
        target: target.to_owned(),
        read_only,
        // The guest decides about set-user-id and devices itself; on the host nothing is ever
        // executed or opened as a device through this mount.
        nosuid: true,
        nodev: true,
        noexec: true,
        recursive,
    }
}

//! The device process: what it is given, the order in which it gives up power, its threads.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use bulkhead_jail::{Jail, JailError};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::FileType;
use rustix::io::FdFlags;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::balloon::Balloon;
use crate::entropy::Entropy;
use crate::fs::{Fs, FsError, share};
use crate::net::frames::Tap;
use crate::session::{Device as _, End, Session, SessionError};
use crate::tally::Tallies;
use crate::vsock::Vsock;
use crate::vsock::control::DeviceChannel;
use crate::vsock::mux::Mux;
use crate::workers::{self, Comers, Workers};

/// The limit of open files to aim for. More files than in most images, and few enough that the
/// host's memory for them (about 1.5 KiB each) stays within bounds if a guest wants them all.
const MANY_FDS: u64 = 1 << 18;

/// What `bulkhead device` is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeviceConfig {
    /// The jail to enter before the first byte of the guest is read. Its root is what the file
    /// system shares.
    pub jail: Jail,
    /// The shared file system.
    pub fs: FsConfig,
    /// The streams.
    pub vsock: VsockConfig,
    /// Inherited listening `AF_UNIX` stream socket for random bytes, if the machine has such a device.
    #[serde(default)]
    pub entropy_fd: Option<RawFd>,
    /// The same for the balloon.
    #[serde(default)]
    pub balloon_fd: Option<RawFd>,
    /// The network cards.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// The disks.
    #[serde(default)]
    pub blocks: Vec<BlockConfig>,
}

/// The virtio-fs device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FsConfig {
    /// Inherited listening `AF_UNIX` stream socket the hypervisor connects to.
    pub listener_fd: RawFd,
    /// Name under which the guest mounts the file system; 1 to 36 bytes.
    pub tag: String,
    /// The directory to share, as a path inside the jail.
    pub root: PathBuf,
}

/// The virtio-vsock device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VsockConfig {
    /// Inherited listening `AF_UNIX` stream socket the hypervisor connects to.
    pub listener_fd: RawFd,
    /// The guest's context id: 3 or more, below 2^32 - 1.
    pub guest_cid: u64,
    /// Inherited end of the control channel, see [`crate::vsock::control`].
    pub control_fd: RawFd,
}

/// A virtio-net device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetConfig {
    /// Inherited listening `AF_UNIX` stream socket the hypervisor connects to.
    pub listener_fd: RawFd,
    /// Inherited tap with headers of `struct virtio_net_hdr_v1`.
    pub tap_fd: RawFd,
    /// The card's hardware address.
    pub mac: [u8; 6],
    /// What its driver is told of the network's MTU, bytes; none: nothing.
    pub mtu: Option<u16>,
}

/// A virtio block device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlockConfig {
    /// Inherited listening `AF_UNIX` stream socket the hypervisor connects to.
    pub listener_fd: RawFd,
    /// Inherited block device or regular file.
    pub file_fd: RawFd,
    /// Whether the guest may only read; the descriptor need not be good for more then.
    pub read_only: bool,
    /// Name the guest can ask for; 20 bytes of it count.
    pub serial: String,
}

/// The device process cannot serve, or had to stop serving.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A descriptor that should have been inherited is missing or something else.
    #[error("Descriptor {fd} given as {role} is not one; start `bulkhead device` from the sandbox")]
    Descriptor {
        /// The number.
        fd: RawFd,
        /// What it should be.
        role: &'static str,
        /// What the system said about it.
        #[source]
        source: io::Error,
    },
    /// A context id that a guest cannot have.
    #[error("The guest cannot have the context id {cid}; use one from 3 to 4294967294")]
    GuestCid {
        /// The id.
        cid: u64,
    },
    /// The jail could not be entered.
    #[error("Cannot enter the jail of the device process")]
    Jail(#[from] JailError),
    /// The shared tree cannot be served.
    #[error("Cannot set up the shared file system")]
    Fs(#[from] FsError),
    /// A resource of the process itself could not be had.
    #[error("Cannot {what}")]
    Setup {
        /// What could not be done.
        what: &'static str,
        /// What the system call said.
        #[source]
        source: io::Error,
    },
    /// A request made a device's thread panic; where, is on standard error.
    #[error("A device crashed over a request of the guest; please report this")]
    Crashed,
    /// A device stopped because of its front end.
    #[error("A device had to stop")]
    Session(#[from] SessionError),
}

/// What the devices need and cannot get inside the jail.
#[derive(Debug)]
pub struct Resources {
    /// The hypervisor connects here for the file system.
    pub fs: UnixListener,
    /// The hypervisor connects here for the streams.
    pub vsock: UnixListener,
    /// The device's end of the control channel.
    pub control: OwnedFd,
    /// The hypervisor connects here for random bytes.
    pub entropy: Option<UnixListener>,
    /// The hypervisor connects here to give memory back.
    pub balloon: Option<UnixListener>,
    /// The hypervisor connects here for each network card, and what its frames go to.
    pub nets: Vec<(UnixListener, Tap)>,
    /// The hypervisor connects here for each disk, and what is on it.
    pub blocks: Vec<(UnixListener, File)>,
    /// An open `/proc/self/fd`, which turns a name into an open file.
    pub proc_fd: OwnedFd,
    /// How many descriptors the process may have open.
    pub fd_limit: u64,
}

/// The device process from beginning to end: takes over the inherited descriptors, enters the
/// jail, serves. Returns when the sandbox process closed the control channel, or when the
/// hypervisor is gone and everything the guest sent was delivered.
///
/// To be called once, early in a process with a single thread, started in namespaces of its own
/// (see [`bulkhead_jail::spawn`]).
///
/// # Errors
/// See [`DeviceError`]. After an error the process must exit: it may be half jailed.
pub fn run(config: DeviceConfig) -> Result<(), DeviceError> {
    let resources = Resources::inherit(&config, bulkhead_jail::own_descriptors()?)?;
    config.jail.enter()?;
    serve(resources, &config)
}

/// Serves all devices, the streams on the caller's thread and each other one on its own, without
/// entering any jail. Returns like [`run`]. The other threads are not waited for: a request may hang
/// in the host's file system, and the process is about to exit.
///
/// # Errors
/// See [`DeviceError`].
pub fn serve(resources: Resources, config: &DeviceConfig) -> Result<(), DeviceError> {
    let Resources {
        fs: fs_socket,
        vsock,
        control,
        entropy,
        balloon,
        nets,
        blocks,
        proc_fd,
        fd_limit,
    } = resources;
    let fs = &config.fs;
    let guest_cid = config.vsock.guest_cid;
    if !(3..u64::from(u32::MAX)).contains(&guest_cid) {
        return Err(DeviceError::GuestCid { cid: guest_cid });
    }
    let setup = |what| move |source| DeviceError::Setup { what, source };
    // A hypervisor that is gone must show as an error of the write, whatever our caller's main
    // function made of the signal.
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let own_proc_fd = proc_fd
        .try_clone()
        .map_err(setup("duplicate the descriptor of /proc/self/fd"))?;

    let workers = Workers::new()?;
    let mut tallies = Tallies::default();
    let fs = Fs::new(share(&fs.root, proc_fd, fd_limit)?, &fs.tag)?;
    tallies.add(
        workers.serve_after(Fs::NAME.to_owned(), fs_socket, fs, move || {
            // Some requests change the working directory for a moment.
            unshare(CloneFlags::CLONE_FS)
                .map_err(|e| setup("unshare the working directory")(e.into()))
        })?,
    );
    if let Some(socket) = entropy {
        let name = Entropy::NAME.to_owned();
        tallies.add(workers.serve(name, socket, Entropy::default())?);
    }
    if let Some(socket) = balloon {
        let name = Balloon::NAME.to_owned();
        tallies.add(workers.serve(name, socket, Balloon::default())?);
    }
    for (number, ((socket, tap), net)) in nets.into_iter().zip(&config.nets).enumerate() {
        let name = format!("net{number}");
        let net = workers::net(tap, net.mac, net.mtu)?;
        tallies.add(workers.serve(name, socket, net)?);
    }
    for (number, ((socket, file), block)) in blocks.into_iter().zip(&config.blocks).enumerate() {
        let name = format!("block{number}");
        let block = workers::block(file, block.read_only, &block.serial)?;
        tallies.add(workers.serve(name, socket, block)?);
    }
    let control = DeviceChannel::new(control);
    let mux = Mux::new(guest_cid, control, Some(own_proc_fd))
        .map_err(setup("make the event descriptors of the vsock device"))?;
    let mut streams = Vsock::new(guest_cid, mux);
    streams.attend_to(tallies, Box::new(Comers::new(workers.clone())));
    let mut vsock = Session::new(vsock, streams, workers.stop())?;
    // Names in `top` and `ps -L`; a failure changes nothing else.
    let _ = rustix::thread::set_name(c"vsock");

    let end = vsock.run();
    match (workers.end(), end) {
        (Some(e), _) => Err(e),
        (None, Ok(End::Disconnected | End::Stopped)) => Ok(()),
        (None, Err(e)) => Err(e.into()),
    }
}

impl Resources {
    /// Takes over the sockets whose numbers `config` names, makes sure that they are what it says,
    /// and keeps them from programs this process might execute. Raises the limit of open files to
    /// what the process may have: each file the guest knows takes one.
    ///
    /// To be called once: the numbers name descriptors that nothing else in the process owns.
    ///
    /// # Errors
    /// [`DeviceError::Descriptor`].
    pub fn inherit(config: &DeviceConfig, proc_fd: OwnedFd) -> Result<Self, DeviceError> {
        let mut numbers = vec![
            config.fs.listener_fd,
            config.vsock.listener_fd,
            config.vsock.control_fd,
        ];
        numbers.extend(config.entropy_fd);
        numbers.extend(config.balloon_fd);
        for net in &config.nets {
            numbers.extend([net.listener_fd, net.tap_fd]);
        }
        for block in &config.blocks {
            numbers.extend([block.listener_fd, block.file_fd]);
        }
        let distinct: BTreeSet<RawFd> = numbers.iter().copied().collect();
        if let (Some(&fd), true) = (numbers.last(), distinct.len() < numbers.len()) {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is given twice");
            return Err(DeviceError::Descriptor {
                fd,
                role: "a descriptor of its own",
                source,
            });
        }
        let listener = |fd, role| {
            adopt(fd, role, |socket| {
                Ok(socket_domain(socket)? == AddressFamily::UNIX
                    && socket_type(socket)? == SocketType::STREAM
                    && socket_acceptconn(socket)?)
            })
        };
        Ok(Self {
            fs: listener(config.fs.listener_fd, "the file system's listening socket")?.into(),
            vsock: listener(
                config.vsock.listener_fd,
                "the vsock device's listening socket",
            )?
            .into(),
            control: adopt(
                config.vsock.control_fd,
                "the vsock control channel",
                |socket| {
                    Ok(socket_domain(socket)? == AddressFamily::UNIX
                        && socket_type(socket)? == SocketType::SEQPACKET)
                },
            )?,
            entropy: config
                .entropy_fd
                .map(|fd| listener(fd, "the entropy device's listening socket"))
                .transpose()?
                .map(UnixListener::from),
            balloon: config
                .balloon_fd
                .map(|fd| listener(fd, "the balloon's listening socket"))
                .transpose()?
                .map(UnixListener::from),
            nets: config
                .nets
                .iter()
                .map(|net| {
                    let socket = listener(net.listener_fd, "a network card's listening socket")?;
                    let tap = adopt(net.tap_fd, "a network card's tap", Tap::is)?;
                    Ok((socket.into(), Tap::new(tap)))
                })
                .collect::<Result<_, DeviceError>>()?,
            blocks: config
                .blocks
                .iter()
                .map(|block| {
                    let socket = listener(block.listener_fd, "a disk's listening socket")?;
                    let file = adopt(block.file_fd, "a disk's file", is_disk)?;
                    Ok((socket.into(), file.into()))
                })
                .collect::<Result<_, DeviceError>>()?,
            proc_fd,
            fd_limit: raise_fd_limit(),
        })
    }
}

fn is_disk(file: BorrowedFd<'_>) -> io::Result<bool> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode);
    Ok(matches!(
        kind,
        FileType::BlockDevice | FileType::RegularFile
    ))
}

/// Raises the limit of open files as far as wanted and possible; returns how many there may be.
fn raise_fd_limit() -> u64 {
    // With the power to do so (before the jail takes it), beyond the hard limit.
    let plenty = Rlimit {
        current: Some(MANY_FDS),
        maximum: Some(MANY_FDS),
    };
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|hard| hard < MANY_FDS)
        && setrlimit(Resource::Nofile, plenty).is_ok()
    {
        return MANY_FDS;
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let limit = setrlimit(Resource::Nofile, raised).map_or(limit, |()| raised);
    limit.current.map_or(MANY_FDS, |soft| soft.min(MANY_FDS))
}

/// Takes over the descriptor `fd` if it is what `is_right` wants.
fn adopt(
    fd: RawFd,
    role: &'static str,
    is_right: impl Fn(BorrowedFd<'_>) -> io::Result<bool>,
) -> Result<OwnedFd, DeviceError> {
    let wrong = |source: io::Error| DeviceError::Descriptor { fd, role, source };
    if fd <= libc::STDERR_FILENO {
        return Err(wrong(io::ErrorKind::InvalidInput.into()));
    }
    // SAFETY: fcntl with F_GETFD takes any number and changes nothing.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
        return Err(wrong(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is open; it was inherited for this process to own, by its number in
    // the configuration, and no two entries of the configuration are the same.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    match is_right(owned.as_fd()) {
        Ok(true) => {}
        Ok(false) => return Err(wrong(io::ErrorKind::InvalidInput.into())),
        Err(e) => return Err(wrong(e)),
    }
    rustix::io::fcntl_setfd(&owned, FdFlags::CLOEXEC).map_err(|e| wrong(e.into()))?;
    Ok(owned)
}

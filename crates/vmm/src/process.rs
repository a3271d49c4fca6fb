//! The machine's process: what it opens, when it gives up power, what it waits for.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use bulkhead_jail::{Profile, seccomp};
use kvm_ioctls::Kvm;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::FdFlags;

use crate::control::{self, Answer, Request};
use crate::machine::{Machine, Parts};
use crate::memory::Memory;
use crate::{End, VmmConfig, VmmError};

const KVM: &str = "/dev/kvm";

/// Words of the command line that tell a Linux kernel what this machine has not.
const WORDS: [&str; 11] = [
    // Errors and panics are shown, the story of an ordinary boot is not: each byte is an exit.
    "quiet",
    "console=ttyS0",
    "earlycon=uart8250,io,0x3f8",
    // A panic resets at once, by the only line the keyboard controller has; the machine then ends.
    "panic=-1",
    "reboot=k",
    // Neither is there; looking for them takes time.
    "acpi=off",
    "pci=off",
    "pty.legacy_count=0",
    // Freed memory goes back to the host in blocks of 64 KiB. In whole huge pages it would do so only as long
    // as 64 MiB are free (32 blocks, `page_reporting_process_zone`), which a small guest seldom has.
    "page_reporting.page_reporting_order=4",
    "8250.nr_uarts=1",
    // The agent's file is copied to plain pages, without what a file system in swap would need.
    "rootfstype=ramfs",
];

/// The machine's process from beginning to end: opens what it needs, enters the jail, makes the machine
/// and runs it. Returns when the guest has ended or the control channel was closed; the other threads
/// are not waited for, as the process is about to exit.
///
/// To be called once, early in a process with a single thread, started in namespaces of its own (see
/// [`bulkhead_jail::spawn`]). Standard output takes what the guest says on its serial port.
///
/// # Errors
/// See [`VmmError`]. After an error the process must exit: it may be half jailed.
pub fn run(config: VmmConfig) -> Result<End, VmmError> {
    let VmmConfig {
        jail,
        kernel,
        initramfs,
        cmdline,
        memory_mib,
        huge_pages,
        vcpus,
        devices,
        control_fd,
    } = config;
    let control = inherit(control_fd)?;
    let mut connections = Vec::new();
    for device in devices {
        connections.push((device.kind, UnixStream::from(inherit(device.fd)?)));
    }
    let kvm = open(Path::new(KVM), true)?.into_raw_fd();
    let parts = Parts {
        // SAFETY: the descriptor was just opened and given up by its owner; /dev/kvm is what it is.
        kvm: unsafe { Kvm::from_raw_fd(kvm) },
        memory: match (huge_pages, memory_mib.saturating_mul(1 << 20)) {
            (false, bytes) => Memory::new(bytes)?,
            (true, bytes) => Memory::huge(bytes)?,
        },
        kernel: open(&kernel, false)?,
        initramfs: open(&initramfs, false)?,
        cmdline: WORDS
            .map(str::to_owned)
            .into_iter()
            .chain(cmdline)
            .collect(),
        vcpus,
        devices: connections,
        profile: Profile::Vcpu,
    };
    jail.enter()?;

    let machine = Machine::start(parts)?;
    seccomp::narrow(Profile::VmmControl)?;
    command(&machine, &control)
}

/// Obeys until the machine ends or nobody commands any more.
fn command(machine: &Machine, control: &OwnedFd) -> Result<End, VmmError> {
    let failed = |step| move |source: io::Error| VmmError::Host { step, source };
    // SAFETY: the machine, and with it the event, lives longer than this function.
    let ended = unsafe {
        std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(machine.ended()))
    };
    loop {
        let mut fds = [
            PollFd::new(control, PollFlags::IN),
            PollFd::from_borrowed_fd(ended, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.map_err(|e| failed("wait for orders")(e.into()))?,
        };
        let [order, end] = fds.map(|fd| !fd.revents().is_empty());
        if end && let Some(how) = machine.end() {
            return how;
        }
        if !order {
            continue;
        }
        match control::read_order(control.as_fd()) {
            Ok(Some((request, fd))) => control::write(control, &obey(machine, request, fd))
                .map_err(failed("answer an order"))?,
            Ok(None) => return Ok(End::Abandoned),
            Err(source) => return Err(failed("read an order")(source)),
        }
    }
}

fn obey(machine: &Machine, request: Request, fd: Option<OwnedFd>) -> Answer {
    match request {
        Request::Pause if machine.pause() => Answer::Done,
        Request::Pause => {
            machine.resume();
            Answer::Refused("a processor did not come out of the guest in time".to_owned())
        }
        Request::Resume => {
            machine.resume();
            Answer::Done
        }
        Request::Status => Answer::Running(machine.is_running()),
        Request::Resize(bytes) if machine.resize(bytes) => Answer::Done,
        Request::Resize(_) => Answer::Refused("it has no balloon".to_owned()),
        Request::Memory => Answer::Memory(machine.memory_size()),
        Request::Registers => Answer::Registers(machine.registers()),
        Request::Metrics => Answer::Metrics(machine.metrics()),
        Request::Plug(kind) => {
            let Some(fd) = fd else {
                return Answer::Refused("no connection came with the device".to_owned());
            };
            match machine.plug(kind, fd.into()) {
                Ok(number) => Answer::Plugged(number),
                Err(error) => Answer::Refused(crate::error::chain(&error)),
            }
        }
        Request::Unplug(number) => match machine.unplug(number) {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Refused(crate::error::chain(&error)),
        },
    }
}

fn open(path: &Path, write: bool) -> Result<File, VmmError> {
    File::options()
        .read(true)
        .write(write)
        .open(path)
        .map_err(|source| VmmError::Open {
            path: path.to_owned(),
            source,
        })
}

/// Takes over the descriptor `fd`, whose number the configuration names.
fn inherit(fd: RawFd) -> Result<OwnedFd, VmmError> {
    let wrong = |source| VmmError::Descriptor { fd, source };
    // The standard streams belong to the library, the next one to the jail.
    if fd <= bulkhead_jail::PARENT_FD {
        return Err(wrong(io::ErrorKind::InvalidInput.into()));
    }
    // SAFETY: fcntl with F_GETFD takes any number and changes nothing.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
        return Err(wrong(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is open and was inherited for this process to own; a number named twice
    // would be the sandbox's own mistake, and closed twice at worst at the end of the process.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&owned, FdFlags::CLOEXEC).map_err(|e| wrong(e.into()))?;
    Ok(owned)
}

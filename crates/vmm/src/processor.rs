//! One processor of the guest: a thread that runs it and answers what it asks of devices.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt as _;
use std::sync::Arc;
use std::thread::JoinHandle;

use bulkhead_jail::Profile;
use bulkhead_jail::seccomp;
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::VmmError;
use crate::arch::report;
use crate::bus::{Bus, Verdict};
use crate::counts::{Exits, KvmCounters};
use crate::gate::Gate;

/// How a machine came to its end in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest reset the machine, as it does in the end; machines are not started twice.
    Reset,
    /// Whoever commanded the machine is gone.
    Abandoned,
}

/// Stack of a processor's thread, bytes.
const STACK: usize = 256 * 1024;

/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`, of which only the four bytes of length count.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;

/// The signal that gets a processor out of the guest. It is blocked elsewhere, so that it cannot be
/// missed between a look at the gate and the entry of the guest.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Blocks [`signal`] for this thread and all it will start. To be called before any processor starts.
///
/// # Errors
/// [`VmmError::Host`].
pub(crate) fn block_signal() -> Result<(), VmmError> {
    let set = set_of_signal();
    // SAFETY: the set is initialised and lives until after the call; the old mask is not asked for.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if result == 0 {
        return Ok(());
    }
    Err(VmmError::Host {
        step: "block the signal to processors",
        source: io::Error::from_raw_os_error(result),
    })
}

fn set_of_signal() -> libc::sigset_t {
    // SAFETY: all-zero is a valid set, and both calls only write to it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal());
        set
    }
}

/// A processor and what it needs.
pub(crate) struct Processor {
    pub(crate) number: u8,
    pub(crate) vcpu: VcpuFd,
    pub(crate) bus: Arc<Bus>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) exits: Arc<Exits>,
    pub(crate) counters: Arc<Option<KvmCounters>>,
}

/// A running processor.
#[derive(Debug)]
pub(crate) struct Running(JoinHandle<()>);

impl Running {
    /// Gets the processor out of the guest, to the gate.
    pub(crate) fn interrupt(&self) {
        // SAFETY: the handle keeps the thread's descriptor alive; a thread that has ended refuses.
        unsafe { libc::pthread_kill(self.0.as_pthread_t(), signal()) };
    }
}

impl Processor {
    /// Runs the processor on a thread of its own, behind the filter `profile`; `ended` is told how it
    /// ended.
    ///
    /// # Errors
    /// [`VmmError::Kvm`] and [`VmmError::Host`].
    pub(crate) fn start(
        mut self,
        profile: Profile,
        ended: impl FnOnce(Result<End, VmmError>) + Send + 'static,
    ) -> Result<Running, VmmError> {
        unblock_in_guest(&self.vcpu)?;
        std::thread::Builder::new()
            .name(format!("vcpu{}", self.number))
            .stack_size(STACK)
            .spawn(move || {
                let result = seccomp::narrow(profile)
                    .map_err(VmmError::from)
                    .and_then(|()| self.run());
                ended(result);
            })
            .map(Running)
            .map_err(|source| VmmError::Host {
                step: "start a processor's thread",
                source,
            })
    }

    /// Runs the guest until it ends.
    fn run(&mut self) -> Result<End, VmmError> {
        loop {
            self.gate
                .pass(self.number, || report::registers(&self.vcpu));
            match self.vcpu.run() {
                Ok(exit) => match serve(exit, &self.bus, &self.exits) {
                    Ok(Verdict::Continue) => {}
                    Ok(Verdict::Reset) => return Ok(End::Reset),
                    Ok(Verdict::Panicked) => {
                        return Err(VmmError::Panicked {
                            number: self.number,
                            registers: report::registers(&self.vcpu),
                            exits: self.exits_so_far(),
                        });
                    }
                    Err(reason) => return Err(self.stopped(reason)),
                },
                Err(error) if error.errno() == libc::EINTR => {
                    Exits::count(&self.exits.interrupted);
                    take_signal();
                }
                Err(error) if error.errno() == libc::EAGAIN => {}
                Err(error) => {
                    let error = io::Error::from_raw_os_error(error.errno());
                    return Err(self.stopped(format!("KVM cannot run it any more: {error}")));
                }
            }
        }
    }

    fn stopped(&self, reason: String) -> VmmError {
        VmmError::Processor {
            number: self.number,
            reason,
            registers: report::registers(&self.vcpu),
            exits: self.exits_so_far(),
        }
    }

    fn exits_so_far(&self) -> String {
        let mut exits = self.exits.now().to_string();
        if let Some(counters) = self.counters.as_ref() {
            for (name, value) in counters.all() {
                exits.push_str(&format!("; {name} {value}"));
            }
        }
        exits
    }
}

/// Answers one exit. An error is the reason why the processor cannot go on.
fn serve(exit: VcpuExit<'_>, bus: &Bus, exits: &Exits) -> Result<Verdict, String> {
    let (counter, result) = match exit {
        VcpuExit::IoIn(port, bytes) => {
            bus.port_read(port, bytes);
            (&exits.port, Ok(Verdict::Continue))
        }
        VcpuExit::IoOut(port, bytes) => (&exits.port, Ok(bus.port_write(port, bytes))),
        VcpuExit::MmioRead(address, bytes) => {
            bus.read(address, bytes);
            (&exits.mmio_read, Ok(Verdict::Continue))
        }
        VcpuExit::MmioWrite(address, bytes) => {
            bus.write(address, bytes);
            (&exits.mmio_write, Ok(Verdict::Continue))
        }
        VcpuExit::Intr => (&exits.interrupted, Ok(Verdict::Continue)),
        other => (&exits.other, Err(reason(&other))),
    };
    Exits::count(counter);
    result
}

/// What an exit means that no guest in order causes.
fn reason(exit: &VcpuExit<'_>) -> String {
    match exit {
        VcpuExit::Shutdown => "a fault in the handler of a fault in the handler of a fault \
             (triple fault): its kernel has no exception handlers, or lost them"
            .to_owned(),
        VcpuExit::Hlt => "it halted without interrupts to wake it".to_owned(),
        VcpuExit::FailEntry(reason, cpu) => {
            format!("the host's processor {cpu} cannot enter the guest (reason {reason:#x})")
        }
        VcpuExit::InternalError => {
            "KVM met an instruction it cannot interpret, or an error of its own".to_owned()
        }
        VcpuExit::MemoryFault { gpa, size, .. } => {
            format!("the host cannot provide its memory at {gpa:#x} ({size} bytes)")
        }
        VcpuExit::SystemEvent(kind, _) => format!("a system event of kind {kind}"),
        other => format!("an exit this machine does not know: {other:?}"),
    }
}

/// Lets the signal interrupt the guest, and nothing else of this process.
fn unblock_in_guest(vcpu: &VcpuFd) -> Result<(), VmmError> {
    #[repr(C)]
    struct Mask {
        length: u32,
        // Not aligned to eight bytes in the kernel's interface.
        set: [u8; 8],
    }
    // SAFETY: all-zero is a valid set; the call only writes to it, and asks for no change.
    let now = unsafe {
        let mut now: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut now);
        now
    };
    let mut set = 0_u64;
    for number in 1..=64 {
        // SAFETY: the set was initialised above.
        if number != signal() && unsafe { libc::sigismember(&raw const now, number) } == 1 {
            set |= 1 << (number - 1);
        }
    }
    let mask = Mask {
        length: 8,
        set: set.to_ne_bytes(),
    };
    // SAFETY: the kernel reads four bytes of length and eight of mask, which live until after the
    // call.
    if unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &raw const mask) } != 0 {
        return Err(VmmError::Kvm {
            step: "let a signal interrupt the guest",
            source: io::Error::last_os_error(),
        });
    }
    Ok(())
}

/// Takes the signal that got this thread out of the guest, if there was one.
fn take_signal() {
    let set = set_of_signal();
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both live until after the call; nothing is asked about the signal.
    unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const now) };
}

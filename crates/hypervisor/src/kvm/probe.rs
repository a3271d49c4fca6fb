//! A guest of three instructions, timed.

use std::io;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::Speed;

/// Rounds of the loop: 20 µs at native speed, 30 ms where it is emulated as on PVM.
const ROUNDS: u32 = 20_000;

/// The guest is stopped after this time whatever it does.
const LIMIT: Duration = Duration::from_millis(200);

/// Real mode: `dec ecx; jnz -4; hlt`.
const CODE: [u8; 5] = [0x66, 0x49, 0x75, 0xfc, 0xf4];

const PAGE: usize = 4096;

/// Where the page of code lies in the guest.
const CODE_ADDRESS: u64 = 0x1000;

/// Runs the guest on this thread.
pub(super) fn run() -> io::Result<Speed> {
    let page = Page::with(&CODE)?;
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let mut vcpu = prepare(&vm, &page)?;
    let began = Instant::now();
    let _alarm = Alarm::after(LIMIT)?;
    let exit = vcpu.run();
    let elapsed = began.elapsed();
    let halted = match exit {
        Ok(VcpuExit::Hlt) => true,
        Err(error) if error.errno() == libc::EINTR => false,
        Ok(other) => return Err(io::Error::other(format!("it stopped with {other:?}"))),
        Err(error) => return Err(error.into()),
    };
    let left = if halted {
        0
    } else {
        vcpu.get_regs()?.rcx.min(u64::from(ROUNDS))
    };
    let rounds = u64::from(ROUNDS).saturating_sub(left);
    Ok(Speed {
        instructions: rounds.saturating_mul(2),
        elapsed,
    })
}

fn prepare(vm: &VmFd, page: &Page) -> io::Result<VcpuFd> {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: CODE_ADDRESS,
        memory_size: PAGE as u64,
        userspace_addr: page.address.addr() as u64,
    };
    // SAFETY: the page is mapped and outlives the machine, which `run` drops first.
    unsafe { vm.set_user_memory_region(region) }?;
    let vcpu = vm.create_vcpu(0)?;
    let mut segments = vcpu.get_sregs()?;
    segments.cs.base = 0;
    segments.cs.selector = 0;
    vcpu.set_sregs(&segments)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = CODE_ADDRESS;
    registers.rcx = u64::from(ROUNDS);
    registers.rflags = 2;
    vcpu.set_regs(&registers)?;
    Ok(vcpu)
}

/// One page of memory.
struct Page {
    address: *mut u8,
}

impl Page {
    fn with(content: &[u8]) -> io::Result<Self> {
        // SAFETY: an anonymous mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = Self {
            address: address.cast(),
        };
        let length = content.len().min(PAGE);
        // SAFETY: the page is writable, new, and at least `length` long.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), page.address, length) };
        Ok(page)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `with`.
        unsafe { libc::munmap(self.address.cast(), PAGE) };
    }
}

/// A signal to this thread after some time, which makes `KVM_RUN` return. Dropping it disarms it
/// and gives the signal its former action back.
struct Alarm {
    timer: libc::timer_t,
    before: libc::sigaction,
}

impl Alarm {
    fn signal() -> libc::c_int {
        libc::SIGRTMIN().saturating_add(7)
    }

    fn after(limit: Duration) -> io::Result<Self> {
        extern "C" fn nothing(_: libc::c_int) {}
        // SAFETY: all-zero is a valid sigaction: no flags, empty mask, default action.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int) = nothing;
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        // SAFETY: as above.
        let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: installs a handler that does nothing; both structures live until after the call.
        if unsafe { libc::sigaction(Self::signal(), &raw const action, &raw mut before) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: all-zero is a valid sigevent; its fields are set below.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = Self::signal();
        // SAFETY: takes no arguments.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both structures live until after the call.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) } != 0
        {
            return Err(io::Error::last_os_error());
        }
        let alarm = Self { timer, before };
        // SAFETY: all-zero is a valid itimerspec: once, never.
        let mut when: libc::itimerspec = unsafe { std::mem::zeroed() };
        when.it_value.tv_nsec = limit.subsec_nanos().into();
        when.it_value.tv_sec = libc::time_t::try_from(limit.as_secs()).unwrap_or(1);
        // SAFETY: the timer was just made, `when` lives until after the call.
        if unsafe { libc::timer_settime(timer, 0, &raw const when, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(alarm)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer is this object's; after its deletion no signal of it is pending for
        // long enough to matter, as the handler is replaced in this same thread.
        unsafe {
            libc::timer_delete(self.timer);
            libc::sigaction(Self::signal(), &raw const self.before, std::ptr::null_mut());
        }
    }
}

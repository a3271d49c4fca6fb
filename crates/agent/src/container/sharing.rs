//! A child that shares its parent's memory until it runs a program.
//!
//! Copying a process costs page faults on both sides, and in a guest of User-Mode Linux each of them
//! costs tens of microseconds; a child that shares memory has none. The parent stands still in the
//! kernel meanwhile: whatever the child does to memory, it is the only one at work.

use std::{
    ffi::{c_int, c_void},
    io, ptr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use nix::unistd::Pid;
use rustix::{
    io::Errno,
    mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect},
    thread::futex,
};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Deeper than any path through the set-up goes, in bytes. Only what is used takes memory.
const STACK: usize = 512 << 10;

/// At the lower end of the stack: one that overflows ends its process, not the parent's heap.
const GUARD: usize = 64 << 10;

/// Cleared by the kernel when the child no longer uses the memory.
static CHILD: AtomicU32 = AtomicU32::new(0);

/// Whether the child left the memory in order.
static IN_ORDER: AtomicBool = AtomicBool::new(true);

/// Memory for the calls of one child after another. Never given back.
#[derive(Debug)]
pub struct Stack {
    top: *mut c_void,
    base: *mut c_void,
}

/// A child that still shares the memory of this process, which has to do nothing but system calls
/// that touch none of it until [`Sharing::over`] returns.
#[derive(Debug)]
pub struct Sharing {
    /// In the caller's PID namespace.
    pub pid: Pid,
}

impl Stack {
    /// Maps one.
    ///
    /// # Errors
    /// No memory.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                STACK + GUARD,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::STACK,
            )
        }?;
        // SAFETY: the range is the lower end of the mapping just made, which nobody uses yet.
        unsafe { mprotect(base, GUARD, MprotectFlags::empty()) }?;
        Ok(Self {
            top: base.wrapping_byte_add(STACK + GUARD),
            base,
        })
    }
}

/// Starts a child in the control group `cgroup` that calls `run` with `argument` in this very memory,
/// on `stack`. It is not this process's child but its parent's, and its handled signals are at
/// their defaults.
///
/// # Safety
/// The calling process is single-threaded and uses no memory but its own stack until
/// [`Sharing::over`] has returned, `argument` is what `run` expects, and the previous child on
/// `stack` is over.
pub unsafe fn start(
    stack: &Stack,
    cgroup: BorrowedFd<'_>,
    run: extern "C" fn(*const c_void) -> !,
    argument: *const c_void,
) -> io::Result<Sharing> {
    // Not in libc's size or type for both.
    const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    const FLAGS: c_int = libc::CLONE_VM
        | libc::CLONE_PARENT
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID;
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(FLAGS.unsigned_abs()) | CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP;
    let child = (&raw const CHILD).expose_provenance() as u64;
    (args.parent_tid, args.child_tid) = (child, child);
    args.cgroup = cgroup.as_raw_fd().unsigned_abs().into();
    args.stack = stack.base.expose_provenance() as u64;
    args.stack_size = (stack.top.addr() - stack.base.addr()) as u64;
    IN_ORDER.store(false, Ordering::Relaxed);
    // SAFETY: `args` is valid and outlives the call. The child begins on a stack of its own and
    // never comes back from `run`; the rest is what the caller answers for.
    let result = unsafe { clone3(&mut args, run, argument) };
    if result < 0 {
        IN_ORDER.store(true, Ordering::Relaxed);
    }
    match c_int::try_from(result) {
        Ok(pid) if pid > 0 => Ok(Sharing {
            pid: Pid::from_raw(pid),
        }),
        Ok(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        Err(_) => Err(io::Error::from_raw_os_error(libc::EOVERFLOW)),
    }
}

/// Calls `run` in the child; returns in the parent only.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(
    args: &mut libc::clone_args,
    run: extern "C" fn(*const c_void) -> !,
    argument: *const c_void,
) -> i64 {
    let mut result = libc::SYS_clone3;
    // SAFETY: as for the caller. The child keeps every register but rax, rcx, r11 and the stack
    // pointer, which is at the end of its own stack, aligned as a call wants it.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {run}",
            "ud2",
            "2:",
            argument = in(reg) argument,
            run = in(reg) run,
            inlateout("rax") result,
            in("rdi") ptr::from_mut(args),
            in("rsi") size_of::<libc::clone_args>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// Calls `run` in the child; returns in the parent only.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(
    args: &mut libc::clone_args,
    run: extern "C" fn(*const c_void) -> !,
    argument: *const c_void,
) -> i64 {
    let result: i64;
    // SAFETY: as for the caller. The child keeps every register but x0 and the stack pointer.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {argument}",
            "blr {run}",
            "brk 1",
            "2:",
            argument = in(reg) argument,
            run = in(reg) run,
            inlateout("x0") ptr::from_mut(args) => result,
            in("x1") size_of::<libc::clone_args>(),
            in("x8") libc::SYS_clone3,
        );
    }
    result
}

impl Sharing {
    /// Waits until the child runs a program or is no more. Whether it left the memory in order: one
    /// that was killed on its way may have been in the middle of an allocation.
    pub fn over(self) -> bool {
        loop {
            let child = CHILD.load(Ordering::Acquire);
            if child == 0 {
                return IN_ORDER.load(Ordering::Relaxed);
            }
            match futex::wait(&CHILD, futex::Flags::empty(), child, None) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                // Not for a word that is there.
                Err(_) => return false,
            }
        }
    }
}

/// In any child: nothing is being changed now, and nothing will be before the program runs.
pub fn leave_in_order() {
    IN_ORDER.store(true, Ordering::Relaxed);
}

/// In any child: the program does not run, it goes on.
pub fn go_on() {
    IN_ORDER.store(false, Ordering::Relaxed);
}

//! Our own KVM machine: one list while it is made, and narrower ones for its threads once it runs.
//!
//! Files, memory and sockets are open before the first list is in force. What is left is to make the
//! machine by `ioctl` on descriptors of KVM, and to talk to processes that are connected already.

use super::{Line, Lists, NAMESPACE_FLAGS, any, null, one_of, without_bits};

/// Requests of `linux/kvm.h`, as the kernel numbers them: direction, size of the argument, `0xae`, number.
const fn request(direction: u64, size: u64, number: u64) -> u64 {
    direction << 30 | size << 16 | 0xae << 8 | number
}
const NONE: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;

const RUN: u64 = request(NONE, 0, 0x80);
const GET_REGS: u64 = request(READ, 144, 0x81);
const GET_SREGS: u64 = request(READ, 312, 0x83);
const IRQFD: u64 = request(WRITE, 32, 0x76);
const IOEVENTFD: u64 = request(WRITE, 64, 0x79);

/// What makes a machine, its memory, controllers and processors.
const MAKE: [u64; 23] = [
    request(NONE, 0, 0x00),         // GET_API_VERSION
    request(NONE, 0, 0x01),         // CREATE_VM
    request(NONE, 0, 0x03),         // CHECK_EXTENSION
    request(NONE, 0, 0x04),         // GET_VCPU_MMAP_SIZE
    request(READ | WRITE, 8, 0x05), // GET_SUPPORTED_CPUID
    request(NONE, 0, 0x41),         // CREATE_VCPU
    request(WRITE, 32, 0x46),       // SET_USER_MEMORY_REGION
    request(NONE, 0, 0x47),         // SET_TSS_ADDR
    request(WRITE, 8, 0x48),        // SET_IDENTITY_MAP_ADDR
    request(NONE, 0, 0x60),         // CREATE_IRQCHIP
    IRQFD,
    IOEVENTFD,
    request(WRITE, 144, 0x82), // SET_REGS
    GET_SREGS,
    request(WRITE, 312, 0x84),  // SET_SREGS
    request(WRITE, 8, 0x89),    // SET_MSRS
    request(WRITE, 4, 0x8b),    // SET_SIGNAL_MASK
    request(WRITE, 416, 0x8d),  // SET_FPU
    request(READ, 1024, 0x8e),  // GET_LAPIC
    request(WRITE, 1024, 0x8f), // SET_LAPIC
    request(WRITE, 8, 0x90),    // SET_CPUID2
    request(NONE, 0, 0xce),     // GET_STATS_FD
    RUN,
];

/// What any Rust thread does: memory, locks, its own end.
fn common() -> Vec<Line> {
    any(&[
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_tgkill,
        libc::SYS_sched_yield,
        libc::SYS_restart_syscall,
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_clock_gettime,
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_close,
        // Counters of KVM, and how much memory the guest has.
        libc::SYS_pread64,
        libc::SYS_fstat,
        libc::SYS_fcntl,
        // Sockets that are connected already.
        libc::SYS_sendto,
        libc::SYS_recvfrom,
        libc::SYS_sendmsg,
        libc::SYS_recvmsg,
    ])
}

fn refused() -> Vec<Line> {
    // The C library falls back to clone, whose arguments a filter can read.
    any(&[libc::SYS_clone3])
}

/// While the machine is made: the narrower lists, and what makes it.
pub(super) fn making() -> Result<Lists, seccompiler::BackendError> {
    let mut lines = common();
    lines.extend(any(&[
        // Threads, and the narrower filters for them.
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_sched_getaffinity,
        libc::SYS_rt_sigaction,
        libc::SYS_seccomp,
        libc::SYS_getrandom,
        // The kernel and the initial file system, open already.
        libc::SYS_lseek,
        libc::SYS_statx,
        libc::SYS_newfstatat,
        libc::SYS_eventfd2,
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_rt_sigtimedwait,
    ]));
    #[allow(clippy::cast_sign_loss, reason = "constants of the kernel's interface")]
    lines.extend([
        null(libc::SYS_prlimit64, 2)?,
        without_bits(libc::SYS_clone, 0, NAMESPACE_FLAGS)?,
        one_of(
            libc::SYS_prctl,
            0,
            &[libc::PR_SET_NAME as u64, libc::PR_SET_NO_NEW_PRIVS as u64],
        )?,
        one_of(libc::SYS_ioctl, 1, &[&MAKE[..], &[GET_REGS]].concat())?,
    ]);
    Ok(Lists {
        allowed: lines,
        refused: refused(),
    })
}

/// The thread of one processor: runs it, and hands rings over to the device process.
pub(super) fn processor() -> Result<Lists, seccompiler::BackendError> {
    let mut lines = common();
    lines.extend(any(&[libc::SYS_rt_sigtimedwait]));
    lines.push(one_of(libc::SYS_ioctl, 1, &[RUN, GET_REGS, GET_SREGS])?);
    Ok(Lists {
        allowed: lines,
        refused: refused(),
    })
}

/// The thread that takes orders. A device that is plugged has events, which it connects.
pub(super) fn control() -> Result<Lists, seccompiler::BackendError> {
    let mut lines = common();
    lines.extend(any(&[libc::SYS_poll, libc::SYS_ppoll, libc::SYS_eventfd2]));
    lines.push(one_of(libc::SYS_ioctl, 1, &[IRQFD, IOEVENTFD])?);
    Ok(Lists {
        allowed: lines,
        refused: refused(),
    })
}

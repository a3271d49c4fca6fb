//! QEMU: a machine without devices of its own but serial console and vhost-user front ends.
//!
//! Sockets arrive open, but for those of network cards, to which QEMU connects itself: local ones, of
//! which its file system holds no others. No program can be executed once QEMU runs.

use seccompiler::{SeccompCmpArgLen, SeccompCmpOp};

use super::{Line, Lists, NAMESPACE_FLAGS, any, null, one_of, rule, without_bits};

/// Requests of KVM, and questions whether a descriptor is a terminal.
fn ioctls() -> Result<Line, seccompiler::BackendError> {
    /// `KVMIO`, the second byte of all requests of KVM.
    const KVM: u64 = 0xae;
    let (call, mut rules) = one_of(
        libc::SYS_ioctl,
        1,
        &[
            libc::TCGETS,
            libc::TCSETS,
            libc::TIOCGPGRP,
            libc::FIONBIO,
            libc::FIOCLEX,
        ],
    )?;
    rules.push(rule(
        1,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(0xff00),
        KVM << 8,
    )?);
    Ok((call, rules))
}

pub(super) fn lists() -> Result<Lists, seccompiler::BackendError> {
    let mut lines = any(&[
        // Life of the process and its threads.
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_getppid,
        libc::SYS_tgkill,
        libc::SYS_tkill,
        libc::SYS_arch_prctl,
        libc::SYS_set_tid_address,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_getrlimit,
        libc::SYS_getrusage,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_yield,
        libc::SYS_membarrier,
        libc::SYS_restart_syscall,
        libc::SYS_uname,
        libc::SYS_sysinfo,
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getegid,
        libc::SYS_getcpu,
        libc::SYS_umask,
        // Memory.
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_mincore,
        libc::SYS_memfd_create,
        libc::SYS_ftruncate,
        libc::SYS_fallocate,
        // Signals and time.
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigpending,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_rt_sigsuspend,
        libc::SYS_sigaltstack,
        libc::SYS_signalfd4,
        libc::SYS_nanosleep,
        libc::SYS_clock_nanosleep,
        libc::SYS_clock_gettime,
        libc::SYS_clock_getres,
        libc::SYS_gettimeofday,
        libc::SYS_time,
        libc::SYS_timer_create,
        libc::SYS_timer_settime,
        libc::SYS_timer_gettime,
        libc::SYS_timer_delete,
        libc::SYS_getrandom,
        // Files: firmware, kernel, initramfs.
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_pread64,
        libc::SYS_preadv,
        libc::SYS_pwrite64,
        libc::SYS_pwritev,
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_close,
        libc::SYS_lseek,
        libc::SYS_fstat,
        libc::SYS_stat,
        libc::SYS_lstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_statfs,
        libc::SYS_fstatfs,
        libc::SYS_access,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_readlink,
        libc::SYS_readlinkat,
        libc::SYS_getcwd,
        libc::SYS_getdents64,
        libc::SYS_flock,
        libc::SYS_dup,
        libc::SYS_dup2,
        libc::SYS_dup3,
        libc::SYS_pipe2,
        libc::SYS_fcntl,
        // Events, and messages on sockets that are already there.
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_eventfd2,
        libc::SYS_sendmsg,
        libc::SYS_recvmsg,
        libc::SYS_sendto,
        libc::SYS_recvfrom,
        libc::SYS_shutdown,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        libc::SYS_getsockname,
        libc::SYS_getpeername,
        libc::SYS_connect,
    ]);
    #[allow(clippy::cast_sign_loss, reason = "constants of the kernel's interface")]
    lines.extend([
        // Limits may be read, not changed.
        null(libc::SYS_prlimit64, 2)?,
        // QEMU's own sandbox, which is not used, asks whether there are filters.
        null(libc::SYS_seccomp, 2)?,
        without_bits(libc::SYS_clone, 0, NAMESPACE_FLAGS)?,
        one_of(libc::SYS_socket, 0, &[libc::AF_UNIX as u64])?,
        ioctls()?,
        one_of(
            libc::SYS_prctl,
            0,
            &[
                libc::PR_SET_NAME as u64,
                libc::PR_SET_TIMERSLACK as u64,
                libc::PR_MCE_KILL as u64,
            ],
        )?,
    ]);
    // The C library falls back to clone, whose arguments a filter can read. libnuma, when loaded,
    // asks for the memory policy, and QEMU for io_uring; both are content with a kernel without.
    let refused = any(&[
        libc::SYS_clone3,
        libc::SYS_get_mempolicy,
        libc::SYS_set_mempolicy,
        libc::SYS_io_uring_setup,
    ]);
    Ok(Lists {
        allowed: lines,
        refused,
    })
}

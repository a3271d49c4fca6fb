//! The device process: a vhost-user server whose file system side is virtiofsd's passthrough.
//!
//! Sockets arrive open; none can be made. Mounts are made before the filter.

use super::{Lists, NAMESPACE_FLAGS, any, null, one_of, without_bits};

pub(super) fn lists() -> Result<Lists, seccompiler::BackendError> {
    let mut lines = any(&[
        // Life of the process and its threads.
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_tgkill,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_yield,
        libc::SYS_membarrier,
        libc::SYS_restart_syscall,
        // Memory.
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_madvise,
        // Signals, time, randomness (hash maps).
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_gettimeofday,
        libc::SYS_getrandom,
        libc::SYS_timerfd_create,
        libc::SYS_timerfd_settime,
        // Events, and messages on sockets that are already there.
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_eventfd2,
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_accept4,
        libc::SYS_sendmsg,
        libc::SYS_recvmsg,
        libc::SYS_sendto,
        libc::SYS_recvfrom,
        libc::SYS_shutdown,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        // Descriptors.
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_pread64,
        libc::SYS_preadv,
        libc::SYS_preadv2,
        libc::SYS_pwrite64,
        libc::SYS_pwritev,
        libc::SYS_pwritev2,
        libc::SYS_splice,
        libc::SYS_pipe2,
        libc::SYS_close,
        libc::SYS_close_range,
        libc::SYS_dup,
        libc::SYS_fcntl,
        libc::SYS_lseek,
        // The shared file system, always relative to a directory that is open.
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_open_by_handle_at,
        libc::SYS_name_to_handle_at,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_fstatfs,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_readlinkat,
        libc::SYS_getdents64,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_symlinkat,
        libc::SYS_linkat,
        libc::SYS_unlinkat,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_fchdir,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_utimensat,
        libc::SYS_ftruncate,
        libc::SYS_fallocate,
        libc::SYS_copy_file_range,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_syncfs,
        libc::SYS_flock,
        libc::SYS_umask,
        // virtiofsd names a file by `/proc/self/fd`-relative paths for these.
        libc::SYS_getxattr,
        libc::SYS_setxattr,
        libc::SYS_listxattr,
        libc::SYS_removexattr,
        libc::SYS_fgetxattr,
        libc::SYS_fsetxattr,
        libc::SYS_flistxattr,
        libc::SYS_fremovexattr,
        // Acting as the guest's user for one request.
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setgroups,
        libc::SYS_geteuid,
        libc::SYS_getegid,
        libc::SYS_capget,
        libc::SYS_capset,
    ]);
    #[allow(clippy::cast_sign_loss, reason = "constants of the kernel's interface")]
    lines.extend([
        // Limits may be read, not changed.
        null(libc::SYS_prlimit64, 2)?,
        without_bits(libc::SYS_clone, 0, NAMESPACE_FLAGS)?,
        one_of(libc::SYS_unshare, 0, &[libc::CLONE_FS as u64])?,
        // A thread's name; and what libcap-ng reads, or lowers, when a request is to be served
        // without CAP_FSETID. None of these gives anything.
        one_of(
            libc::SYS_prctl,
            0,
            &[
                libc::PR_SET_NAME as u64,
                libc::PR_GET_SECUREBITS as u64,
                libc::PR_CAPBSET_READ as u64,
                libc::PR_CAPBSET_DROP as u64,
                libc::PR_CAP_AMBIENT as u64,
            ],
        )?,
        // The last: what the guest takes from a tap that is open, uncut segments or not.
        one_of(
            libc::SYS_ioctl,
            1,
            &[libc::FIONBIO, libc::FIONREAD, libc::TUNSETOFFLOAD],
        )?,
    ]);
    // The C library falls back to clone, whose arguments a filter can read.
    Ok(Lists {
        allowed: lines,
        refused: any(&[libc::SYS_clone3]),
    })
}

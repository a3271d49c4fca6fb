//! User-Mode Linux, ptrace mode.
//!
//! System calls of guest programs are not judged by this list: the kernel stops them for the
//! tracer (PTRACE_SYSEMU) before it looks at seccomp filters, and they never run on the host. What
//! is judged is the UML kernel itself and the stub it maps into its traced children.

use super::{Lists, NAMESPACE_FLAGS, any, null, one_of, without_bits};

pub(super) fn lists() -> Result<Lists, seccompiler::BackendError> {
    let mut lines = any(&[
        // Life of the process and its traced children.
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_wait4,
        libc::SYS_ptrace,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_tgkill,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_getppid,
        libc::SYS_setsid,
        libc::SYS_setpgid,
        libc::SYS_getpgrp,
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getegid,
        libc::SYS_personality,
        libc::SYS_arch_prctl,
        libc::SYS_set_tid_address,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_getrlimit,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_uname,
        libc::SYS_getcpu,
        // Memory.
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_fallocate,
        libc::SYS_ftruncate,
        libc::SYS_fsync,
        libc::SYS_memfd_create,
        // Signals and time.
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigsuspend,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_sigaltstack,
        libc::SYS_pause,
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
        libc::SYS_futex,
        // Files: memory file, initramfs, uml_dir, console.
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_close,
        libc::SYS_lseek,
        libc::SYS_fstat,
        libc::SYS_stat,
        libc::SYS_lstat,
        libc::SYS_newfstatat,
        libc::SYS_statfs,
        libc::SYS_access,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_readlink,
        libc::SYS_readlinkat,
        libc::SYS_getcwd,
        libc::SYS_mkdir,
        libc::SYS_rmdir,
        libc::SYS_unlink,
        libc::SYS_getdents64,
        libc::SYS_dup,
        libc::SYS_dup2,
        libc::SYS_pipe2,
        libc::SYS_pipe,
        libc::SYS_fcntl,
        // Events, and the vhost-user protocol.
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_epoll_create,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_eventfd2,
        libc::SYS_connect,
        libc::SYS_sendmsg,
        libc::SYS_recvmsg,
        libc::SYS_sendto,
        libc::SYS_recvfrom,
        libc::SYS_setsockopt,
        libc::SYS_getsockopt,
    ]);
    #[allow(clippy::cast_sign_loss, reason = "constants of the kernel's interface")]
    lines.extend([
        // Limits may be read, not changed.
        null(libc::SYS_prlimit64, 2)?,
        one_of(libc::SYS_socket, 0, &[libc::AF_UNIX as u64])?,
        one_of(libc::SYS_socketpair, 0, &[libc::AF_UNIX as u64])?,
        without_bits(libc::SYS_clone, 0, NAMESPACE_FLAGS)?,
        // Terminals only: what the console driver asks of its descriptors. FIONBIO is for pipes.
        one_of(
            libc::SYS_ioctl,
            1,
            &[
                libc::TCGETS,
                libc::TCSETS,
                libc::TCSETSW,
                libc::TIOCGWINSZ,
                libc::FIONBIO,
                libc::FIONREAD,
            ],
        )?,
        one_of(
            libc::SYS_prctl,
            0,
            &[
                libc::PR_SET_PDEATHSIG as u64,
                libc::PR_SET_NAME as u64,
                libc::PR_SET_PTRACER as u64,
            ],
        )?,
    ]);
    #[allow(
        clippy::cast_sign_loss,
        reason = "a constant of the kernel's interface"
    )]
    let refused = vec![
        (libc::SYS_clone3, Vec::new()),
        // After a panic the kernel sends itself SIGABRT, over and over until it works or fails. As
        // number 1 of a pid namespace it is immune to its own signals; but if it cannot send them
        // it exits, with status 127.
        one_of(libc::SYS_kill, 1, &[libc::SIGABRT as u64])?,
    ];
    Ok(Lists {
        allowed: lines,
        refused,
    })
}

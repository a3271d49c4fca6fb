//! The default profile: what ordinary programs call is allowed, what reaches into the
//! kernel beyond that needs the capability it is for, and the rest is refused.
//!
//! In effect it is the default profile of docker. Differences, on purpose: a system call
//! that is unknown here fails as one the kernel lacks (`ENOSYS`), so that programs fall
//! back instead of giving up, as in podman; and io_uring, userfaultfd and key rings stay
//! refused. `socket(AF_VSOCK)` is refused because the agent's connection to the host is
//! such a socket.

use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg,
    LinuxSeccompArgBuilder, LinuxSeccompOperator as Op, LinuxSyscall,
};

/// Allowed to everybody, by theme. Names of 32-bit and of other architectures stand among
/// them; a filter leaves out those its architecture has not.
#[rustfmt::skip]
const ALLOWED: &[&str] = &[
    // Files: open, look, change.
    "access", "chmod", "chown", "chown32", "close", "close_range", "creat", "faccessat",
    "faccessat2", "fallocate", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchown32",
    "fchownat", "fstat", "fstat64", "fstatat64", "fstatfs", "fstatfs64", "ftruncate",
    "ftruncate64", "futimesat", "lchown", "lchown32", "link", "linkat", "lstat", "lstat64",
    "mkdir", "mkdirat", "mknod", "mknodat", "name_to_handle_at", "newfstatat", "open", "openat",
    "openat2", "readlink", "readlinkat", "rename", "renameat", "renameat2", "rmdir", "stat",
    "stat64", "statfs", "statfs64", "statx", "symlink", "symlinkat", "truncate", "truncate64",
    "umask", "unlink", "unlinkat", "utime", "utimensat", "utimensat_time64", "utimes",
    // Directories and places.
    "chdir", "fchdir", "getcwd", "getdents", "getdents64", "listmount", "readdir", "statmount",
    // Reading, writing, descriptors.
    "_llseek", "copy_file_range", "dup", "dup2", "dup3", "fadvise64", "fadvise64_64", "fcntl",
    "fcntl64", "fdatasync", "flock", "fsync", "ioctl", "lseek", "pipe", "pipe2", "pread64",
    "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readv",
    "sendfile", "sendfile64", "splice", "sync", "sync_file_range", "sync_file_range2", "syncfs",
    "tee", "vmsplice", "write", "writev",
    // Extended attributes.
    "fgetxattr", "flistxattr", "fremovexattr", "fsetxattr", "getxattr", "getxattrat", "lgetxattr",
    "listxattr", "listxattrat", "llistxattr", "lremovexattr", "lsetxattr", "removexattr",
    "removexattrat", "setxattr", "setxattrat",
    // Waiting for events.
    "_newselect", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait",
    "epoll_pwait2", "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "fanotify_mark",
    "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "poll", "ppoll",
    "ppoll_time64", "pselect6", "pselect6_time64", "select",
    // Asynchronous I/O of the old kind.
    "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_pgetevents_time64",
    "io_setup", "io_submit",
    // Memory.
    "brk", "cachestat", "madvise", "map_shadow_stack", "membarrier", "memfd_create",
    "memfd_secret", "mincore", "mlock", "mlock2", "mlockall", "mmap", "mmap2", "mprotect",
    "mremap", "mseal", "msync", "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free",
    "pkey_mprotect", "process_mrelease", "remap_file_pages",
    // Processes and threads.
    "arch_prctl", "capget", "capset", "execve", "execveat", "exit", "exit_group", "fork",
    "get_robust_list", "get_thread_area", "getpgid", "getpgrp", "getpid", "getppid", "getsid",
    "gettid", "modify_ldt", "pidfd_open", "pidfd_send_signal", "prctl", "process_vm_readv",
    "process_vm_writev", "ptrace", "rseq", "seccomp", "set_robust_list", "set_thread_area",
    "set_tid_address", "set_tls", "setpgid", "setsid", "uretprobe", "vfork", "wait4", "waitid",
    "waitpid",
    // Security a process takes upon itself.
    "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "lsm_get_self_attr",
    "lsm_list_modules", "lsm_set_self_attr",
    // Scheduling and limits.
    "getcpu", "getpriority", "getrlimit", "getrusage", "ioprio_get", "ioprio_set", "prlimit64",
    "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity", "sched_getattr",
    "sched_getparam", "sched_getscheduler", "sched_rr_get_interval",
    "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "sched_yield", "setpriority", "setrlimit", "ugetrlimit",
    // Identity.
    "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups",
    "getgroups32", "getresgid", "getresgid32", "getresuid", "getresuid32", "getuid", "getuid32",
    "setfsgid", "setfsgid32", "setfsuid", "setfsuid32", "setgid", "setgid32", "setgroups",
    "setgroups32", "setregid", "setregid32", "setresgid", "setresgid32", "setresuid",
    "setresuid32", "setreuid", "setreuid32", "setuid", "setuid32",
    // Signals.
    "kill", "pause", "restart_syscall", "rt_sigaction", "rt_sigpending", "rt_sigprocmask",
    "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
    "rt_sigtimedwait_time64", "rt_tgsigqueueinfo", "sigaction", "sigaltstack", "signal",
    "signalfd", "signalfd4", "sigpending", "sigprocmask", "sigreturn", "sigsuspend", "tgkill",
    "tkill",
    // Locks between threads.
    "futex", "futex_requeue", "futex_time64", "futex_wait", "futex_waitv", "futex_wake",
    // Clocks and timers.
    "adjtimex", "alarm", "clock_adjtime", "clock_adjtime64", "clock_getres",
    "clock_getres_time64", "clock_gettime", "clock_gettime64", "clock_nanosleep",
    "clock_nanosleep_time64", "getitimer", "gettimeofday", "nanosleep", "setitimer", "time",
    "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64",
    "timer_settime", "timer_settime64", "timerfd_create", "timerfd_gettime", "timerfd_gettime64",
    "timerfd_settime", "timerfd_settime64", "times",
    // Sockets, but for their creation.
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen",
    "recv", "recvfrom", "recvmmsg", "recvmmsg_time64", "recvmsg", "send", "sendmmsg", "sendmsg",
    "sendto", "setsockopt", "shutdown", "socketcall", "socketpair",
    // Messages, semaphores and memory between processes.
    "ipc", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64",
    "mq_timedsend", "mq_timedsend_time64", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd",
    "semctl", "semget", "semop", "semtimedop", "semtimedop_time64", "shmat", "shmctl", "shmdt",
    "shmget",
    // The system.
    "getrandom", "sysinfo", "uname",
    // Of other architectures.
    "arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush",
];

/// Allowed to those with the capability, refused with `EPERM` to others.
#[rustfmt::skip]
const WITH_CAPABILITY: &[(Capability, &[&str])] = &[
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (Capability::SysAdmin, &[
        "bpf", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "lookup_dcookie",
        "mount", "mount_setattr", "move_mount", "open_tree", "perf_event_open", "pivot_root",
        "quotactl", "quotactl_fd", "setdomainname", "sethostname", "setns", "syslog", "umount",
        "umount2", "unshare",
    ]),
    (Capability::Bpf, &["bpf"]),
    (Capability::Perfmon, &["perf_event_open"]),
    (Capability::Syslog, &["syslog"]),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (Capability::SysModule, &["delete_module", "finit_module", "init_module"]),
    (Capability::SysNice, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (Capability::SysPacct, &["acct"]),
    (Capability::SysPtrace, &["kcmp", "pidfd_getfd", "process_madvise"]),
    (Capability::SysRawio, &["ioperm", "iopl"]),
    (Capability::SysTime, &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (Capability::SysTtyConfig, &["vhangup"]),
];

/// Known and refused with `EPERM` to everybody; what is not known is refused with `ENOSYS`.
#[rustfmt::skip]
const REFUSED: &[&str] = &[
    "add_key", "io_uring_enter", "io_uring_register", "io_uring_setup", "kexec_file_load",
    "kexec_load", "keyctl", "migrate_pages", "move_pages", "nfsservctl", "request_key", "swapoff",
    "swapon", "sysfs", "uselib", "userfaultfd", "ustat", "vm86", "vm86old",
];

/// Flags of clone(2) that make namespaces: mount, cgroup, uts, ipc, user, pid, network.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Execution domains of personality(2): Linux, 32-bit Linux, each also with the uname of
/// 2.6, and the question which one it is.
const PERSONALITIES: &[u64] = &[0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

const AF_VSOCK: u64 = 40;
/// Address families above AF_VSOCK: kcm, qipcrtr, smc, xdp, mctp.
const LATER_FAMILIES: std::ops::RangeInclusive<u64> = 41..=45;

/// Makes the filter for a container with these capabilities.
pub(super) fn filter(granted: &Capabilities, architectures: Vec<Arch>) -> LinuxSeccomp {
    let may = |capability: &Capability| granted.contains(capability);
    let mut allowed: Vec<&str> = ALLOWED.to_vec();
    let mut refused: Vec<&str> = REFUSED.to_vec();
    for (capability, names) in WITH_CAPABILITY {
        if may(capability) {
            &mut allowed
        } else {
            &mut refused
        }
        .extend(*names);
    }
    let mut conditional = Vec::new();
    if may(&Capability::SysAdmin) {
        allowed.extend(["clone", "clone3"]);
    } else {
        // clone3 hides its flags in memory, out of a filter's sight: as if it were not there.
        conditional.push(rule(
            &["clone3"],
            Action::ScmpActErrno,
            Some(libc::ENOSYS),
            None,
        ));
        let flags = argument(0, CLONE_NAMESPACES, Some(0), Op::ScmpCmpMaskedEq);
        conditional.push(rule(&["clone"], Action::ScmpActAllow, None, flags));
    }
    for domain in PERSONALITIES {
        let exactly = argument(0, *domain, None, Op::ScmpCmpEq);
        conditional.push(rule(&["personality"], Action::ScmpActAllow, None, exactly));
    }
    // Not "unequal": the kernel looks at 32 bits of the 64 a filter compares.
    let below = argument(0, AF_VSOCK, None, Op::ScmpCmpLt);
    conditional.push(rule(&["socket"], Action::ScmpActAllow, None, below));
    for family in LATER_FAMILIES {
        let exactly = argument(0, family, None, Op::ScmpCmpEq);
        conditional.push(rule(&["socket"], Action::ScmpActAllow, None, exactly));
    }
    // A name may need either of two capabilities.
    allowed.sort_unstable();
    allowed.dedup();
    refused.sort_unstable();
    refused.dedup();
    refused.retain(|name| allowed.binary_search(name).is_err());

    let mut rules = vec![
        rule(&allowed, Action::ScmpActAllow, None, None),
        rule(&refused, Action::ScmpActErrno, Some(libc::EPERM), None),
    ];
    rules.extend(conditional);
    let mut filter = LinuxSeccomp::default();
    filter
        .set_default_action(Action::ScmpActErrno)
        .set_default_errno_ret(u32::try_from(libc::ENOSYS).ok())
        .set_architectures(Some(architectures))
        .set_syscalls(Some(rules));
    filter
}

fn rule(
    names: &[&str],
    action: Action,
    errno: Option<i32>,
    condition: Option<LinuxSeccompArg>,
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|name| (*name).to_owned()).collect())
        .set_action(action)
        .set_errno_ret(errno.and_then(|errno| u32::try_from(errno).ok()))
        .set_args(condition.map(|argument| vec![argument]));
    rule
}

fn argument(index: usize, value: u64, value_two: Option<u64>, op: Op) -> Option<LinuxSeccompArg> {
    let mut argument = LinuxSeccompArgBuilder::default()
        .index(index)
        .value(value)
        .op(op);
    if let Some(value_two) = value_two {
        argument = argument.value_two(value_two);
    }
    // No field is mandatory to the builder, so it does not fail; if it did, a condition that
    // holds for 0 only would be the safe one.
    Some(argument.build().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn plain(granted: &[Capability]) -> LinuxSeccomp {
        filter(
            &granted.iter().copied().collect(),
            vec![Arch::ScmpArchX86_64],
        )
    }

    /// Names with what the filter does to every call of them.
    fn unconditional(filter: &LinuxSeccomp) -> BTreeMap<String, Action> {
        let rules = filter.syscalls().as_ref().unwrap();
        let whole = rules.iter().filter(|rule| rule.args().is_none());
        whole
            .flat_map(|rule| rule.names().iter().map(|n| (n.clone(), rule.action())))
            .collect()
    }

    fn conditional(filter: &LinuxSeccomp, name: &str) -> usize {
        let rules = filter.syscalls().as_ref().unwrap();
        rules
            .iter()
            .filter(|r| r.args().is_some() && r.names().iter().any(|n| n == name))
            .count()
    }

    #[test]
    fn filter_names_stand_in_one_rule_only() {
        for granted in [&[][..], &[Capability::SysAdmin, Capability::Syslog]] {
            let filter = plain(granted);
            let mut seen = BTreeSet::new();
            for rule in filter
                .syscalls()
                .as_ref()
                .unwrap()
                .iter()
                .filter(|r| r.args().is_none())
            {
                for name in rule.names() {
                    assert!(seen.insert(name.clone()), "{name} twice");
                    assert_eq!(conditional(&filter, name), 0, "{name}");
                }
            }
        }
    }

    #[test]
    fn filter_capability_opens_what_it_is_for() {
        let (without, with) = (
            unconditional(&plain(&[])),
            unconditional(&plain(&[Capability::SysAdmin])),
        );
        for name in ["mount", "unshare", "setns", "bpf", "syslog"] {
            assert_eq!(without.get(name), Some(&Action::ScmpActErrno), "{name}");
            assert_eq!(with.get(name), Some(&Action::ScmpActAllow), "{name}");
        }
        let syslog = unconditional(&plain(&[Capability::Syslog]));
        assert_eq!(syslog.get("syslog"), Some(&Action::ScmpActAllow));
        assert_eq!(syslog.get("mount"), Some(&Action::ScmpActErrno));
    }

    #[test]
    fn filter_clone_without_privilege_makes_no_namespace() {
        let filter = plain(&[]);
        assert_eq!(conditional(&filter, "clone"), 1);
        assert_eq!(
            unconditional(&filter).get("clone3"),
            Some(&Action::ScmpActErrno)
        );
        let privileged = plain(&[Capability::SysAdmin]);
        assert_eq!(
            unconditional(&privileged).get("clone"),
            Some(&Action::ScmpActAllow)
        );
    }

    #[test]
    fn filter_no_rule_for_sockets_holds_for_vsock() {
        let filter = plain(&[Capability::SysAdmin]);
        let rules = filter.syscalls().as_ref().unwrap();
        let sockets: Vec<_> = rules
            .iter()
            .filter(|r| r.names().contains(&"socket".into()))
            .collect();
        assert!(!sockets.is_empty());
        for rule in sockets {
            let argument = rule.args().as_ref().unwrap()[0];
            let holds = |family: u64| match argument.op() {
                Op::ScmpCmpLt => family < argument.value(),
                Op::ScmpCmpEq => family == argument.value(),
                other => panic!("{other}"),
            };
            assert!(!holds(AF_VSOCK) && !holds(AF_VSOCK | 1 << 32), "{rule:?}");
        }
    }

    /// What podman's profile allows without any capability and ours does not, and the
    /// other way round: each difference is meant.
    #[test]
    fn filter_differs_from_podman_only_where_meant() {
        let Ok(json) = std::fs::read("/usr/share/containers/seccomp.json") else {
            eprintln!("SKIP: containers-common is not installed");
            return;
        };
        let podman: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let empty = |value: &serde_json::Value| value.as_object().is_none_or(|map| map.is_empty());
        let allowed_there: BTreeSet<String> = podman["syscalls"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|rule| {
                rule["action"] == "SCMP_ACT_ALLOW"
                    && empty(&rule["includes"])
                    && empty(&rule["excludes"])
            })
            .filter(|rule| rule["args"].as_array().is_none_or(|args| args.is_empty()))
            .flat_map(|rule| {
                rule["names"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|n| n.as_str().unwrap().to_owned())
            })
            .collect();
        let ours = unconditional(&plain(&[]));
        let allowed_here: BTreeSet<String> = ours
            .iter()
            .filter(|(_, action)| **action == Action::ScmpActAllow)
            .map(|(name, _)| name.clone())
            .collect();

        let refused_here: Vec<_> = allowed_there
            .difference(&allowed_here)
            .map(String::as_str)
            .collect();

        // Namespaces, mounts, memory policy and the rest need their capability, as in docker; "syscall" and
        // "timerfd" are no system calls of any machine we run on.
        let meant = [
            "clone",
            "clone3",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "get_mempolicy",
            "keyctl",
            "mbind",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "pidfd_getfd",
            "pivot_root",
            "reboot",
            "set_mempolicy",
            "setns",
            "syscall",
            "syslog",
            "timerfd",
            "umount",
            "umount2",
            "unshare",
        ];
        let unmeant: Vec<_> = refused_here
            .iter()
            .filter(|name| !meant.contains(name))
            .collect();
        assert!(unmeant.is_empty(), "{unmeant:?}");
    }
}

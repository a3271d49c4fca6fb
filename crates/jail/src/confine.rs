//! The walls that are not mounts: name, processors, limits, credentials, death with the parent.

use std::os::fd::{FromRawFd as _, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustix::thread::CpuSet;

use crate::JailError;
use crate::capability::{self, Capability, last_errno};
use crate::spawn::PARENT_FD;

/// Longest host name (`__NEW_UTS_LEN` of the kernel).
const LONGEST_NAME: usize = 64;

/// Sets the host name, as much of it as fits, and empties the domain name.
pub(crate) fn hostname(name: &str) -> Result<(), JailError> {
    let name = name.as_bytes();
    rustix::system::sethostname(name.get(..LONGEST_NAME).unwrap_or(name))
        .map_err(JailError::confine("set the host name"))?;
    rustix::system::setdomainname(b"").map_err(JailError::confine("clear the domain name"))
}

/// Restricts the process to `cpus`, unless empty.
pub(crate) fn affinity(cpus: &[usize]) -> Result<(), JailError> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in cpus.iter().copied().filter(|cpu| *cpu < CpuSet::MAX_CPU) {
        set.set(cpu);
    }
    rustix::thread::sched_setaffinity(None, &set).map_err(|source| JailError::Affinity {
        cpus: cpus.to_vec(),
        source: source.into(),
    })
}

/// What the kernel allows a process to have open unless `fs.nr_open` was changed.
const MANY_FILES: u64 = 1 << 20;

/// No core dumps (they would hold guest memory); as many descriptors as may be had: a file server
/// holds one for each file its guest remembers. Without `CAP_SYS_RESOURCE` that is the hard limit
/// this process was started with.
pub(crate) fn limits() -> Result<(), JailError> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(JailError::confine("forbid core dumps"))?;
    let many = Rlimit {
        current: Some(MANY_FILES),
        maximum: Some(MANY_FILES),
    };
    let files = getrlimit(Resource::Nofile);
    let is_less = files.maximum.is_some_and(|maximum| maximum < MANY_FILES);
    if is_less && setrlimit(Resource::Nofile, many).is_ok() {
        return Ok(());
    }
    let hard = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    setrlimit(Resource::Nofile, hard).map_err(JailError::confine(
        "raise the soft limit of open files to the hard one",
    ))
}

/// Bounds the processes of the user the process is about to become. A limit that is already lower
/// stays.
pub(crate) fn limit_processes(most: u64) -> Result<(), JailError> {
    let now = getrlimit(Resource::Nproc);
    let most = now.maximum.map_or(most, |maximum| maximum.min(most));
    setrlimit(
        Resource::Nproc,
        Rlimit {
            current: Some(most),
            maximum: Some(most),
        },
    )
    .map_err(JailError::confine("limit the number of processes"))
}

/// Changes to the jail's user and leaves exactly `capabilities`.
pub(crate) fn credentials(
    uid: u32,
    gid: u32,
    capabilities: &[Capability],
) -> Result<(), JailError> {
    let mask = capability::mask(capabilities);
    capability::limit_bounding_set(mask)
        .map_err(JailError::confine("drop the capability bounding set"))?;
    secure_bits().map_err(JailError::confine("lock the secure bits"))?;
    if mask != 0 && uid != 0 {
        prctl(libc::PR_SET_KEEPCAPS, 1).map_err(JailError::confine(
            "keep capabilities over the change of user",
        ))?;
    }
    // Raw system calls: the process has one thread, and libc's versions would look for others.
    // SAFETY: an empty list is not read.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })
        .map_err(JailError::confine("drop supplementary groups"))?;
    // SAFETY: takes three integers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })
        .map_err(JailError::confine("change the group id"))?;
    // SAFETY: takes three integers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })
        .map_err(JailError::confine("change the user id"))?;
    capability::set(mask).map_err(JailError::confine("set the capabilities"))?;
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(JailError::confine("set no_new_privs"))?;
    // No other process of this user may look into this one. An execve() sets it back, which is
    // why a jailed program gets a user id that nobody else has.
    prctl(libc::PR_SET_DUMPABLE, 0).map_err(JailError::confine("forbid dumping"))
}

/// User id 0 confers no capability by itself, now and after an exec. The automatic changes of
/// the effective set on a change of user stay: the file server relies on them.
fn secure_bits() -> Result<(), Errno> {
    const SECBIT_NOROOT: libc::c_ulong = 1 << 0;
    const SECBIT_NOROOT_LOCKED: libc::c_ulong = 1 << 1;
    const SECBIT_NO_CAP_AMBIENT_RAISE: libc::c_ulong = 1 << 6;
    const SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED: libc::c_ulong = 1 << 7;
    prctl(
        libc::PR_SET_SECUREBITS,
        SECBIT_NOROOT
            | SECBIT_NOROOT_LOCKED
            | SECBIT_NO_CAP_AMBIENT_RAISE
            | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED,
    )
}

/// Asks for SIGKILL at the parent's death, then makes sure that the parent is still there: it may
/// have died before the question was asked, and in a pid namespace of its own a process cannot
/// tell by its parent's pid.
pub(crate) fn die_with_parent() -> Result<(), JailError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(JailError::confine("ask for a signal when the parent dies"))?;
    // A pidfd of a process outside one's own pid namespace cannot be signalled (EINVAL); anything
    // that is no pidfd is a bad descriptor.
    // SAFETY: integers and a null pointer, which means no extra information.
    let probe = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            PARENT_FD,
            0,
            std::ptr::null::<()>(),
            0,
        )
    };
    if probe < 0 && last_errno() == Errno::BADF {
        return Err(JailError::NoParent { number: PARENT_FD });
    }
    // SAFETY: it is open, as just seen, and owned by this function: `spawn` reserves the number.
    let parent = unsafe { OwnedFd::from_raw_fd(PARENT_FD) };
    let mut fds = [PollFd::new(&parent, PollFlags::IN)];
    poll(
        &mut fds,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
    .map_err(JailError::confine("look whether the parent lives"))?;
    if fds[0].revents().is_empty() {
        Ok(())
    } else {
        Err(JailError::ParentDied)
    }
}

fn prctl(option: libc::c_int, value: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: the options used in this file take one integer and touch no memory.
    check(libc::c_long::from(unsafe {
        libc::prctl(option, value, 0, 0, 0)
    }))
}

fn check(result: libc::c_long) -> Result<(), Errno> {
    if result < 0 {
        Err(last_errno())
    } else {
        Ok(())
    }
}

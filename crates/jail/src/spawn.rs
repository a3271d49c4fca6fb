//! Starting a process in namespaces of its own.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions};

use crate::JailError;

/// The number under which every spawned process finds a pidfd of its parent, until
/// [`Jail::enter`](crate::Jail::enter) has used and closed it.
pub const PARENT_FD: RawFd = 3;

/// Which namespaces a spawned process gets to itself. All by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "the kernel's own list of independent choices"
)]
pub struct Namespaces {
    /// Mounts. Required by [`Jail::enter`](crate::Jail::enter).
    pub mount: bool,
    /// Process ids. The process becomes number 1: when it dies, its descendants are killed.
    pub pid: bool,
    /// Network: nothing but a loopback interface that is down.
    pub net: bool,
    /// System V and POSIX message queues, shared memory, semaphores.
    pub ipc: bool,
    /// Host and domain name. Required by [`Jail::enter`](crate::Jail::enter).
    pub uts: bool,
    /// View of the control group tree, where the kernel has one.
    pub cgroup: bool,
}

impl Default for Namespaces {
    fn default() -> Self {
        Self {
            mount: true,
            pid: true,
            net: true,
            ipc: true,
            uts: true,
            cgroup: true,
        }
    }
}

impl Namespaces {
    fn flags(self) -> c_int {
        // Kernels are built without control groups now and then; then there is nothing to hide.
        let cgroup = self.cgroup && std::path::Path::new("/proc/self/ns/cgroup").exists();
        [
            (self.mount, libc::CLONE_NEWNS),
            (self.pid, libc::CLONE_NEWPID),
            (self.net, libc::CLONE_NEWNET),
            (self.ipc, libc::CLONE_NEWIPC),
            (self.uts, libc::CLONE_NEWUTS),
            (cgroup, libc::CLONE_NEWCGROUP),
        ]
        .into_iter()
        .filter_map(|(wanted, flag)| wanted.then_some(flag))
        .fold(0, |flags, flag| flags | flag)
    }
}

/// What to start, and with which descriptors. The environment is empty.
#[derive(Debug)]
pub struct Command {
    /// The program, by its path on the host.
    pub program: PathBuf,
    /// Its arguments, without its name.
    pub args: Vec<CString>,
    /// Descriptors and the numbers the program is to find them under. Standard streams that are
    /// not given are `/dev/null`; everything else is closed. [`PARENT_FD`] is reserved.
    pub fds: Vec<(OwnedFd, RawFd)>,
    /// The namespaces to make.
    pub namespaces: Namespaces,
}

/// A spawned process. Dropping it does not end the process.
#[derive(Debug)]
pub struct Child {
    /// Its id in the caller's pid namespace.
    pub pid: u32,
    /// Becomes readable when it exits; to be waited for (`waitid(P_PIDFD)`) by the caller.
    pub pidfd: OwnedFd,
}

/// Starts a program in new namespaces and returns once it is executing.
///
/// The program is started by the calling *thread*: a jailed program is killed when that thread
/// ends, so call this from one that lives as long as the program shall, normally the main thread.
/// Other threads may exist. The caller's descriptors are consumed.
///
/// # Errors
/// When the descriptors' numbers conflict, the kernel refuses the process or its namespaces, or
/// the program cannot be executed. No process is left behind.
pub fn spawn(command: Command) -> Result<Child, JailError> {
    let Command {
        program,
        args,
        fds,
        namespaces,
    } = command;
    let prepare = |step| {
        let program = program.clone();
        move |source: io::Error| JailError::Prepare {
            step,
            program,
            source,
        }
    };
    let path = CString::new(program.as_os_str().as_bytes()).map_err(|_| JailError::Nul {
        what: "the program's path",
    })?;
    let argv: Vec<*const c_char> = std::iter::once(path.as_ptr())
        .chain(args.iter().map(|arg| arg.as_ptr()))
        .chain([std::ptr::null()])
        .collect();
    let fds = complete(fds, &program)?;
    let moves: Vec<Move> = fds
        .iter()
        .map(|(fd, number)| Move {
            from: fd.as_raw_fd(),
            to: *number,
        })
        .collect();
    let mut task = Task {
        path: path.as_ptr(),
        argv: argv.as_ptr(),
        moves,
        failure: None,
    };
    let mut stack = Stack::new().map_err(prepare("allocate a stack"))?;
    let mut pidfd: RawFd = -1;
    let flags =
        namespaces.flags() | libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;

    let blocked = SignalsBlocked::new();
    // SAFETY: `child_main` runs on a stack of its own while this thread is suspended (VFORK), so
    // `task` is not accessed by two at once; it makes only system calls, so that locks held by
    // other threads do not matter; signal handlers cannot run in it, all signals being blocked
    // until it has reset their handlers. `pidfd` is written by the kernel before it returns.
    let pid = unsafe {
        libc::clone(
            child_main,
            stack.top(),
            flags,
            (&raw mut task).cast::<c_void>(),
            &raw mut pidfd,
        )
    };
    let error = io::Error::last_os_error();
    drop(blocked);

    let Ok(pid) = u32::try_from(pid) else {
        return Err(JailError::Clone {
            program,
            source: error,
        });
    };
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if let Some((step, errno)) = task.failure {
        // It has exited or is about to; collect it.
        let _ = rustix::process::waitid(
            WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)),
            WaitIdOptions::EXITED,
        );
        let source = io::Error::from_raw_os_error(errno);
        return Err(JailError::Start {
            step,
            program,
            source,
        });
    }
    Ok(Child { pid, pidfd })
}

/// Checks the numbers, adds the parent's pidfd and `/dev/null` for missing standard streams, and
/// sorts by number.
fn complete(
    mut fds: Vec<(OwnedFd, RawFd)>,
    program: &std::path::Path,
) -> Result<Vec<(OwnedFd, RawFd)>, JailError> {
    let prepare = |step| {
        move |errno: rustix::io::Errno| JailError::Prepare {
            step,
            program: program.to_owned(),
            source: errno.into(),
        }
    };
    if fds
        .iter()
        .any(|(_, number)| *number < 0 || *number == PARENT_FD)
    {
        let number = fds
            .iter()
            .map(|(_, number)| *number)
            .find(|n| *n < 0 || *n == PARENT_FD);
        return Err(JailError::DescriptorNumber {
            number: number.unwrap_or(PARENT_FD),
        });
    }
    let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
        .map_err(prepare("open a pidfd of this process"))?;
    fds.push((own, PARENT_FD));
    for number in 0..=2 {
        if fds.iter().all(|(_, taken)| *taken != number) {
            let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .map_err(prepare("open /dev/null"))?;
            fds.push((null, number));
        }
    }
    fds.sort_by_key(|(_, number)| *number);
    if let Some(pair) = fds.windows(2).find(|pair| pair[0].1 == pair[1].1) {
        return Err(JailError::DescriptorNumber { number: pair[0].1 });
    }
    Ok(fds)
}

#[derive(Clone, Copy)]
struct Move {
    from: RawFd,
    to: RawFd,
}

/// All the child needs, made before it exists: it must not allocate.
struct Task {
    path: *const c_char,
    argv: *const *const c_char,
    /// Ascending by `to`, never empty.
    moves: Vec<Move>,
    /// What failed, and errno; written by the child, read by the parent after it runs again.
    failure: Option<(&'static str, c_int)>,
}

/// Runs in the child, in the parent's memory. Only system calls; no allocation, no panic.
extern "C" fn child_main(task: *mut c_void) -> c_int {
    // SAFETY: the pointer is that of the `Task` in `spawn`, whose thread is suspended.
    let task = unsafe { &mut *task.cast::<Task>() };
    let step = become_program(task);
    // SAFETY: reads a thread-local of the suspended thread.
    task.failure = Some((step, unsafe { *libc::__errno_location() }));
    // SAFETY: ends the child without running anything of the parent's.
    unsafe { libc::_exit(127) }
}

/// Returns the name of the step that failed.
fn become_program(task: &mut Task) -> &'static str {
    // First away from all target numbers, so that no move overwrites a source.
    let floor = task
        .moves
        .iter()
        .map(|m| m.to)
        .max()
        .unwrap_or(PARENT_FD)
        .saturating_add(1);
    for entry in &mut task.moves {
        // SAFETY: fcntl with integers only.
        entry.from = unsafe { libc::fcntl(entry.from, libc::F_DUPFD, floor) };
        if entry.from < 0 {
            return "duplicate a descriptor";
        }
    }
    let mut next: RawFd = 0;
    for entry in &task.moves {
        // SAFETY: dup3 with integers only.
        if unsafe { libc::dup3(entry.from, entry.to, 0) } < 0 {
            return "place a descriptor";
        }
        if entry.to > next && !close(next, entry.to.saturating_sub(1)) {
            return "close other descriptors";
        }
        next = entry.to.saturating_add(1);
    }
    if !close(next, RawFd::MAX) {
        return "close other descriptors";
    }
    // Handlers do not survive an exec, but ignored signals do (Rust ignores SIGPIPE).
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: numbers that libc keeps for itself are refused, which is as good as done; the
        // table of handlers is the child's own.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that sigprocmask then reads.
    let unblocked = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    };
    if unblocked != 0 {
        return "reset the signal mask";
    }
    let environment: [*const c_char; 1] = [std::ptr::null()];
    // SAFETY: path and arguments are NUL-terminated, the arrays null-terminated, and the parent
    // keeps them alive.
    unsafe { libc::execve(task.path, task.argv, environment.as_ptr()) };
    "execute it"
}

/// Closes all descriptors from `first` to `last`.
fn close(first: RawFd, last: RawFd) -> bool {
    // SAFETY: integers only; the descriptor table is the child's own.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) == 0 }
}

/// A stack for the child's few calls, with a guard page below.
struct Stack {
    base: *mut c_void,
}

impl Stack {
    const GUARD: usize = 4096;
    const SIZE: usize = 64 * 1024;

    fn new() -> io::Result<Self> {
        // SAFETY: an anonymous mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { base };
        // SAFETY: the first page of the mapping just made.
        if unsafe { libc::mprotect(base, Self::GUARD, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    /// One past the highest byte, where a stack begins; page aligned.
    fn top(&mut self) -> *mut c_void {
        // SAFETY: one past the end of the mapping.
        unsafe { self.base.cast::<u8>().add(Self::SIZE).cast() }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; the child has left it (exec or exit) by now.
        unsafe { libc::munmap(self.base, Self::SIZE) };
    }
}

/// Blocks all signals in this thread; dropping it restores the mask.
struct SignalsBlocked {
    before: libc::sigset_t,
}

impl SignalsBlocked {
    fn new() -> Self {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset initialises `all`; pthread_sigmask, which cannot fail with a valid
        // operation, initialises `before`.
        let before = unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            before.assume_init()
        };
        Self { before }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: restores the mask read in `new`.
        unsafe {
            libc::pthread_sigmask(
                libc::SIG_SETMASK,
                &raw const self.before,
                std::ptr::null_mut(),
            )
        };
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack").finish_non_exhaustive()
    }
}

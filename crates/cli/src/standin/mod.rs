//! The stand-in's hat: `bulkhead standin <json>`. What it is for is said in
//! [`bulkhead_sandbox::standin`].
//!
//! There is one for each process of each container an engine started, so once it is set up it needs
//! next to nothing: system calls on two descriptors, one loop.

mod view;

use std::ffi::CString;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use bulkhead_sandbox::standin::{End, READY, Report};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::termios::tcgetwinsize;
use serde::{Deserialize, Serialize};

pub use view::{Bind, View};

/// What a stand-in is started with.
#[derive(Debug, Serialize, Deserialize)]
pub struct Config {
    /// Inherited end of the life line.
    pub life_fd: RawFd,
    /// Inherited descriptor of a network namespace to join.
    pub netns_fd: Option<RawFd>,
    /// Standard input is a terminal of our own.
    pub terminal: bool,
    /// The command line to show in lists of processes.
    pub title: Vec<String>,
    /// What our mount namespace shows; without it we have the host's.
    pub view: Option<View>,
}

/// Stands in until told to end, and ends like that. Returns only on failure.
pub fn run(json: &str) -> String {
    let config: Config = match serde_json::from_str(json) {
        Ok(config) => config,
        Err(error) => return format!("Invalid configuration of a stand-in: {error}"),
    };
    let Some(life) = adopt(config.life_fd) else {
        return "This command is Bulkhead's own and not meant to be called".to_owned();
    };
    // Signals wait until they can be passed on.
    let _ = SigSet::all().thread_block();
    let ready = set_up(&config);
    let answer = ready
        .as_ref()
        .map_or_else(|text| text.as_bytes(), |()| READY);
    // If nobody listens any more, the end of the life line is the next thing seen.
    let _ = rustix::net::send(&life, answer, SendFlags::NOSIGNAL);
    if let Err(error) = ready {
        return error;
    }
    show_as(&config.title);
    drop(config);
    shrink();
    match stand_in(&life) {
        Ok(end) => finish(end),
        Err(error) => format!("The stand-in failed: {error}"),
    }
}

fn set_up(config: &Config) -> Result<(), String> {
    // A pidfd of whoever started us, which only jails need.
    drop(adopt(bulkhead_jail::PARENT_FD));
    rustix::process::setsid().map_err(|error| format!("Failed to begin a session: {error}"))?;
    if config.terminal {
        rustix::process::ioctl_tiocsctty(std::io::stdin())
            .map_err(|error| format!("Failed to take the terminal: {error}"))?;
    }
    if let Some(namespace) = config.netns_fd.and_then(adopt) {
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|error| format!("Failed to join the network namespace: {error}"))?;
    }
    match &config.view {
        Some(view) => view.enter(),
        None => rustix::process::chdir("/").map_err(|error| format!("Failed to enter /: {error}")),
    }
}

fn adopt(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl takes any number.
    if number <= 2 || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: the descriptor is open (just checked) and was passed to this process to own; each
    // number is adopted once.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Lists of processes show the container's command, as they do for any other runtime.
fn show_as(title: &[String]) {
    let Some(program) = title.first() else { return };
    let name = program.rsplit('/').next().unwrap_or(program);
    if let Ok(name) = CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
    let Some((start, end)) = own_arguments() else {
        return;
    };
    let Some(room) = end.checked_sub(start).filter(|room| *room > 2) else {
        return;
    };
    let text = title.join(" ");
    let count = text.len().min(room.saturating_sub(2));
    let place = std::ptr::with_exposed_provenance_mut::<u8>(start);
    // SAFETY: the kernel says that our arguments are in this range of our memory, which is writable;
    // there is one thread, and nothing looks at the arguments any more.
    unsafe {
        place.write_bytes(0, room);
        place.copy_from_nonoverlapping(text.as_ptr(), count);
        // Without a NUL at the very end the kernel shows what is before the first one.
        place.add(room).sub(1).write(b' ');
    }
}

/// Where our command line is in our memory: fields 48 and 49 of proc_pid_stat(5).
fn own_arguments() -> Option<(usize, usize)> {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    // The first field after the name is the third.
    let mut fields = fields.split_whitespace().skip(45);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Gives back what the start has read of the executable, most of it to relocate parts never used
/// here. What is needed again is read again from the page cache.
fn shrink() {
    unsafe extern "C" {
        // Set by the linker: everything between them is code and constants.
        static __executable_start: u8;
        static etext: u8;
    }
    let page = rustix::param::page_size();
    let (start, end) = (
        (&raw const __executable_start).addr(),
        (&raw const etext).addr() & !page.wrapping_sub(1),
    );
    // SAFETY: the range is mapped from the file, privately and never written; without its pages it
    // reads the same. On failure nothing changes.
    let _ = unsafe {
        libc::madvise(
            (&raw const __executable_start).cast_mut().cast(),
            end.saturating_sub(start),
            libc::MADV_DONTNEED,
        )
    };
}

fn stand_in(life: &OwnedFd) -> rustix::io::Result<End> {
    let signals = SigSet::all();
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
        .map_err(|error| rustix::io::Errno::from_raw_os_error(error as i32))?;
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(life.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        if !fds[0].revents().is_empty() {
            let mut bytes = [0; 12];
            let (count, _) = rustix::net::recv(life, &mut bytes, RecvFlags::empty())?;
            let end = bytes.get(..count).and_then(End::decode);
            // Without a word the sandbox was killed, and the container with it.
            return Ok(end.unwrap_or(End::Signal(Signal::SIGKILL as u32)));
        }
        if !fds[1].revents().is_empty()
            && let Ok(Some(info)) = signals.read_signal()
        {
            let report = match i32::try_from(info.ssi_signo) {
                Ok(libc::SIGCHLD) => continue,
                Ok(libc::SIGWINCH) => match tcgetwinsize(std::io::stdin()) {
                    Ok(size) => Report::Resize {
                        columns: size.ws_col.into(),
                        rows: size.ws_row.into(),
                    },
                    Err(_) => Report::Signal(info.ssi_signo),
                },
                _ => Report::Signal(info.ssi_signo),
            };
            // If nobody listens any more, the end of the life line is the next thing seen.
            let _ = rustix::net::send(life, &report.encode(), SendFlags::NOSIGNAL);
        }
    }
}

/// Ends this process as the one it stood in for has ended.
fn finish(end: End) -> ! {
    let code = match end {
        End::Code(code) => code,
        End::Signal(number) => {
            die(number);
            number.saturating_add(128)
        }
    };
    std::process::exit(i32::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)));
}

/// Returns only if the signal does not kill.
fn die(number: u32) {
    let signal = i32::try_from(number)
        .ok()
        .and_then(|number| Signal::try_from(number).ok());
    let Some(signal) = signal else { return };
    // The memory that would be dumped is not that of the container's process.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = setrlimit(Resource::Core, none);
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of ours. It fails for SIGKILL, which needs no change.
    let _ = unsafe { sigaction(signal, &default) };
    let _ = raise(signal);
    let _ = SigSet::all().thread_unblock();
}

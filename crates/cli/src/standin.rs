//! The stand-in's hat: `bulkhead standin <descriptor>`. What it is for is said in
//! [`bulkhead_sandbox::standin`].
//!
//! There is one for each process of each container an engine started, so it allocates next to
//! nothing: system calls on descriptors, one loop.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use bulkhead_sandbox::standin::{End, Report};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::termios::tcgetwinsize;

/// Stands in until told to end, and ends like that. Returns only on failure.
pub fn run(argument: &str) -> String {
    let Some(life) = adopt(argument) else {
        return "This command is Bulkhead's own and not meant to be called".to_owned();
    };
    shrink();
    match stand_in(&life) {
        Ok(end) => finish(end),
        Err(error) => format!("The stand-in failed: {error}"),
    }
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

fn adopt(argument: &str) -> Option<OwnedFd> {
    let number = argument.parse().ok().filter(|number| *number > 2)?;
    // SAFETY: fcntl takes any number.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: the descriptor is open (just checked) and was passed to this process to own.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
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

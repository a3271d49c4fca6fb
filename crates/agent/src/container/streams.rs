//! The descriptors of the process: its streams, and nothing of the agent's.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::{
    fs::{FileType, Gid, Uid, fchown, fstat},
    io::{Errno, fcntl_dupfd_cloexec},
    process::setsid,
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
};

use super::{
    Io,
    failure::{During, Step},
    sys::{close_range, leak},
    terminal::{self, Terminal},
};

/// Descriptors 0 to 2 are the streams.
const STREAMS: i32 = 3;

/// In the child: makes the streams descriptors 0 to 2, in a session of their
/// own, and closes everything else but `keep`: a process that waits at its gate
/// must not hold other processes' pipes open.
pub fn take(io: &Io, terminal: Option<&Terminal>, keep: &mut [&mut BorrowedFd<'_>]) -> Step {
    setsid().during(|| "make a session".to_owned())?;
    let step = || "set the standard streams up".to_owned();
    for fd in keep.iter_mut() {
        **fd = above_streams(**fd).during(step)?;
    }
    match (io, terminal) {
        (
            Io::Pipes {
                stdin,
                stdout,
                stderr,
            },
            _,
        ) => {
            let (stdout, stderr) = (
                above_streams(stdout.as_fd()).during(step)?,
                above_streams(stderr.as_fd()).during(step)?,
            );
            dup2_stdin(stdin).during(step)?;
            dup2_stdout(stdout).during(step)?;
            dup2_stderr(stderr).during(step)?;
        }
        (Io::Terminal { .. }, Some(terminal)) => {
            let slave = leak(terminal::take(terminal.master.as_fd())?);
            dup2_stdin(slave).during(step)?;
            dup2_stdout(slave).during(step)?;
            dup2_stderr(slave).during(step)?;
        }
        (Io::Terminal { .. }, None) => return Err(Errno::NOTTY).during(step),
    }
    close_all_but(keep).during(|| "close the agent's descriptors".to_owned())
}

fn above_streams(fd: BorrowedFd<'_>) -> Result<BorrowedFd<'_>, Errno> {
    if fd.as_raw_fd() < STREAMS {
        fcntl_dupfd_cloexec(fd, STREAMS).map(leak)
    } else {
        Ok(fd)
    }
}

fn close_all_but(keep: &[&mut BorrowedFd<'_>]) -> std::io::Result<()> {
    let mut kept: Vec<u32> = keep
        .iter()
        .map(|fd| fd.as_raw_fd().unsigned_abs())
        .collect();
    kept.sort_unstable();
    let mut first = STREAMS.unsigned_abs();
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

/// Gives the pipes to the user, so that it can open `/dev/stdout` again.
pub fn give_to(uid: u32) -> Step {
    if uid == 0 {
        return Ok(());
    }
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    for stream in streams {
        let step = || "give the standard streams to the user".to_owned();
        let kind = FileType::from_raw_mode(fstat(stream).during(step)?.st_mode);
        let is_terminal = || rustix::termios::isatty(stream);
        // Not the null device: that is everybody's.
        if kind == FileType::Fifo || (kind == FileType::CharacterDevice && is_terminal()) {
            fchown(stream, Some(Uid::from_raw(uid)), None::<Gid>).during(step)?;
        }
    }
    Ok(())
}

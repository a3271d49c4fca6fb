//! Joins our own standard streams, terminal and signals to a process of a container.
//!
//! Each stream is a FIFO in the sandbox's directory: the device process holds the other end, so the
//! bytes pass through no further process of ours. Copying is done by a thread a stream, with
//! `splice(2)` where the kernel can, which keeps memory at the pipe's size.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use bulkhead_sandbox::stdio::Stdio;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{FileType, Mode, OFlags, mknodat, open};
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, splice};

/// Bytes moved at once, and asked for as a pipe's size.
const CHUNK: usize = 1 << 20;
const COPY: usize = 64 * 1024;

/// How long output may pause after an exec'd process has ended before we stop waiting for children
/// it left behind with its streams.
const QUIET: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// The FIFOs of one process, and our ends of them.
#[derive(Debug)]
pub struct Streams {
    /// As the sandbox is told.
    pub stdio: Stdio,
    stdin: Option<(PathBuf, OwnedFd)>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    files: Vec<PathBuf>,
}

/// Threads that copy output until its end.
#[derive(Debug)]
pub struct Pumps {
    output: Vec<JoinHandle<()>>,
    ended: OwnedFd,
}

impl Streams {
    /// Makes the FIFOs below `dir`, named after `name`.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn make(dir: &Path, name: &str, stdin: bool, terminal: bool) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        // Dropped when a step fails, which removes what was made until then.
        let mut streams = Self {
            stdio: Stdio {
                terminal,
                ..Stdio::default()
            },
            stdin: None,
            stdout: None,
            stderr: None,
            files: Vec::new(),
        };
        let at = |stream: &str| dir.join(format!("{name}-{stream}"));
        if stdin {
            let path = streams.fifo(at("stdin"))?;
            streams.stdio.stdin = path.display().to_string();
            // Both ways, so that the other side's open finds a writer; replaced once it has one.
            let end = open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            streams.stdin = Some((path, end));
        }
        let path = streams.fifo(at("stdout"))?;
        streams.stdio.stdout = path.display().to_string();
        streams.stdout = Some(read_end(&path)?);
        if !terminal {
            let path = streams.fifo(at("stderr"))?;
            streams.stdio.stderr = path.display().to_string();
            streams.stderr = Some(read_end(&path)?);
        }
        Ok(streams)
    }

    fn fifo(&mut self, path: PathBuf) -> io::Result<PathBuf> {
        let mode = Mode::from_raw_mode(0o600);
        mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0)?;
        self.files.push(path.clone());
        Ok(path)
    }

    /// Starts copying. Call it when the sandbox has opened its ends, which it has when it has
    /// created the process.
    ///
    /// # Errors
    /// When a FIFO cannot be opened any more.
    pub fn pump(mut self) -> io::Result<Pumps> {
        let ended = eventfd(0, EventfdFlags::CLOEXEC)?;
        let mut pumps = Pumps {
            output: Vec::new(),
            ended,
        };
        if let Some((path, both)) = self.stdin.take() {
            // Write-only from now on: a writer that could also read would never see the end.
            let end = open(
                &path,
                OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
                Mode::empty(),
            );
            drop(both);
            // Without a reader the process does not want its input (any more).
            if let Ok(end) = end {
                rustix::io::ioctl_fionbio(&end, false)?;
                // Nobody waits for this thread: it may sit in a read of the terminal for ever.
                thread::spawn(move || copy(io::stdin().as_fd(), end.as_fd()));
            }
        }
        for (from, to_stderr) in [(self.stdout.take(), false), (self.stderr.take(), true)] {
            let Some(from) = from else { continue };
            rustix::io::ioctl_fionbio(&from, false)?;
            let ended = pumps.ended.try_clone()?;
            pumps.output.push(thread::spawn(move || {
                if to_stderr {
                    copy_until(from.as_fd(), io::stderr().as_fd(), ended.as_fd());
                } else {
                    copy_until(from.as_fd(), io::stdout().as_fd(), ended.as_fd());
                }
            }));
        }
        Ok(pumps)
    }
}

impl Drop for Streams {
    /// Once both sides hold them open, or nobody will, the names are not needed any more.
    fn drop(&mut self) {
        for file in &self.files {
            // The sandbox may have removed them together with its directory.
            let _ = fs::remove_file(file);
        }
    }
}

impl Pumps {
    /// Waits until all output has been copied, to its end.
    pub fn finish(self) {
        for thread in self.output {
            // A copier that panicked has already said so.
            let _ = thread.join();
        }
    }

    /// Waits until all output has been copied to its end, or none came for 200 ms: a process may
    /// leave children behind that keep its streams.
    pub fn finish_or_quiet(self) {
        // The counter cannot overflow: it is written once.
        let _ = rustix::io::write(&self.ended, &1u64.to_ne_bytes());
        self.finish();
    }
}

fn read_end(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let end = open(path, flags, Mode::empty())?;
    // A larger pipe saves context switches; a smaller one works as well.
    let _ = fcntl_setpipe_size(&end, CHUNK);
    Ok(end)
}

/// Copies until the end of `from`, until `to` takes no more, or, once `ended` is readable, until
/// nothing has come for a while.
fn copy_until(from: BorrowedFd<'_>, to: BorrowedFd<'_>, ended: BorrowedFd<'_>) {
    let mut mover = Mover::between(from, to);
    let mut limit = None;
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(from, PollFlags::IN),
            PollFd::from_borrowed_fd(ended, PollFlags::IN),
        ];
        // Once the end is known it stays readable and must not be waited on.
        let watched = if limit.is_some() {
            &mut fds[..1]
        } else {
            &mut fds[..]
        };
        match poll(watched, limit.as_ref()) {
            Ok(0) => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        if limit.is_none() && !fds[1].revents().is_empty() {
            limit = Some(QUIET);
        }
        if !fds[0].revents().is_empty() && !mover.move_some(from, to) {
            return;
        }
    }
}

/// Copies until the end of `from` or until `to` takes no more.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    let mut mover = Mover::between(from, to);
    while mover.move_some(from, to) {}
}

/// Moves bytes with `splice(2)`, or through a buffer where that is not possible (a file opened for
/// appending) or not good (a terminal, a socket).
#[derive(Debug)]
struct Mover {
    buffer: Vec<u8>,
}

impl Mover {
    /// The kernel holds the pipe's lock while it waits for the other end of a splice, unless that is
    /// a pipe too: a terminal nobody types at would keep the device process, which has our FIFOs'
    /// other ends, from all its work.
    fn between(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Self {
        let waits_elsewhere = |fd| {
            let kind = rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
            !matches!(kind, Ok(FileType::Fifo | FileType::RegularFile))
        };
        let buffered = waits_elsewhere(from) || waits_elsewhere(to);
        Self {
            buffer: vec![0; if buffered { COPY } else { 0 }],
        }
    }

    /// Moves what is there, waiting for something if need be. False at the end of `from`, and when
    /// `to` takes no more.
    fn move_some(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
        if self.buffer.is_empty() {
            match splice(from, None, to, None, CHUNK, SpliceFlags::MOVE) {
                Ok(0) => return false,
                Ok(_) | Err(rustix::io::Errno::INTR) => return true,
                Err(rustix::io::Errno::INVAL) => self.buffer = vec![0; COPY],
                Err(_) => return false,
            }
        }
        match rustix::io::read(from, &mut *self.buffer) {
            Ok(0) => false,
            Ok(count) => self
                .buffer
                .get(..count)
                .is_some_and(|bytes| write_all(to, bytes)),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => true,
            Err(_) => false,
        }
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            // Our standard output may share its file description with somebody who made it
            // non-blocking.
            Err(rustix::io::Errno::AGAIN) => {
                let mut fds = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
                if poll(&mut fds, None).is_err() {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}

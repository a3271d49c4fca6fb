//! The host's ends of a process's streams: FIFOs a client made, given to the device process.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bulkhead_agent_api::messages;
use rustix::fs::{FileType, Mode, OFlags};

use crate::channel::{Channel, Stream};
use crate::standin::ATTACHED;

/// Paths as the Task API names them; empty means that the stream is not wanted.
#[derive(Debug, Clone, Default)]
pub struct Stdio {
    /// FIFO the process reads.
    pub stdin: String,
    /// FIFO the process, or its terminal, writes.
    pub stdout: String,
    /// FIFO for the second stream; unused with a terminal.
    pub stderr: String,
    /// One terminal instead of three streams.
    pub terminal: bool,
}

/// Why a stream could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The FIFO could not be opened.
    #[error("Failed to open the stream {path}: it must be a FIFO whose other end is open")]
    Open {
        /// As the client named it.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Not a FIFO.
    #[error("Stream {0} is not a FIFO: binary:// and file:// loggers are not supported")]
    NotFifo(PathBuf),
    /// The stand-in is missing.
    #[error("No streams were handed over for this process: name FIFOs, or hand them over first")]
    NothingAttached,
    /// The device process is gone.
    #[error("Failed to announce a stream to the device process")]
    Announce(#[source] io::Error),
}

impl Stdio {
    /// The streams are descriptors that came with a stand-in.
    #[must_use]
    pub fn attached(terminal: bool) -> Self {
        Self {
            stdin: ATTACHED.to_owned(),
            stdout: ATTACHED.to_owned(),
            stderr: ATTACHED.to_owned(),
            terminal,
        }
    }

    /// Whether the streams came with a stand-in.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.stdout == ATTACHED
    }

    /// Opens the FIFOs: standard input, output and error.
    ///
    /// # Errors
    /// A path that is no FIFO or has no other end.
    pub fn open(&self) -> Result<[Option<OwnedFd>; 3], StdioError> {
        let stderr = if self.terminal { "" } else { &self.stderr };
        Ok([
            open(&self.stdin, OFlags::RDONLY)?,
            open(&self.stdout, OFlags::WRONLY)?,
            open(stderr, OFlags::WRONLY)?,
        ])
    }
}

/// Announces streams; returns what the agent must know and the streams to follow.
///
/// # Errors
/// When the device process is gone.
pub fn announce(
    [stdin, stdout, stderr]: [Option<OwnedFd>; 3],
    terminal: bool,
    channel: &Channel,
) -> Result<(messages::Stdio, Vec<Stream>), StdioError> {
    let mut ports = messages::Stdio::new();
    let mut streams = Vec::new();
    let mut announce = |reader: Option<OwnedFd>, writer: Option<OwnedFd>| {
        let stream = channel
            .expect(reader, writer)
            .map_err(StdioError::Announce)?;
        let port = stream.port;
        streams.push(stream);
        Ok(port)
    };
    if terminal {
        ports.terminal_port = announce(stdin, stdout)?;
    } else {
        if stdin.is_some() {
            ports.stdin_port = announce(stdin, None)?;
        }
        if stdout.is_some() {
            ports.stdout_port = announce(None, stdout)?;
        }
        if stderr.is_some() {
            ports.stderr_port = announce(None, stderr)?;
        }
    }
    Ok((ports, streams))
}

fn open(path: &str, access: OFlags) -> Result<Option<OwnedFd>, StdioError> {
    if path.is_empty() {
        return Ok(None);
    }
    let path = Path::new(path);
    let failed = |source: rustix::io::Errno| StdioError::Open {
        path: path.to_owned(),
        source: source.into(),
    };
    // Non-blocking, so that a client which never opens its end cannot hold the sandbox up.
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&fd).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
        Ok(Some(fd))
    } else {
        Err(StdioError::NotFifo(path.to_owned()))
    }
}

//! The host's ends of a process's streams: FIFOs a client made, given to the device process.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bulkhead_agent_api::messages;
use rustix::fs::{FileType, Mode, OFlags};

use crate::channel::{Channel, Stream};

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
    /// The device process is gone.
    #[error("Failed to announce a stream to the device process")]
    Announce(#[source] io::Error),
}

/// Opens the FIFOs and announces them; returns what the agent must know and the streams to follow.
///
/// # Errors
/// A path that is no FIFO or has no other end; nothing stays announced then.
pub fn attach(
    stdio: &Stdio,
    channel: &Channel,
) -> Result<(messages::Stdio, Vec<Stream>), StdioError> {
    let stdin = open(&stdio.stdin, OFlags::RDONLY)?;
    let stdout = open(&stdio.stdout, OFlags::WRONLY)?;
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
    if stdio.terminal {
        ports.terminal_port = announce(stdin, stdout)?;
    } else {
        let stderr = open(&stdio.stderr, OFlags::WRONLY)?;
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

//! The standard streams of a process: a vsock stream to the host for each of them.
//!
//! Between a program and the socket there is always a pipe (or a pseudo-terminal), because a program
//! may tell the difference: `/dev/stdout` cannot be opened again when it is a socket. The bytes are
//! spliced from one to the other in the kernel; the agent has no buffer of its own for them, and
//! what the host does not take stays in the pipe and stops the producer.
//!
//! # When output counts as handed over
//! `Wait` answers when the process has ended and its output was handed over, that is, when for each
//! of its output streams
//! - every writer has closed it and the last byte went to the socket, or
//! - every byte that was in the pipe when the process ended went to the socket (a process in the
//!   background may hold the pipe open for ever; its later output still flows, but nobody waits for
//!   it), or
//! - the host does not want the stream any more.
//!
//! A host that neither reads nor closes a stream with bytes in it holds `Wait` up: nothing is lost.
//!
//! # Closing
//! | what happens | what follows |
//! |---|---|
//! | every writer of a pipe closed it | the socket is closed after the last byte |
//! | the host's reader is gone (reset, or shutdown of both directions) | the agent closes the read end of the pipe: the producer gets `SIGPIPE` at its next write |
//! | the host's writer is at its end (shutdown) | the agent closes the write end: the process reads end of file |
//! | the process closed its standard input | the socket is closed: the host need not send more |
//! | the terminal's last user closed it | the socket is closed after the last byte |
//! | the host sends no more to a terminal | output goes on |
//! | the host closed a terminal's stream | the master is closed: its processes get `SIGHUP` |

mod input;
mod output;
mod splice;
mod terminal;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bulkhead_agent_api::messages::Stdio;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::{mpsc, watch};

use crate::container::Io;
use crate::vsock;
use crate::watched::{self, Watched};

/// Why the streams of a process could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The host did not accept the connection for a stream.
    #[error("Cannot connect {stream} to the host's vsock port {port}")]
    Connect {
        /// Which stream.
        stream: &'static str,
        /// The host's port.
        port: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The guest's own half could not be made.
    #[error("Cannot create {stream}")]
    Create {
        /// Which stream.
        stream: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A size of the terminal is out of range.
    #[error("A terminal of {columns} columns and {rows} rows is not possible; the limit is 65535")]
    Size {
        /// Width in characters.
        columns: u32,
        /// Height in characters.
        rows: u32,
    },
}

/// A stream on its way to the host.
#[derive(Debug)]
struct Connecting {
    stream: &'static str,
    port: u32,
    socket: Watched,
}

/// The agent's ends of the streams of a process.
#[derive(Debug)]
pub struct Streams {
    /// The socket of the terminal, or of the streams, with the agent's end of the pipe.
    terminal: Option<Connecting>,
    input: Option<(OwnedFd, Connecting)>,
    outputs: Vec<(OwnedFd, Connecting)>,
}

/// The streams' part in a process' end.
#[derive(Debug)]
pub struct Handover {
    exited: watch::Sender<bool>,
    owing: mpsc::Receiver<Infallible>,
}

/// What an output stream needs in order to take part in the process' end.
#[derive(Debug)]
struct Debt {
    exited: watch::Receiver<bool>,
    /// Dropped when the output was handed over.
    owing: Option<mpsc::Sender<Infallible>>,
}

impl Streams {
    /// Makes the pipes and begins to connect to the host; returns the process' side with it.
    ///
    /// Does not wait for the host.
    ///
    /// # Errors
    /// When the guest is out of descriptors or memory, or the terminal's size is impossible.
    pub fn open(stdio: &Stdio) -> Result<(Io, Self), StreamError> {
        let mut streams = Self {
            terminal: None,
            input: None,
            outputs: Vec::new(),
        };
        if stdio.terminal_port != 0 {
            let (columns, rows) = size(stdio.columns, stdio.rows)?;
            streams.terminal = Some(Connecting::start("the terminal", stdio.terminal_port)?);
            return Ok((Io::Terminal { columns, rows }, streams));
        }
        let stdin = streams.input("standard input", stdio.stdin_port)?;
        let stdout = streams.output("standard output", stdio.stdout_port)?;
        let stderr = streams.output("standard error", stdio.stderr_port)?;
        Ok((
            Io::Pipes {
                stdin,
                stdout,
                stderr,
            },
            streams,
        ))
    }

    fn input(&mut self, stream: &'static str, port: u32) -> Result<OwnedFd, StreamError> {
        if port == 0 {
            return nothing(stream, OFlags::RDONLY);
        }
        let (theirs, ours) = pipe(stream)?;
        self.input = Some((ours, Connecting::start(stream, port)?));
        Ok(theirs)
    }

    fn output(&mut self, stream: &'static str, port: u32) -> Result<OwnedFd, StreamError> {
        if port == 0 {
            return nothing(stream, OFlags::WRONLY);
        }
        let (ours, theirs) = pipe(stream)?;
        self.outputs.push((ours, Connecting::start(stream, port)?));
        Ok(theirs)
    }

    /// Waits until the host has accepted every stream.
    ///
    /// # Errors
    /// Names the first stream the host did not accept.
    pub async fn connected(&self) -> Result<(), StreamError> {
        let input = self.input.iter().map(|(_, connecting)| connecting);
        let outputs = self.outputs.iter().map(|(_, connecting)| connecting);
        for connecting in self.terminal.iter().chain(input).chain(outputs) {
            connecting.wait().await?;
        }
        Ok(())
    }

    /// Starts to relay, in tasks of the event loop. `master` is the terminal's, if there is one.
    ///
    /// # Errors
    /// When the event loop cannot watch one more descriptor.
    pub fn relay(self, master: Option<Arc<Watched>>) -> Result<Handover, StreamError> {
        let (exited, ended) = watch::channel(false);
        let (owing, handed_over) = mpsc::channel(1);
        let debt = || Debt {
            exited: ended.clone(),
            owing: Some(owing.clone()),
        };
        if let (Some(connecting), Some(master)) = (self.terminal, master) {
            tokio::spawn(terminal::relay(master, connecting.socket, debt()));
        }
        if let Some((pipe, connecting)) = self.input {
            let pipe = created(connecting.stream, watched::writable(pipe))?;
            tokio::spawn(input::relay(connecting.socket, pipe));
        }
        for (pipe, connecting) in self.outputs {
            let pipe = created(connecting.stream, watched::readable(pipe))?;
            tokio::spawn(output::relay(pipe, connecting.socket, debt()));
        }
        Ok(Handover {
            exited,
            owing: handed_over,
        })
    }
}

impl Handover {
    /// Tells the streams that the process has ended and waits until its output was handed over.
    pub async fn complete(mut self) {
        self.exited.send_replace(true);
        // Nothing is ever sent: this is the moment at which the last sender is dropped.
        let _ = self.owing.recv().await;
    }
}

impl Connecting {
    fn start(stream: &'static str, port: u32) -> Result<Self, StreamError> {
        let socket = vsock::start_connecting(port, vsock::STREAM_PATIENCE_S).map_err(|source| {
            StreamError::Connect {
                stream,
                port,
                source,
            }
        })?;
        let socket = created(stream, watched::both_ways(socket))?;
        Ok(Self {
            stream,
            port,
            socket,
        })
    }

    async fn wait(&self) -> Result<(), StreamError> {
        let answer = match self.socket.writable().await {
            Ok(_) => vsock::connected(self.socket.get_ref()),
            Err(error) => Err(error),
        };
        answer.map_err(|source| StreamError::Connect {
            stream: self.stream,
            port: self.port,
            source,
        })
    }
}

fn created<T>(stream: &'static str, result: io::Result<T>) -> Result<T, StreamError> {
    result.map_err(|source| StreamError::Create { stream, source })
}

/// A pipe: read end, write end. Both block; `splice` is told not to.
fn pipe(stream: &'static str) -> Result<(OwnedFd, OwnedFd), StreamError> {
    created(
        stream,
        pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from),
    )
}

fn nothing(stream: &'static str, direction: OFlags) -> Result<OwnedFd, StreamError> {
    let null = rustix::fs::open("/dev/null", direction | OFlags::CLOEXEC, Mode::empty());
    created(stream, null.map_err(io::Error::from))
}

/// The terminal's size as the kernel wants it.
///
/// # Errors
/// When a side does not fit into 16 bits.
pub fn size(columns: u32, rows: u32) -> Result<(u16, u16), StreamError> {
    match (u16::try_from(columns), u16::try_from(rows)) {
        (Ok(columns), Ok(rows)) => Ok((columns, rows)),
        _ => Err(StreamError::Size { columns, rows }),
    }
}

//! The sandbox's end of the control channel to the device process: which host descriptor belongs to
//! which vsock port, and what became of it.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_devices::tally::Work;
use bulkhead_devices::vsock::control::{Event, HostChannel, Plugged, Request, Slot};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch as value;

use crate::watched::{WatchedChannel, watch};

/// How long the device process may take to tell what it has counted: it never waits for a guest.
const PATIENCE: Duration = Duration::from_secs(2);

/// The most bytes that may take: far more than a pipe holds, into which it is written at once.
const LONGEST_ANSWER: usize = 256 * 1024;

/// How far a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    /// Announced; the guest has not connected.
    Expected,
    /// Connected at this time (`CLOCK_MONOTONIC`, nanoseconds).
    Connected(u64),
    /// Over: both directions are closed and every byte is handed on.
    Closed,
}

/// Announces streams to the device process and follows them.
#[derive(Clone)]
pub struct Channel {
    inner: Arc<Inner>,
}

struct Inner {
    channel: AsyncFd<WatchedChannel>,
    ports: Mutex<Ports>,
}

struct Ports {
    next: u32,
    open: HashMap<u32, value::Sender<PortState>>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Channel")
    }
}

/// A stream that was announced.
#[derive(Debug)]
pub struct Stream {
    /// Its host port.
    pub port: u32,
    /// Where it stands.
    pub state: value::Receiver<PortState>,
}

impl Stream {
    /// Waits until the stream is over, or the device process is.
    pub async fn closed(&mut self) {
        // An error means that the channel is gone, and with it the stream.
        let _ = self
            .state
            .wait_for(|state| *state == PortState::Closed)
            .await;
    }
}

impl Channel {
    /// Takes the channel over and follows its events until the device process ends.
    ///
    /// # Errors
    /// When the descriptor cannot be registered with the runtime.
    pub fn new(channel: HostChannel) -> io::Result<Self> {
        let inner = Arc::new(Inner {
            channel: watch(WatchedChannel(channel))?,
            ports: Mutex::new(Ports {
                next: bulkhead_agent_api::FIRST_STDIO_PORT,
                open: HashMap::new(),
            }),
        });
        tokio::spawn(follow(inner.clone()));
        Ok(Self { inner })
    }

    /// Announces that the guest will connect to a port of our choice, and what it is joined to.
    ///
    /// # Errors
    /// When the device process is gone.
    pub fn expect(&self, reader: Option<OwnedFd>, writer: Option<OwnedFd>) -> io::Result<Stream> {
        let port = {
            let mut ports = self
                .inner
                .ports
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let port = ports.next;
            // Ports wrap long after the streams of the first round are over.
            let next = port
                .checked_add(1)
                .unwrap_or(bulkhead_agent_api::FIRST_STDIO_PORT);
            ports.next = next;
            port
        };
        self.expect_port(port, reader, writer)
    }

    /// As [`Self::expect`], for a port both sides know.
    ///
    /// # Errors
    /// When the device process is gone.
    pub fn expect_port(
        &self,
        port: u32,
        reader: Option<OwnedFd>,
        writer: Option<OwnedFd>,
    ) -> io::Result<Stream> {
        let (sender, state) = value::channel(PortState::Expected);
        let mut ports = self
            .inner
            .ports
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        ports.open.insert(port, sender);
        drop(ports);
        let request = Request::Expect {
            port,
            reader: reader.is_some(),
            writer: writer.is_some(),
        };
        let fds = [reader, writer].into_iter().flatten().collect();
        self.inner.channel.get_ref().0.send(request, fds)?;
        Ok(Stream { port, state })
    }

    /// What the devices have done since the machine's start, as their process counts it.
    ///
    /// # Errors
    /// When the device process is gone, does not answer within seconds, or answers something else.
    pub async fn work(&self) -> io::Result<Vec<Work>> {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (reader, writer) = pipe_with(flags)?;
        let reader = watch(reader)?;
        let channel = &self.inner.channel.get_ref().0;
        channel.send(Request::Count, vec![writer])?;
        let answer = tokio::time::timeout(PATIENCE, read_all(&reader));
        let json = answer.await.map_err(io::Error::from)??;
        Ok(serde_json::from_slice(&json)?)
    }

    /// Has one more device served to whoever connects to the listening `socket`; `medium` is what is behind it.
    /// If the device process cannot, it closes the socket.
    ///
    /// # Errors
    /// When the device process is gone.
    pub fn plug(&self, device: Plugged, socket: OwnedFd, medium: OwnedFd) -> io::Result<()> {
        let channel = &self.inner.channel.get_ref().0;
        channel.send(Request::Plug(device), vec![socket, medium])
    }

    /// Has that device served no longer.
    pub fn unplug(&self, slot: Slot) {
        // If the device process is gone, so is the device.
        let channel = &self.inner.channel.get_ref().0;
        let _ = channel.send(Request::Unplug(slot), Vec::new());
    }

    /// Withdraws an announcement nobody will use any more.
    pub fn cancel(&self, port: u32) {
        // If the device process is gone, so is the announcement.
        let _ = self
            .inner
            .channel
            .get_ref()
            .0
            .send(Request::Cancel { port }, Vec::new());
        let mut ports = self
            .inner
            .ports
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = ports.open.remove(&port) {
            state.send_replace(PortState::Closed);
        }
    }
}

/// Reads to the end, as far as an answer may reach.
async fn read_all(reader: &AsyncFd<OwnedFd>) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let mut ready = reader.readable().await?;
        match rustix::io::read(reader.get_ref(), &mut bytes) {
            Ok(0) => return Ok(all),
            Ok(got) => all.extend_from_slice(bytes.get(..got).unwrap_or_default()),
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            Err(errno) => return Err(errno.into()),
        }
        if all.len() > LONGEST_ANSWER {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

async fn follow(inner: Arc<Inner>) {
    'wait: while let Ok(mut ready) = inner.channel.readable().await {
        loop {
            match inner.channel.get_ref().0.try_recv() {
                Ok(Some(event)) => inner.note(event),
                Ok(None) => break,
                Err(_) => break 'wait,
            }
        }
        ready.clear_ready();
    }
    // Dropping the senders tells whoever waits that nothing will follow.
    inner
        .ports
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .open
        .clear();
}

impl Inner {
    fn note(&self, event: Event) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Connected { port, at_ns } => {
                if let Some(state) = ports.open.get(&port) {
                    state.send_replace(PortState::Connected(at_ns));
                }
            }
            Event::Closed { port } | Event::Refused { port } => {
                if let Some(state) = ports.open.remove(&port) {
                    state.send_replace(PortState::Closed);
                }
            }
            Event::Ready => {}
        }
    }
}

/// Both ends of a stream socket pair, non-blocking.
///
/// # Errors
/// Out of descriptors.
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?)
}

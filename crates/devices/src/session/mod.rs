//! One vhost-user front end, one device, one thread.
//!
//! [`Session`] waits on the listening socket, the accepted front end, the rings' kick descriptors
//! and whatever descriptors the device adds, all in one epoll instance, and calls the device on the
//! thread that runs [`Session::run`]. A device is a [`VhostUserBackendMut`] with two additions
//! ([`Device`]), so the same object can also be driven by a virtual machine monitor in-process.
//!
//! The daemon of `vhost-user-backend` spends two threads per device and drops the error of its ring
//! thread on the floor; a thread that stops serving a ring without a word is the failure that is
//! hardest to find from inside the guest.

mod early;
mod handler;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vhost::vhost_user::{BackendReqHandler, Error as VhostUserError};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackendMut, VringMutex};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::tally::Tally;
use handler::Handler;

/// Guest memory as mapped from the front end's descriptors.
pub type Memory = GuestMemoryMmap<BitmapMmapRegion>;
/// Guest memory that can be replaced while rings refer to it.
pub type AtomicMemory = GuestMemoryAtomic<Memory>;
/// A ring and the descriptors that go with it.
pub type Vring = VringMutex<AtomicMemory>;

/// How long the front end may leave a message half sent. A jailed hypervisor that stops in the
/// middle of one would otherwise keep the device from noticing that it should end.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// Tokens of the listening or accepted socket, and of the stop signal; rings have theirs from 0,
/// sources from [`Device::sources`].
const SOCKET: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;

/// A failure of the transport between a device and its front end.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The event loop could not be made or waited on.
    #[error("Cannot wait for events of the {device} device")]
    Events {
        /// Name of the device.
        device: &'static str,
        /// What the system call said.
        #[source]
        source: io::Error,
    },
    /// The front end could not be accepted.
    #[error("Cannot accept the hypervisor's connection to the {device} device")]
    Accept {
        /// Name of the device.
        device: &'static str,
        /// What the system call said.
        #[source]
        source: io::Error,
    },
    /// The front end broke the vhost-user protocol.
    #[error("The hypervisor sent the {device} device a vhost-user message it cannot follow")]
    Protocol {
        /// Name of the device.
        device: &'static str,
        /// What was wrong with it.
        #[source]
        source: VhostUserError,
    },
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The front end closed its connection and the device had nothing left to deliver.
    Disconnected,
    /// The device itself asked to end, see [`Device::stopped`], or the stop signal was given.
    Stopped,
}

/// A descriptor a device waits on.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    fd: RawFd,
    token: u16,
    events: EventSet,
}

impl Source {
    /// One whose events are given to `handle_event` as `token` (greater than the number of queues) as
    /// long as it is readable.
    #[must_use]
    pub fn while_ready(fd: RawFd, token: u16) -> Self {
        Self {
            fd,
            token,
            events: EventSet::IN,
        }
    }

    /// As [`Self::while_ready`], but once each time there is something new to read: for a device that
    /// may have to leave it where it is.
    #[must_use]
    pub fn on_change(fd: RawFd, token: u16) -> Self {
        Self {
            fd,
            token,
            events: EventSet::IN | EventSet::EDGE_TRIGGERED,
        }
    }
}

/// A virtio device that can be served by a [`Session`].
pub trait Device: VhostUserBackendMut<Bitmap = BitmapMmapRegion, Vring = Vring> {
    /// A short name for threads and messages.
    const NAME: &'static str;

    /// Whether front ends switch its rings before they have agreed on features.
    const EARLY_ENABLE: bool = false;

    /// Descriptors to wait on besides the rings. They stay registered until the session ends.
    fn sources(&self) -> Vec<Source>;

    /// Whether the device wants the session to end now.
    fn stopped(&self) -> bool;

    /// Tells the device that the front end is gone; its rings stay readable. The session goes on
    /// until [`Device::drained`] is true.
    fn disconnected(&mut self, vrings: &[Vring]);

    /// Whether everything the guest sent has been delivered.
    fn drained(&self) -> bool;

    /// Where it counts what it does.
    fn tally(&self) -> &Arc<Tally>;
}

enum Link<D: Device> {
    Listening(UnixListener),
    Connected(BackendReqHandler<Mutex<Handler<D>>>),
    Gone,
}

/// Serves `D` to the one front end that connects.
#[derive(Debug)]
pub struct Session<D: Device> {
    epoll: Arc<Epoll>,
    handler: Arc<Mutex<Handler<D>>>,
    link: Link<D>,
    failure: Option<SessionError>,
}

/// Takes the front end's next message and does what it says.
fn answer<D: Device>(
    front_end: &mut BackendReqHandler<Mutex<Handler<D>>>,
    handler: &Mutex<Handler<D>>,
) -> Result<(), VhostUserError> {
    let mut locked = handler.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = early::take(front_end, &mut locked).map_err(VhostUserError::SocketBroken)?;
    drop(locked);
    if taken {
        return Ok(());
    }
    front_end.handle_request()
}

impl<D: Device> std::fmt::Debug for Link<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Link::Listening(_) => "Listening",
            Link::Connected(_) => "Connected",
            Link::Gone => "Gone",
        })
    }
}

impl<D: Device> Session<D> {
    /// Prepares to serve `device` to the first front end that connects to `listener`, until `stop`
    /// becomes readable. `stop` is not read, so that it can be shared.
    ///
    /// # Errors
    /// [`SessionError::Events`] when the event loop cannot be made.
    pub fn new(
        listener: UnixListener,
        device: D,
        stop: &impl AsRawFd,
    ) -> Result<Self, SessionError> {
        let events = |source| SessionError::Events {
            device: D::NAME,
            source,
        };
        let epoll = Arc::new(Epoll::new().map_err(events)?);
        let add = |fd, token| {
            epoll.ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, token),
            )
        };
        add(listener.as_raw_fd(), SOCKET).map_err(events)?;
        add(stop.as_raw_fd(), STOP).map_err(events)?;
        for source in device.sources() {
            epoll
                .ctl(
                    ControlOperation::Add,
                    source.fd,
                    EpollEvent::new(source.events, u64::from(source.token)),
                )
                .map_err(events)?;
        }
        let handler = Handler::new(device, Arc::clone(&epoll)).map_err(events)?;
        Ok(Self {
            epoll,
            handler: Arc::new(Mutex::new(handler)),
            link: Link::Listening(listener),
            failure: None,
        })
    }

    /// Serves until the front end is gone and everything is delivered, or the device asks to stop.
    /// Blocks the calling thread.
    ///
    /// # Errors
    /// See [`SessionError`]; a front end that breaks the protocol is dropped at once, and reported
    /// when what the guest sent before is delivered.
    pub fn run(&mut self) -> Result<End, SessionError> {
        let mut events = [EpollEvent::default(); 16];
        loop {
            let ready = match self.epoll.wait(-1, &mut events) {
                Ok(ready) => ready,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(SessionError::Events {
                        device: D::NAME,
                        source,
                    });
                }
            };
            // Rings and sources first: what the guest sent before its hypervisor went away counts.
            let mut socket = false;
            for event in events.iter().take(ready) {
                match (event.data(), u16::try_from(event.data())) {
                    (STOP, _) => return Ok(End::Stopped),
                    (_, Ok(token)) => self.handler().dispatch(token),
                    _ => socket = true,
                }
            }
            if socket {
                self.socket_ready()?;
            }
            let handler = self.handler();
            if handler.device().stopped() {
                return Ok(End::Stopped);
            }
            if matches!(self.link, Link::Gone) && handler.device().drained() {
                drop(handler);
                return self.failure.take().map_or(Ok(End::Disconnected), Err);
            }
        }
    }

    fn handler(&self) -> std::sync::MutexGuard<'_, Handler<D>> {
        self.handler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn socket_ready(&mut self) -> Result<(), SessionError> {
        match &mut self.link {
            Link::Listening(listener) => {
                let (stream, _) = match listener.accept() {
                    Ok(accepted) => accepted,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(source) => {
                        return Err(SessionError::Accept {
                            device: D::NAME,
                            source,
                        });
                    }
                };
                self.accept(stream).map_err(|source| SessionError::Accept {
                    device: D::NAME,
                    source,
                })
            }
            Link::Connected(front_end) => match answer(front_end, &self.handler) {
                Ok(()) => Ok(()),
                Err(VhostUserError::Disconnected | VhostUserError::PartialMessage) => {
                    self.disconnect();
                    Ok(())
                }
                Err(VhostUserError::SocketBroken(e)) => {
                    log::debug!("{}: the hypervisor's connection broke: {e}", D::NAME);
                    self.disconnect();
                    Ok(())
                }
                // The request was answered with a failure; the front end decides what to do.
                Err(VhostUserError::ReqHandlerError(e)) => {
                    log::warn!("{}: a vhost-user request failed: {e}", D::NAME);
                    Ok(())
                }
                Err(source) => {
                    self.failure = Some(SessionError::Protocol {
                        device: D::NAME,
                        source,
                    });
                    self.disconnect();
                    Ok(())
                }
            },
            Link::Gone => Ok(()),
        }
    }

    /// Serves `stream` and stops listening: a device has one front end in its life.
    fn accept(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(MESSAGE_TIMEOUT))?;
        stream.set_write_timeout(Some(MESSAGE_TIMEOUT))?;
        if let Link::Listening(listener) = &self.link {
            self.epoll.ctl(
                ControlOperation::Delete,
                listener.as_raw_fd(),
                EpollEvent::default(),
            )?;
        }
        self.epoll.ctl(
            ControlOperation::Add,
            stream.as_raw_fd(),
            EpollEvent::new(EventSet::IN, SOCKET),
        )?;
        self.link = Link::Connected(BackendReqHandler::from_stream(
            stream,
            Arc::clone(&self.handler),
        ));
        Ok(())
    }

    fn disconnect(&mut self) {
        // Dropping the connection closes the only copy of the socket, which leaves the epoll set.
        self.link = Link::Gone;
        self.handler().disconnected();
    }
}

//! What the sandbox process asks for and is told.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::{BATCH, CONTROL, MAX_STREAMS, Mux, connection};
use crate::vsock::control::{Ends, Event, Inbox, Plugged, Request};
use crate::vsock::host::{Direction, HostError, HostFd};
use crate::vsock::packet::Pair;
use crate::vsock::stream::Stream;

/// Events owed to the sandbox process from which on its requests are left in the socket.
const MAX_EVENTS: usize = 64;

/// The checked descriptors of an expectation.
#[derive(Debug)]
pub(super) struct HostEnds {
    pub(super) reader: Option<HostFd>,
    pub(super) writer: Option<HostFd>,
}

impl Mux {
    pub(super) fn control_event(&mut self) {
        self.send_events();
        for _ in 0..BATCH {
            if self.events.len() >= MAX_EVENTS {
                return;
            }
            match self.control.try_recv() {
                Ok(Inbox::Request(request, ends)) => self.request(request, ends),
                Ok(Inbox::Empty) => return,
                Ok(Inbox::Closed) => {
                    self.control_closed = true;
                    return;
                }
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    log::error!("vsock: {e}; it is ignored");
                }
                Err(e) => {
                    log::error!("vsock: the control channel broke: {e}");
                    self.control_closed = true;
                    return;
                }
            }
        }
    }

    fn request(&mut self, request: Request, ends: Ends) {
        match request {
            Request::Expect { port, .. } => {
                if let Err(e) = self.expect(port, ends) {
                    log::error!("vsock: cannot expect the guest on port {port}: {e}");
                    self.tell(Event::Refused { port });
                }
            }
            Request::Connect {
                guest_port,
                local_port,
                ..
            } => {
                let pair = Pair {
                    host: local_port,
                    guest: guest_port,
                };
                match self.prepare(local_port, ends).and_then(|ends| {
                    self.connect(Stream::connecting(pair), ends)
                        .map_err(RequestError::Watch)
                }) {
                    Ok(slot) => self.settle(slot),
                    Err(e) => {
                        log::error!("vsock: cannot connect to guest port {guest_port}: {e}");
                        self.tell(Event::Refused { port: local_port });
                    }
                }
            }
            Request::Cancel { port } => self.cancel(port),
            Request::Plug(device) => self.plug(device, ends),
            Request::Unplug(slot) => {
                if let Some(plug) = self.plug.as_mut() {
                    plug.unplug(slot);
                }
            }
            Request::Count => {
                if let Some(Err(e)) = ends.writer.map(|writer| self.tallies.tell(writer)) {
                    log::warn!("vsock: the counts of the devices could not be told: {e}");
                }
            }
        }
    }

    fn plug(&mut self, device: Plugged, ends: Ends) {
        let (Some(plug), Some(socket), Some(medium)) =
            (self.plug.as_mut(), ends.reader, ends.writer)
        else {
            log::error!("vsock: there is nobody to serve {device:?}");
            return;
        };
        // If it fails the hypervisor finds its socket closed, and says so.
        match plug.plug(device, socket, medium) {
            Ok(served) => self.tallies.add(served),
            Err(e) => log::error!("vsock: cannot serve {device:?}: {e}"),
        }
    }

    fn expect(&mut self, port: u32, ends: Ends) -> Result<(), RequestError> {
        let ends = self.prepare(port, ends)?;
        self.expected.insert(port, ends);
        Ok(())
    }

    fn prepare(&self, port: u32, ends: Ends) -> Result<HostEnds, RequestError> {
        if self.guest_gone {
            return Err(RequestError::Gone);
        }
        if self.expected.contains_key(&port) || self.pairs.keys().any(|pair| pair.host == port) {
            return Err(RequestError::InUse);
        }
        let streams = self.slots.len().saturating_sub(self.free.len());
        if streams.saturating_add(self.expected.len()) >= MAX_STREAMS {
            return Err(RequestError::Full);
        }
        let end = |fd: Option<OwnedFd>, direction| {
            fd.map(|fd| HostFd::new(fd, direction, self.proc_fd.as_ref()))
                .transpose()
        };
        Ok(HostEnds {
            reader: end(ends.reader, Direction::Read)?,
            writer: end(ends.writer, Direction::Write)?,
        })
    }

    fn cancel(&mut self, port: u32) {
        if self.expected.remove(&port).is_some() {
            self.tell(Event::Closed { port });
        }
        for slot in 0..self.slots.len() {
            let Some(connection) = connection(&mut self.slots, slot) else {
                continue;
            };
            let pair = connection.stream.pair();
            if pair.host != port {
                continue;
            }
            if connection.attached {
                self.owe_reset(pair);
            }
            self.remove(slot, Some(Event::Closed { port }));
        }
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.events.push_back(event);
        self.send_events();
    }

    fn send_events(&mut self) {
        let blocked_before = self.events.len() > 1;
        while let Some(event) = self.events.front() {
            match self.control.send(*event) {
                Ok(()) => {
                    self.events.pop_front();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    // The sandbox process is gone; the channel says so when it is read.
                    self.events.clear();
                    break;
                }
            }
        }
        if blocked_before || !self.events.is_empty() {
            let mut interest = EventSet::empty();
            interest.set(EventSet::OUT, !self.events.is_empty());
            interest.set(EventSet::IN, self.events.len() < MAX_EVENTS);
            let _ = self.epoll.ctl(
                ControlOperation::Modify,
                self.control.as_raw_fd(),
                EpollEvent::new(interest, CONTROL),
            );
        }
    }
}

/// Why a request of the sandbox process cannot be met.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("The port is in use")]
    InUse,
    #[error("{MAX_STREAMS} streams are the limit")]
    Full,
    #[error("The guest is gone")]
    Gone,
    #[error(transparent)]
    Descriptor(#[from] HostError),
    #[error("The descriptor cannot be waited for: {0}")]
    Watch(#[source] io::Error),
}

//! A stream together with its host descriptors and the bytes the host has not taken yet.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::host::{Direction, HostFd};
use super::stream::Stream;
use crate::guest::Segments;

/// Backlog capacity above which an emptied backlog gives its memory back, in bytes.
const KEEP: usize = 16 * 1024;

/// A host descriptor in the epoll set, edge-triggered.
#[derive(Debug)]
struct Side {
    fd: Option<HostFd>,
    epoll: Arc<Epoll>,
    token: u64,
    watched: bool,
    /// Whether the next call on it may do something.
    ready: bool,
    /// Whether the other end was seen to be closed: there is an end of the stream to be read.
    ended: bool,
}

impl Side {
    fn new(fd: HostFd, epoll: &Arc<Epoll>, interest: EventSet, token: u64) -> io::Result<Self> {
        let event = EpollEvent::new(interest | EventSet::EDGE_TRIGGERED, token);
        let watched = match epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event) {
            Ok(()) => true,
            // Regular files and the like cannot be waited for: they are always ready.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => false,
            Err(e) => return Err(e),
        };
        let epoll = Arc::clone(epoll);
        Ok(Self {
            fd: Some(fd),
            epoll,
            token,
            watched,
            ready: true,
            ended: false,
        })
    }

    /// Changes what is waited for, besides errors. An event that is due already is reported again.
    fn watch(&self, interest: EventSet) {
        if let Some(fd) = self.fd.as_ref().filter(|_| self.watched) {
            let event = EpollEvent::new(interest | EventSet::EDGE_TRIGGERED, self.token);
            let _ = self
                .epoll
                .ctl(ControlOperation::Modify, fd.as_raw_fd(), event);
        }
    }

    /// The descriptor takes no more for now. Only then is its readiness of interest: a socket
    /// reports room for more every time its peer has read something.
    fn blocked(&mut self) {
        self.ready = false;
        self.watch(EventSet::OUT);
    }

    /// The descriptor takes more.
    fn unblocked(&mut self) {
        if !self.ready {
            self.ready = true;
            self.watch(EventSet::empty());
        }
    }

    /// Takes the descriptor out of the epoll set. The sandbox process may hold copies of it, so
    /// closing ours would not.
    fn release(&mut self) -> Option<HostFd> {
        let fd = self.fd.take()?;
        if self.watched {
            let _ = self.epoll.ctl(
                ControlOperation::Delete,
                fd.as_raw_fd(),
                EpollEvent::default(),
            );
        }
        Some(fd)
    }

    fn close(mut self, direction: Direction) {
        if let Some(fd) = self.release() {
            fd.close(direction);
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.release();
    }
}

/// What came of an attempt to read from the host for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// So many bytes were read, at least one.
    Data(u32),
    /// Nothing to read now.
    Blocked,
    /// The host side ended its stream; the shutdown is owed to the guest.
    End,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: Stream,
    reader: Option<Side>,
    writer: Option<Side>,
    has_reader: bool,
    backlog: VecDeque<u8>,
    /// Whether the guest still knows the stream. Afterwards only the backlog is left to write.
    pub(super) attached: bool,
    /// Whether the connection is in the queue of those with something for the guest.
    pub(super) queued: bool,
}

impl Connection {
    /// Joins `stream` with its host descriptors, whose events get the given tokens.
    ///
    /// # Errors
    /// That of `epoll_ctl`.
    pub(super) fn new(
        stream: Stream,
        epoll: &Arc<Epoll>,
        reader: Option<(HostFd, u64)>,
        writer: Option<(HostFd, u64)>,
    ) -> io::Result<Self> {
        let side = |end: Option<(HostFd, u64)>, interest| {
            end.map(|(fd, token)| Side::new(fd, epoll, interest, token))
                .transpose()
        };
        let reader = side(reader, EventSet::IN | EventSet::READ_HANG_UP)?;
        let writer = side(writer, EventSet::empty())?;
        Ok(Self {
            stream,
            has_reader: reader.is_some(),
            reader,
            writer,
            backlog: VecDeque::new(),
            attached: true,
            queued: false,
        })
    }

    /// Whether there is something for the guest that it may be sent now.
    pub(super) fn wants_output(&self) -> bool {
        self.attached && (self.stream.owes() || self.can_fill())
    }

    fn can_fill(&self) -> bool {
        self.reader.as_ref().is_some_and(|side| side.ready) && self.stream.credit() > 0
    }

    /// Whether nothing is left to do for this connection.
    pub(super) fn is_over(&self) -> bool {
        !self.attached && self.backlog.is_empty()
    }

    /// Whether neither side of the host has any more use for the stream: the guest should be told
    /// to forget it.
    pub(super) fn is_useless(&self) -> bool {
        let ours = self.stream.ours();
        self.attached && ours.receive && (ours.send || !self.has_reader)
    }

    /// An event of the reader's descriptor.
    pub(super) fn reader_event(&mut self, events: EventSet) {
        if let Some(side) = &mut self.reader {
            side.ready = true;
            side.ended |= events.intersects(EventSet::HANG_UP | EventSet::READ_HANG_UP);
        }
    }

    /// An event of the writer's descriptor.
    pub(super) fn writer_event(&mut self, events: EventSet) {
        if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            // The reader of the pipe or the peer of the socket is gone: nobody takes these bytes.
            self.lose_writer();
            return;
        }
        if let Some(side) = &mut self.writer {
            side.unblocked();
        }
        self.flush();
    }

    /// Reads up to the credit of the stream into `room`, straight into guest memory.
    pub(super) fn fill(&mut self, room: &mut Segments<'_>) -> Fill {
        let credit = self.stream.credit();
        let Some(side) = self.reader.as_mut().filter(|side| side.ready && credit > 0) else {
            return Fill::Blocked;
        };
        let Some(fd) = &side.fd else {
            return Fill::Blocked;
        };
        drop(room.split_off(usize::try_from(credit).unwrap_or(usize::MAX)));
        if room.is_empty() {
            return Fill::Blocked;
        }
        let mut vectors = Vec::with_capacity(4);
        room.vectors(&mut vectors);
        // SAFETY: the vectors were made from checked slices of guest memory, which `room` keeps
        // mapped; the guest may write there meanwhile, and no reference to it exists.
        match unsafe { fd.read(&mut vectors) } {
            Ok(0) => {}
            Ok(count) => {
                // A stream that gives less than asked for has no more now; to be told so by
                // another call costs as much as the first.
                side.ready = side.ended || count >= room.len() || !fd.is_stream();
                // Never more than the vectors hold, which is at most the credit.
                return Fill::Data(u32::try_from(count).unwrap_or(credit));
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                side.ready = false;
                return Fill::Blocked;
            }
            Err(e) => {
                log::debug!(
                    "vsock: reading for port {} ends: {e}",
                    self.stream.pair().host
                );
            }
        }
        self.reader = None;
        self.stream.close_send();
        Fill::End
    }

    /// Writes the payload of a packet that [`Stream::receive`] said to deliver: straight from
    /// guest memory when nothing waits before it, else into the backlog, where it has room.
    pub(super) fn deliver(&mut self, payload: &Segments<'_>) {
        let Some(side) = &mut self.writer else {
            self.lose_writer();
            return;
        };
        let mut vectors = Vec::with_capacity(4);
        let mut done = 0;
        if self.backlog.is_empty()
            && side.ready
            && let Some(fd) = &side.fd
        {
            payload.vectors(&mut vectors);
            // SAFETY: the vectors were made from checked slices of guest memory, which `payload`
            // keeps mapped; the guest may write there meanwhile, and no reference to it exists.
            match unsafe { fd.write(&mut vectors) } {
                Ok(count) => done = count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => side.blocked(),
                Err(e) => {
                    log::debug!(
                        "vsock: writing for port {} ends: {e}",
                        self.stream.pair().host
                    );
                    self.lose_writer();
                    return;
                }
            }
        }
        self.stream.forward(u32::try_from(done).unwrap_or(u32::MAX));
        if done < payload.len() {
            payload.append_to(done, &mut self.backlog);
            self.flush();
        }
    }

    /// Writes as much of the backlog as the host takes; when the guest has finished and all is
    /// written, passes the end of the stream on.
    pub(super) fn flush(&mut self) {
        while let Some(side) = self.writer.as_mut().filter(|side| side.ready) {
            let Some(fd) = &side.fd else { break };
            if self.backlog.is_empty() {
                break;
            }
            let (front, back) = self.backlog.as_slices();
            let mut vectors = [front, back].map(|part| libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            });
            // SAFETY: the vectors describe the two halves of the backlog, which is ours, is not
            // changed during the call, and is only read by it.
            match unsafe { fd.write(&mut vectors) } {
                Ok(count) => {
                    self.backlog.drain(..count.min(self.backlog.len()));
                    self.stream
                        .forward(u32::try_from(count).unwrap_or(u32::MAX));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => side.blocked(),
                Err(e) => {
                    log::debug!(
                        "vsock: writing for port {} ends: {e}",
                        self.stream.pair().host
                    );
                    self.lose_writer();
                }
            }
        }
        if self.backlog.is_empty() {
            if self.backlog.capacity() > KEEP {
                self.backlog = VecDeque::new();
            }
            if (self.stream.theirs().send || !self.attached)
                && let Some(side) = self.writer.take()
            {
                side.close(Direction::Write);
            }
        }
    }

    /// The host takes no more bytes of the guest.
    fn lose_writer(&mut self) {
        self.writer = None;
        self.backlog = VecDeque::new();
        if !self.stream.theirs().send {
            self.stream.close_receive();
        }
    }

    /// The guest changed its mind about the directions it uses.
    pub(super) fn guest_shutdown(&mut self) {
        if self.stream.theirs().receive
            && let Some(side) = self.reader.take()
        {
            side.close(Direction::Read);
        }
        if self.stream.theirs().send {
            self.flush();
        }
    }

    /// The guest forgot the stream: what it sent before is still written.
    pub(super) fn detach(&mut self) {
        self.attached = false;
        if let Some(side) = self.reader.take() {
            side.close(Direction::Read);
        }
        self.flush();
    }
}

//! The devices' threads: one for each device, started with the process or while the machine runs, and what
//! the first thread learns of their end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::block::{Block, Medium};
use crate::net::Net;
use crate::net::frames::Tap;
use crate::process::DeviceError;
use crate::session::{Device, Session};
use crate::tally::Tally;
use crate::vsock::control::{Plug, Plugged, Slot};

/// Stack of each device's thread, in bytes. Requests are served one after the other, and the deepest
/// path is a directory listing.
const STACK: usize = 256 * 1024;

/// A device that is served: its name, and what it counts.
pub(crate) type Served = (String, Arc<Tally>);

/// Starts devices, each on a thread of its own. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    failure: Arc<Mutex<Option<DeviceError>>>,
    stop: Arc<EventFd>,
}

fn setup(what: &'static str) -> impl Fn(io::Error) -> DeviceError {
    move |source| DeviceError::Setup { what, source }
}

impl Workers {
    pub(crate) fn new() -> Result<Self, DeviceError> {
        Ok(Self {
            failure: Arc::default(),
            stop: Arc::new(event()?),
        })
    }

    /// Becomes readable when all devices are to stop.
    pub(crate) fn stop(&self) -> &EventFd {
        &self.stop
    }

    /// Takes how the first device that failed did so, and stops all.
    pub(crate) fn end(&self) -> Option<DeviceError> {
        // Before the other threads are told to stop, or their silence would look like an error.
        let failure = self
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let _ = self.stop.write(1);
        failure
    }

    /// Serves `device` to whoever connects to `socket`, until `stop` becomes readable, after `first` on its
    /// thread.
    fn serve_until<D: Device + 'static>(
        &self,
        stop: Arc<EventFd>,
        (name, socket, device): (String, UnixListener, D),
        first: impl FnOnce() -> Result<(), DeviceError> + Send + 'static,
    ) -> Result<Served, DeviceError> {
        let tally = Arc::clone(device.tally());
        let mut session = Session::new(socket, device, &*stop)?;
        // Also reports a panic, when it is dropped by one.
        let report = Report(self.clone());
        std::thread::Builder::new()
            .name(name.clone())
            .stack_size(STACK)
            .spawn(move || {
                let (report, _stop) = (report, stop);
                let served = first().and_then(|()| Ok(session.run()?));
                if let Err(e) = served {
                    report.0.fail(e);
                }
            })
            .map_err(setup("start a device's thread"))?;
        Ok((name, tally))
    }

    /// Serves `device` to whoever connects to `socket`, after `first` on its thread, as long as the process
    /// lives.
    pub(crate) fn serve_after<D: Device + 'static>(
        &self,
        name: String,
        socket: UnixListener,
        device: D,
        first: impl FnOnce() -> Result<(), DeviceError> + Send + 'static,
    ) -> Result<Served, DeviceError> {
        self.serve_until(Arc::clone(&self.stop), (name, socket, device), first)
    }

    pub(crate) fn serve<D: Device + 'static>(
        &self,
        name: String,
        socket: UnixListener,
        device: D,
    ) -> Result<Served, DeviceError> {
        self.serve_after(name, socket, device, || Ok(()))
    }

    fn fail(&self, error: DeviceError) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        let _ = self.stop.write(1);
    }
}

/// A network card for the frames of `tap`.
pub(crate) fn net(tap: Tap, mac: [u8; 6], mtu: Option<u16>) -> Result<Net<Tap>, DeviceError> {
    Net::new(tap, mac, mtu).map_err(setup("prepare the tap of a network card"))
}

/// A disk of what is in `file`.
pub(crate) fn block(file: File, read_only: bool, serial: &str) -> Result<Block, DeviceError> {
    let medium = Medium::new(file, read_only, serial);
    Ok(Block::new(
        medium.map_err(setup("find out the size of a disk"))?,
    ))
}

/// Serves what comes while the machine runs, and stops it when it is to go.
#[derive(Debug)]
pub(crate) struct Comers {
    workers: Workers,
    stops: BTreeMap<Slot, Arc<EventFd>>,
}

impl Comers {
    pub(crate) fn new(workers: Workers) -> Self {
        let stops = BTreeMap::new();
        Self { workers, stops }
    }
}

impl Plug for Comers {
    fn plug(
        &mut self,
        device: Plugged,
        socket: OwnedFd,
        medium: OwnedFd,
    ) -> Result<Served, DeviceError> {
        let slot = device.slot();
        let (name, socket) = (slot.to_string(), UnixListener::from(socket));
        let stop = Arc::new(event()?);
        let until = Arc::clone(&stop);
        let workers = &self.workers;
        let served = match device {
            Plugged::Net { mac, mtu, .. } => {
                let net = net(Tap::new(medium), mac, mtu)?;
                workers.serve_until(until, (name, socket, net), || Ok(()))
            }
            Plugged::Block { number, read_only } => {
                let block = block(medium.into(), read_only, &crate::block::serial(number))?;
                workers.serve_until(until, (name, socket, block), || Ok(()))
            }
        }?;
        self.stops.insert(slot, stop);
        Ok(served)
    }

    fn unplug(&mut self, slot: Slot) {
        if let Some(stop) = self.stops.remove(&slot) {
            let _ = stop.write(1);
        }
    }
}

fn event() -> Result<EventFd, DeviceError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(setup("make an event descriptor"))
}

/// How a device's thread tells the first one of its end, if that was no good one: a guest whose
/// requests are not answered any more must not wait for ever.
struct Report(Workers);

impl Drop for Report {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(DeviceError::Crashed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    fn disk(number: u32) -> Plugged {
        Plugged::Block {
            number,
            read_only: true,
        }
    }

    #[test]
    fn device_unplugged_hangs_up_and_others_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut comers = Comers::new(Workers::new().unwrap());
        let mut streams = Vec::new();
        for number in [3, 4] {
            let path = dir.path().join(number.to_string());
            let socket = UnixListener::bind(&path).unwrap();
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 20).unwrap();
            let (name, tally) = comers
                .plug(disk(number), socket.into(), file.into())
                .unwrap();
            assert_eq!(name, format!("block{number}"));
            assert_eq!(tally.work("").requests, 0);
            streams.push(UnixStream::connect(path).unwrap());
        }

        comers.unplug(Slot::Block(3));
        comers.unplug(Slot::Net(4));

        let read = |stream: &mut UnixStream, patience| {
            stream.set_read_timeout(Some(patience)).unwrap();
            stream.read(&mut [0])
        };
        match read(&mut streams[0], Duration::from_secs(60)) {
            Ok(got) => assert_eq!(got, 0),
            // The connection had not been accepted yet.
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::ConnectionReset),
        }
        let waiting = read(&mut streams[1], Duration::from_millis(10)).unwrap_err();
        assert_eq!(waiting.kind(), io::ErrorKind::WouldBlock);
        assert!(comers.workers.end().is_none());
    }

    #[test]
    fn device_that_cannot_be_served_closes_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket = UnixListener::bind(&path).unwrap();
        let mut comers = Comers::new(Workers::new().unwrap());
        // A pipe has no size.
        let (medium, _other) = rustix::pipe::pipe().unwrap();

        let refused = comers.plug(disk(0), socket.into(), medium);

        assert!(matches!(refused, Err(DeviceError::Setup { .. })));
        assert!(UnixStream::connect(path).is_err());
    }
}

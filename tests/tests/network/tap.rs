//! A tap as the container's interface: a program of the engine's has its other end, as slirp4netns and
//! pasta have.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bulkhead_tests::wait;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::wire::Wire;

/// The program at the other end of `eth0`: it passes frames to a port of the bridge, and back.
#[derive(Debug)]
pub struct Program {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Program {
    /// Makes the tap, up and without addresses.
    pub fn start(wire: &Wire) -> Self {
        let (inside, around) = (tap(&wire.inner, "eth0"), tap(&wire.outer, "program"));
        wire.around("link set program master br0 up");
        wire.inside("link set eth0 up");
        let stop = Arc::new(AtomicBool::new(false));
        let pass = |from: &File, to: &File| {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let stop = stop.clone();
            thread::spawn(move || pass(from, to, &stop))
        };
        let threads = vec![pass(&inside, &around), pass(&around, &inside)];
        Self { stop, threads }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| {
            // One that panicked has said so.
            let _ = thread.join();
        });
    }
}

/// Until told to stop, or the interface is gone.
fn pass(mut from: File, mut to: File, stop: &AtomicBool) {
    let mut frame = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        if wait::readable(from.as_fd(), Instant::now() + Duration::from_millis(50)) {
            let Ok(len) = from.read(&mut frame) else {
                return;
            };
            // A port that is not up yet takes nothing: lost, as on any wire.
            let _ = to.write_all(&frame[..len]);
        }
    }
}

/// Makes a tap in a namespace; frames come out of the file and go into it.
fn tap(namespace: &str, name: &str) -> File {
    let namespace = File::open(format!("/run/netns/{namespace}")).unwrap();
    let make = || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind).unwrap();
        let mut options = File::options();
        let file = options.read(true).write(true).open("/dev/net/tun").unwrap();
        // SAFETY: an interface request of all zeroes is a valid value of this plain C structure.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_flags =
            libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI).unwrap();
        // SAFETY: an open descriptor, and a request that lives across the call.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
        assert_eq!(made, 0, "{name}: {}", std::io::Error::last_os_error());
        file
    };
    // A thread: what it moved into is its alone.
    thread::scope(|scope| scope.spawn(make).join().unwrap())
}

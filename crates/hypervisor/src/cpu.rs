//! Sharing out host processors among machines that each stay on one.
//!
//! A machine takes the lowest free seat; seats are counted across processors, so the processor
//! with the fewest machines comes first. A seat is a unix socket bound to an abstract name: the
//! kernel gives a name to one holder at a time and takes it back when that one ends, in whatever
//! way. No file, no lock to clean up, no daemon.

use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::thread::CpuSet;

/// More machines on one processor than this are not told apart.
const SEATS: usize = 64;

/// A processor, counted as in use until this is dropped.
#[derive(Debug)]
pub struct CpuLease {
    cpu: usize,
    /// Held for its name alone.
    _seat: Option<OwnedFd>,
}

impl CpuLease {
    /// The number of the processor.
    pub fn cpu(&self) -> usize {
        self.cpu
    }

    /// The given processor, not counted.
    pub(crate) fn given(cpu: usize) -> Self {
        Self { cpu, _seat: None }
    }

    /// The processor with the fewest leases among those this process may run on; none if that
    /// cannot be told.
    ///
    /// For a machine of one processor it pays to take the lease before the launch, to name it in
    /// [`Machine::cpu`](crate::Machine::cpu), and to pin the device process there, too: guest and
    /// device take turns, and a wake-up across idle processors costs tens of microseconds.
    pub fn take() -> Option<Self> {
        Self::take_among(&allowed(), "bulkhead")
    }

    fn take_among(cpus: &[usize], domain: &str) -> Option<Self> {
        for seat in 0..SEATS {
            for cpu in cpus {
                let name = format!("{domain}/cpu{cpu}/{seat}");
                let bound = SocketAddr::from_abstract_name(name.as_bytes())
                    .and_then(|address| UnixDatagram::bind_addr(&address));
                if let Ok(socket) = bound {
                    return Some(Self {
                        cpu: *cpu,
                        _seat: Some(socket.into()),
                    });
                }
            }
        }
        // All seats taken, possibly by someone who only wants to annoy: any processor will do.
        cpus.first().copied().map(Self::given)
    }
}

fn allowed() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else {
        return Vec::new();
    };
    (0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_taken_while_held_spread_over_processors() {
        let domain = format!("test-spread-{}", std::process::id());
        let leases: Vec<_> = (0..4)
            .map(|_| CpuLease::take_among(&[3, 5], &domain).unwrap())
            .collect();
        let cpus: Vec<_> = leases.iter().map(CpuLease::cpu).collect();
        assert_eq!(cpus, [3, 5, 3, 5]);
    }

    #[test]
    fn lease_dropped_is_the_next_one_taken() {
        let domain = format!("test-drop-{}", std::process::id());
        let first = CpuLease::take_among(&[0, 1], &domain).unwrap();
        let _second = CpuLease::take_among(&[0, 1], &domain).unwrap();
        drop(first);
        assert_eq!(CpuLease::take_among(&[0, 1], &domain).unwrap().cpu(), 0);
    }

    #[test]
    fn lease_without_processors_is_none() {
        assert!(CpuLease::take_among(&[], "test-none").is_none());
    }
}

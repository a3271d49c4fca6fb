//! What a device has done, counted where it is done and told when the sandbox process asks.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// The counters of one device. They are of no use but to be shown.
#[derive(Debug, Default)]
pub struct Tally {
    requests: AtomicU64,
    from_guest: AtomicU64,
    to_guest: AtomicU64,
    stalls: AtomicU64,
}

/// What a device has done since the machine's start.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Work {
    /// Which device: `fs`, `vsock`, `entropy`, `balloon`, `net0` …, `block0` ….
    pub device: String,
    /// Requests, packets and frames that have passed its rings, both ways.
    pub requests: u64,
    /// Bytes taken from the guest, with the headers of its requests.
    pub from_guest_bytes: u64,
    /// Bytes given to the guest, likewise.
    pub to_guest_bytes: u64,
    /// How often one side had something and the other had no room for it.
    pub stalls: u64,
}

impl Tally {
    /// One more request is done, which took so many bytes from the guest and gave it so many.
    pub(crate) fn done(&self, from_guest: usize, to_guest: u32) {
        add(&self.requests, 1);
        add(&self.from_guest, u64::try_from(from_guest).unwrap_or(0));
        add(&self.to_guest, u64::from(to_guest));
    }

    /// One side had to wait for the other.
    pub(crate) fn stalled(&self) {
        add(&self.stalls, 1);
    }

    /// What they count now.
    #[must_use]
    pub fn work(&self, device: &str) -> Work {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Work {
            device: device.to_owned(),
            requests: read(&self.requests),
            from_guest_bytes: read(&self.from_guest),
            to_guest_bytes: read(&self.to_guest),
            stalls: read(&self.stalls),
        }
    }
}

// A guest decides what is added, and may make it wrap around.
fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// The counters of all devices of a process, by name.
#[derive(Debug, Default)]
pub struct Tallies(Vec<(String, Arc<Tally>)>);

impl Tallies {
    /// Adds those of a device. Those of devices that are no more go.
    pub fn add(&mut self, (device, tally): (String, Arc<Tally>)) {
        self.0.retain(|(_, tally)| Arc::strong_count(tally) > 1);
        self.0.push((device, tally));
    }

    /// Writes them to `to` as a JSON array of [`Work`]. Does not block if `to` is an empty pipe: they
    /// are far shorter than that holds.
    ///
    /// # Errors
    /// That of the write.
    pub(crate) fn tell(&self, to: OwnedFd) -> io::Result<()> {
        let each = self.0.iter().map(|(device, tally)| tally.work(device));
        let json = serde_json::to_vec(&each.collect::<Vec<_>>())?;
        File::from(to).write_all(&json)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn tallies_told_are_what_was_counted() {
        let tally = Arc::new(Tally::default());
        let mut tallies = Tallies::default();
        tallies.add(("gone0".to_owned(), Arc::default()));
        tallies.add(("net0".to_owned(), Arc::clone(&tally)));
        tally.done(3, 0);
        tally.done(0, 5);
        tally.stalled();
        let (reader, writer) = rustix::pipe::pipe().unwrap();

        tallies.tell(writer).unwrap();

        let mut json = String::new();
        File::from(reader).read_to_string(&mut json).unwrap();
        let told: Vec<Work> = serde_json::from_str(&json).unwrap();
        let expected = Work {
            device: "net0".to_owned(),
            requests: 2,
            from_guest_bytes: 3,
            to_guest_bytes: 5,
            stalls: 1,
        };
        assert_eq!(told, [expected]);
    }
}

//! The rate of the host's time stamp counter, measured against its clock.
//!
//! The kernel knows the rate, but tells it to nobody on a host that is itself a virtual machine.

use std::time::{Duration, Instant};

/// Long enough for an error of a few millionths, as that of an ordinary crystal.
const SPAN: Duration = Duration::from_millis(10);

/// How often the two clocks are read for one comparison; the quickest reading counts.
const READINGS: usize = 8;

/// A measurement that has begun. Other work can be done meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measurement {
    began: Option<Reading>,
}

impl Measurement {
    /// Begins.
    pub(super) fn begin() -> Self {
        Self { began: read() }
    }

    /// The rate in kHz; none where there is no such counter. Waits if less than 10 ms have passed.
    pub(super) fn khz(self) -> Option<u64> {
        let began = self.began?;
        std::thread::sleep(SPAN.saturating_sub(began.time.elapsed()));
        let ended = read()?;
        let counted = u128::from(ended.count.checked_sub(began.count)?);
        let nanoseconds = ended.time.duration_since(began.time).as_nanos();
        let khz = counted.checked_mul(1_000_000)?.checked_div(nanoseconds)?;
        u64::try_from(khz).ok().filter(|khz| *khz > 0)
    }
}

/// Both clocks at (nearly) one moment.
#[derive(Clone, Copy, Debug)]
struct Reading {
    count: u64,
    time: Instant,
}

fn read() -> Option<Reading> {
    (0..READINGS)
        .filter_map(|_| {
            let before = count()?;
            let time = Instant::now();
            let took = count()?.checked_sub(before)?;
            Some((
                took,
                Reading {
                    count: before.checked_add(took / 2)?,
                    time,
                },
            ))
        })
        .min_by_key(|(took, _)| *took)
        .map(|(_, reading)| reading)
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::unnecessary_wraps, reason = "other architectures have none")]
fn count() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction.
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn count() -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn rate_measured_twice_agrees_within_a_thousandth() {
        let rates = [(); 2].map(|()| Measurement::begin().khz().unwrap());
        assert!(rates[0].abs_diff(rates[1]) < rates[0] / 1000, "{rates:?}");
    }
}

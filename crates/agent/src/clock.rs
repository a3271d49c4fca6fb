//! Times and the time line of the agent's own steps.
//!
//! Reading a clock is a system call in a user-mode-linux guest: a lap per step worth knowing, not
//! one per function.

use bulkhead_agent_api::messages::Span;
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of the guest's `CLOCK_MONOTONIC`.
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// Nanoseconds of the guest's `CLOCK_REALTIME` since the epoch; 0 before it.
pub fn realtime_ns() -> u64 {
    nanoseconds(ClockId::Realtime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let fraction = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(fraction)
}

/// Steps that follow one another without a gap.
#[derive(Debug)]
pub struct Timeline {
    spans: Vec<Span>,
    last_ns: u64,
}

impl Timeline {
    /// Starts the first step now.
    pub fn start() -> Self {
        Self {
            spans: Vec::new(),
            last_ns: monotonic_ns(),
        }
    }

    /// Ends the current step, calls it `name` and starts the next one.
    pub fn lap(&mut self, name: &str) {
        let now = monotonic_ns();
        let mut span = Span::new();
        span.name = name.to_owned();
        span.start_ns = self.last_ns;
        span.end_ns = now;
        self.spans.push(span);
        self.last_ns = now;
    }

    /// The steps so far.
    pub fn into_spans(self) -> Vec<Span> {
        self.spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_follow_one_another_without_gap() {
        let mut timeline = Timeline::start();
        timeline.lap("first");
        timeline.lap("second");
        let spans = timeline.into_spans();
        assert_eq!(spans[0].name, "first");
        assert_eq!(spans[1].name, "second");
        assert_eq!(spans[0].end_ns, spans[1].start_ns);
        assert!(spans[0].start_ns > 0 && spans[1].end_ns >= spans[1].start_ns);
    }

    #[test]
    fn realtime_is_after_the_year_2020() {
        assert!(realtime_ns() > 1_577_836_800_000_000_000);
    }
}

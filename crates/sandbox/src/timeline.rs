//! Where the time of a start went: spans of host, VMM, kernel and agent on the host's
//! `CLOCK_MONOTONIC`.

use bulkhead_hypervisor::MachineStatistics;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Who spent the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Actor {
    /// The command and the sandbox process.
    Host,
    /// The device process.
    Device,
    /// The hypervisor process up to the kernel's first instruction, where that can be told.
    Vmm,
    /// The guest's kernel.
    Kernel,
    /// The agent.
    Agent,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// What was done.
    pub name: String,
    /// Who did it.
    pub actor: Actor,
    /// Nanoseconds of the host's `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// Same clock; equal to the start for a mere event.
    pub end_ns: u64,
}

/// The spans of one start, in the order they were recorded.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Timeline {
    /// When the command that asked for the start began (host's `CLOCK_MONOTONIC`, nanoseconds).
    pub origin_ns: u64,
    /// What happened.
    pub spans: Vec<Span>,
    /// What the machine had cost the host when the agent called home, where the hypervisor counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<MachineStatistics>,
}

/// Bound on what a guest may add.
const MAX_SPANS: usize = 256;

/// The host's `CLOCK_MONOTONIC`, nanoseconds.
#[must_use]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

impl Timeline {
    /// A timeline that begins at `origin_ns`.
    #[must_use]
    pub fn new(origin_ns: u64) -> Self {
        Self {
            origin_ns,
            spans: Vec::new(),
            cost: None,
        }
    }

    /// Records a step from `start_ns` until now.
    pub fn since(&mut self, actor: Actor, name: &str, start_ns: u64) {
        self.add(actor, name, start_ns, now_ns());
    }

    /// Records a step. Beyond 256 spans further ones are dropped: part of them come from the guest.
    pub fn add(&mut self, actor: Actor, name: &str, start_ns: u64, end_ns: u64) {
        if self.spans.len() < MAX_SPANS {
            let name = name.chars().take(80).collect();
            self.spans.push(Span {
                name,
                actor,
                start_ns,
                end_ns: end_ns.max(start_ns),
            });
        }
    }

    /// End of the last step, nanoseconds after the origin.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        let end = self
            .spans
            .iter()
            .map(|span| span.end_ns)
            .max()
            .unwrap_or(self.origin_ns);
        end.saturating_sub(self.origin_ns)
    }

    /// A table for people: start, length, actor, step; sorted by start.
    #[must_use]
    pub fn render(&self) -> String {
        let mut spans: Vec<&Span> = self.spans.iter().collect();
        spans.sort_by_key(|span| (span.start_ns, span.end_ns));
        let mut out = String::from("  at ms    took ms  who     what\n");
        for span in spans {
            let at = span.start_ns.saturating_sub(self.origin_ns);
            let took = span.end_ns.saturating_sub(span.start_ns);
            let actor = format!("{:?}", span.actor).to_lowercase();
            out.push_str(&format!(
                "{:>7}  {:>9}  {actor:<6}  {}\n",
                millis(at),
                millis(took),
                printable(&span.name)
            ));
        }
        out
    }
}

/// Milliseconds with two decimals.
#[must_use]
pub fn millis(ns: u64) -> String {
    format!("{}.{:02}", ns / 1_000_000, ns % 1_000_000 / 10_000)
}

/// Text from a guest, safe for a terminal: control characters become `\u{FFFD}`.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{FFFD}'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_more_than_the_bound_keeps_the_first() {
        let mut timeline = Timeline::new(0);
        for n in 0..1000 {
            timeline.add(Actor::Agent, &format!("step {n}"), n, n);
        }
        assert_eq!(timeline.spans.len(), MAX_SPANS);
        assert_eq!(timeline.spans[0].name, "step 0");
    }

    #[test]
    fn render_unordered_spans_sorted_by_start() {
        let mut timeline = Timeline::new(1_000_000);
        timeline.add(Actor::Kernel, "boot", 3_000_000, 33_500_000);
        timeline.add(Actor::Host, "plan", 2_000_000, 3_000_000);
        let text = timeline.render();
        assert!(text.find("plan").unwrap() < text.find("boot").unwrap());
        assert!(text.contains("30.50"));
        assert_eq!(timeline.total_ns(), 32_500_000);
    }

    #[test]
    fn printable_escape_sequence_neutralised() {
        assert_eq!(printable("a\x1b[2Jb"), "a\u{FFFD}[2Jb");
    }
}

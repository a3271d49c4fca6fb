//! What a control group says about its processes.

use std::io;

use super::Cgroup;
use crate::container::{ContainerError, Stats, failure::During};

impl Cgroup {
    /// Usage and limits. A controller that the kernel lacks counts nothing.
    pub fn stats(&self) -> Result<Stats, ContainerError> {
        self.read_stats()
            .while_trying(|| "read the container's usage".to_owned())
    }

    fn read_stats(&self) -> io::Result<Stats> {
        let cpu = self.read_if_there("cpu.stat")?;
        let memory = self.read_if_there("memory.events")?;
        let (io_read_bytes, io_write_bytes) = io_bytes(&self.read_if_there("io.stat")?);
        Ok(Stats {
            cpu_usage_us: value(&cpu, "usage_usec"),
            cpu_user_us: value(&cpu, "user_usec"),
            cpu_system_us: value(&cpu, "system_usec"),
            cpu_throttled_us: value(&cpu, "throttled_usec"),
            memory_current_bytes: number(&self.read_if_there("memory.current")?).unwrap_or(0),
            memory_limit_bytes: number(&self.read_if_there("memory.max")?),
            memory_peak_bytes: number(&self.read_if_there("memory.peak")?).unwrap_or(0),
            oom_kills: value(&memory, "oom_kill"),
            pids_current: number(&self.read_if_there("pids.current")?).unwrap_or(0),
            pids_limit: number(&self.read_if_there("pids.max")?),
            io_read_bytes,
            io_write_bytes,
            cpu_periods: value(&cpu, "nr_periods"),
            cpu_throttled_periods: value(&cpu, "nr_throttled"),
            memory_limit_hits: value(&memory, "max"),
            oom_events: value(&memory, "oom"),
            memory_stat: pairs(&self.read_if_there("memory.stat")?),
            swap_current_bytes: number(&self.read_if_there("memory.swap.current")?).unwrap_or(0),
            swap_limit_bytes: number(&self.read_if_there("memory.swap.max")?),
        })
    }

    /// How many processes were killed for want of memory.
    pub fn oom_kills(&self) -> Result<u64, ContainerError> {
        self.read_if_there("memory.events")
            .map(|text| value(&text, "oom_kill"))
            .while_trying(|| "read the container's memory events".to_owned())
    }

    fn read_if_there(&self, file: &str) -> io::Result<String> {
        match self.read(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            result => result,
        }
    }
}

/// A single number; "max" is none.
fn number(text: &str) -> Option<u64> {
    text.trim_end().parse().ok()
}

/// The value of a line `key value`.
fn value(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
        .unwrap_or(0)
}

/// All lines `key value`.
fn pairs(text: &str) -> Vec<(String, u64)> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs
        .filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?)))
        .collect()
}

/// `rbytes` and `wbytes`, summed over the devices.
fn io_bytes(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        text.split_ascii_whitespace()
            .filter_map(|word| {
                word.strip_prefix(key)?
                    .strip_prefix('=')?
                    .parse::<u64>()
                    .ok()
            })
            .fold(0, u64::saturating_add)
    };
    (sum("rbytes"), sum("wbytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_that_begins_another_key_is_not_taken_for_it() {
        let text = "low 1\noom 2\noom_kill 3\noom_group_kill 4\n";

        assert_eq!(value(text, "oom_kill"), 3);
        assert_eq!(value(text, "oom"), 2);
        assert_eq!(value(text, "kill"), 0);
    }

    #[test]
    fn io_of_several_devices_is_summed() {
        let text = "8:0 rbytes=10 wbytes=1 rios=2\n254:0 rbytes=5 wbytes=7 dbytes=9\n";

        assert_eq!(io_bytes(text), (15, 8));
    }

    #[test]
    fn limit_max_is_no_limit() {
        assert_eq!(number("max\n"), None);
        assert_eq!(number("4096\n"), Some(4096));
    }
}

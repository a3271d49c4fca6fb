//! Why a container or its VM ended other than by itself: cause, evidence, what to do.

use std::fs;
use std::io;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::paths::Paths;
use crate::timeline::{Timeline, printable};

/// How many records of failed starts are kept below one root.
pub const MAX_RECORDS: usize = 16;

/// Console lines quoted as evidence.
const CONSOLE_LINES: usize = 12;

/// One failure, as `bulkhead why` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What happened, one line.
    pub cause: String,
    /// What shows it: exit statuses, the guest's last console lines.
    pub evidence: Vec<String>,
    /// What the user can do.
    pub fix: String,
}

/// What is kept of a start that failed, after everything else of it was removed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The container's name.
    pub id: String,
    /// What went wrong.
    pub failure: Failure,
    /// Driver and kernel, as far as they had been chosen.
    pub hypervisor: String,
    /// See [`crate::state::State::kernel`].
    pub kernel: String,
    /// The steps until then.
    pub timeline: Timeline,
}

/// How one of the jailed processes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Exit code.
    Exited(i32),
    /// Signal number.
    Signaled(i32),
}

impl End {
    fn describe(self) -> String {
        match self {
            Self::Exited(code) => format!("exited with status {code}"),
            Self::Signaled(number) => match nix::sys::signal::Signal::try_from(number) {
                Ok(signal) => format!("was killed by {}", signal.as_str()),
                Err(_) => format!("was killed by signal {number}"),
            },
        }
    }
}

/// Which process of a VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// UML kernel or QEMU.
    Hypervisor,
    /// The device process.
    Device,
}

const SIGSYS: i32 = 31;

/// Tells from the end of a process and the guest's console what went wrong.
#[must_use]
pub fn diagnose(part: Part, end: End, console: &str, log: &str) -> Failure {
    let mut evidence = vec![match part {
        Part::Hypervisor => format!("the hypervisor process {}", end.describe()),
        Part::Device => format!("the device process {}", end.describe()),
    }];
    let panic = console
        .lines()
        .rev()
        .find(|line| line.contains("Kernel panic - not syncing"));
    let agent = console
        .lines()
        .rev()
        .find(|line| line.contains("bulkhead-agent:"));
    let (cause, fix) = if end == End::Signaled(SIGSYS) {
        (
            "A jailed process made a system call its seccomp filter forbids and was killed".into(),
            "If the guest is trusted this is a defect of Bulkhead: report it with the evidence; \
             otherwise it may be an attempted break-out",
        )
    } else if let Some(line) = panic {
        let text = line.split("not syncing:").nth(1).unwrap_or(line).trim();
        if text.contains("Attempted to kill init") {
            (
                format!("The guest's agent (PID 1) died: {}", printable(text)),
                "Look at the console lines; report it if nothing in the container explains it",
            )
        } else if text.contains("memory") {
            (
                format!("The guest ran out of memory: {}", printable(text)),
                "Give it more with --memory, or `memory_mib` in /etc/bulkhead/config.toml",
            )
        } else {
            (
                format!("The guest's kernel panicked: {}", printable(text)),
                "Look at the console lines; another installed kernel can be chosen with --kernel",
            )
        }
    } else if let (Part::Hypervisor, Some(line)) = (part, agent) {
        let text = line.split("bulkhead-agent:").nth(1).unwrap_or(line).trim();
        (
            format!("The guest's agent gave up: {}", printable(text)),
            "Look at the console lines; `bulkhead doctor` checks the kernel and the host",
        )
    } else if log.contains("The guest's kernel panicked") {
        (
            "The guest's kernel panicked, and its console does not say why".into(),
            "Look at the registers in the log lines; another installed kernel can be chosen with \
             --kernel",
        )
    } else {
        match (part, end) {
            (Part::Hypervisor, End::Exited(0)) => (
                "The guest powered off before the container ended".into(),
                "Look at the console lines",
            ),
            (Part::Hypervisor, _) => (
                format!("The hypervisor process {}", end.describe()),
                "If nobody killed it: `bulkhead doctor` checks the host; `dmesg` tells of the \
                 host's out-of-memory killer",
            ),
            (Part::Device, _) => (
                format!("The device process {}", end.describe()),
                "If nobody killed it: the messages above name the reason; `dmesg` tells of the \
                 host's out-of-memory killer",
            ),
        }
    };
    evidence.extend(tail(log, 4).map(|line| format!("log: {line}")));
    evidence.extend(tail(console, CONSOLE_LINES).map(|line| format!("console: {line}")));
    Failure {
        cause,
        evidence,
        fix: fix.into(),
    }
}

/// The last `count` non-empty lines, safe to print.
pub fn tail(text: &str, count: usize) -> impl Iterator<Item = String> + '_ {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let skip = lines.len().saturating_sub(count);
    lines
        .into_iter()
        .skip(skip)
        .map(|line| printable(line.trim_end()))
}

impl Record {
    /// Keeps this record, removing the oldest beyond [`MAX_RECORDS`].
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn save(&self, paths: &Paths) -> io::Result<()> {
        fs::create_dir_all(paths.failures())?;
        let mut files: Vec<_> = fs::read_dir(paths.failures())?
            .flatten()
            .map(|entry| {
                let time = entry.metadata().and_then(|data| data.modified());
                (time.unwrap_or(SystemTime::UNIX_EPOCH), entry.path())
            })
            .collect();
        files.sort();
        let excess = (files.len() + 1).saturating_sub(MAX_RECORDS);
        for (_, path) in files.into_iter().take(excess) {
            fs::remove_file(path)?;
        }
        fs::write(paths.failure(), serde_json::to_vec(self)?)
    }

    /// The record of a failed start, if one is kept.
    #[must_use]
    pub fn load(paths: &Paths) -> Option<Self> {
        serde_json::from_slice(&fs::read(paths.failure()).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diagnose_kernel_panic_names_the_panic() {
        let console = "boot\n[ 0.1] Kernel panic - not syncing: VFS: no root\n[ 0.1] more\n";
        let failure = diagnose(Part::Hypervisor, End::Exited(1), console, "");
        assert_eq!(failure.cause, "The guest's kernel panicked: VFS: no root");
        assert!(failure.evidence.iter().any(|line| line.contains("more")));
    }

    #[test]
    fn diagnose_panic_that_only_the_machine_tells_of_is_a_panic() {
        let log = "bulkhead vmm: The guest's kernel panicked on processor 0; its last console \
                   lines say why\nregisters: rip=0x1";
        let failure = diagnose(Part::Hypervisor, End::Exited(1), "", log);
        assert!(failure.cause.contains("kernel panicked"), "{failure:?}");
        assert!(failure.evidence.iter().any(|line| line.contains("rip=0x1")));
    }

    #[test]
    fn diagnose_init_killed_blames_the_agent() {
        let console = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x9";
        let failure = diagnose(Part::Hypervisor, End::Exited(1), console, "");
        assert!(
            failure.cause.starts_with("The guest's agent"),
            "{}",
            failure.cause
        );
    }

    #[test]
    fn diagnose_sigsys_points_at_the_filter() {
        let failure = diagnose(Part::Device, End::Signaled(SIGSYS), "", "");
        assert!(failure.cause.contains("seccomp"));
    }

    #[test]
    fn save_more_than_the_bound_removes_the_oldest() {
        let root = tempfile::tempdir().unwrap();
        let mut last = None;
        for n in 0..MAX_RECORDS + 3 {
            let paths = Paths::new(root.path(), &format!("c{n}").parse().unwrap());
            let record = Record {
                id: format!("c{n}"),
                failure: Failure {
                    cause: "x".into(),
                    evidence: vec![],
                    fix: "y".into(),
                },
                hypervisor: String::new(),
                kernel: String::new(),
                timeline: Timeline::default(),
            };
            record.save(&paths).unwrap();
            last = Some(paths);
        }
        let last = last.unwrap();
        assert!(Record::load(&last).is_some());
        assert_eq!(fs::read_dir(last.failures()).unwrap().count(), MAX_RECORDS);
    }
}

//! Whether the host's KVM is worth the name, and the driver of our own machine on it.

mod driver;
mod probe;

use std::time::Duration;

pub(crate) use driver::MAX_VCPUS;
pub use driver::{BuiltIn, MachineStatistics};

const DEVICE: &str = "/dev/kvm";

/// A guest loop slower than this is being interpreted, not run.
const NATIVE_INSTRUCTIONS_PER_SECOND: f64 = 50e6;

/// Whether KVM can run a guest's kernel at the processor's own speed, and how we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvmVerdict {
    /// Whether to use it.
    pub usable: bool,
    /// One line for the user, with the remedy where there is one.
    pub evidence: String,
}

impl KvmVerdict {
    fn no(evidence: String) -> Self {
        Self {
            usable: false,
            evidence,
        }
    }

    fn yes(evidence: String) -> Self {
        Self {
            usable: true,
            evidence,
        }
    }
}

/// What is wrong with `/dev/kvm`, if it cannot be opened.
pub(crate) fn unavailable() -> Option<String> {
    open().err()
}

/// Tries KVM out. `/dev/kvm` may open and yet emulate each instruction of a guest kernel, in nested
/// setups; so where the processor shows no virtualisation, a guest of a few instructions is timed.
/// Takes some milliseconds, at most half a second.
pub fn kvm_verdict() -> KvmVerdict {
    let verdict = quick_verdict();
    if verdict.usable || open().is_err() {
        return verdict;
    }
    match probe::run() {
        Ok(speed) => judge(&speed),
        Err(error) => KvmVerdict::no(format!(
            "{DEVICE} opens, but the processor shows neither vmx nor svm, and a probe guest failed: {error}"
        )),
    }
}

/// As [`kvm_verdict`], but without the probe: a processor without virtualisation counts as no.
pub(crate) fn quick_verdict() -> KvmVerdict {
    if let Err(evidence) = open() {
        return KvmVerdict::no(evidence);
    }
    match virtualisation() {
        Some(name) => KvmVerdict::yes(format!("{DEVICE} opens and the processor has {name}")),
        None => KvmVerdict::no(format!(
            "{DEVICE} opens, but the processor shows neither vmx nor svm, so guest kernels would be emulated"
        )),
    }
}

fn open() -> Result<(), String> {
    match std::fs::File::options().read(true).write(true).open(DEVICE) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(format!(
            "there is no {DEVICE} (enable virtualisation in the firmware, or nested virtualisation \
             in the hypervisor of this machine)"
        )),
        Err(error) => Err(format!("{DEVICE} cannot be opened: {error}")),
    }
}

/// The name of the processor's virtualisation.
#[cfg(target_arch = "x86_64")]
fn virtualisation() -> Option<&'static str> {
    use std::arch::x86_64::__cpuid;
    // Intel: leaf 1, ECX bit 5. AMD: leaf 0x8000_0001, ECX bit 2. Reading the instruction's answer
    // is a thousand times faster than `/proc/cpuinfo`.
    if __cpuid(1).ecx & (1 << 5) != 0 {
        return Some("vmx");
    }
    let extended = __cpuid(0x8000_0000).eax >= 0x8000_0001;
    (extended && __cpuid(0x8000_0001).ecx & (1 << 2) != 0).then_some("svm")
}

/// On other architectures `/dev/kvm` exists only where the processor runs guests itself.
#[cfg(not(target_arch = "x86_64"))]
fn virtualisation() -> Option<&'static str> {
    Some("virtualisation")
}

/// What the probe guest achieved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Speed {
    /// Instructions executed before the guest halted or was stopped.
    pub instructions: u64,
    /// In what time.
    pub elapsed: Duration,
}

fn judge(speed: &Speed) -> KvmVerdict {
    #[allow(clippy::cast_precision_loss, reason = "a rate for the eye")]
    let rate = speed.instructions as f64 / speed.elapsed.as_secs_f64().max(1e-9);
    let measured = format!(
        "a probe guest ran {:.1} million instructions per second in kernel mode",
        rate / 1e6
    );
    if rate >= NATIVE_INSTRUCTIONS_PER_SECOND {
        return KvmVerdict::yes(format!("{DEVICE} opens and {measured}"));
    }
    KvmVerdict::no(format!(
        "{DEVICE} opens, but the processor shows neither vmx nor svm, and {measured}: guest kernels are emulated"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_at_a_million_instructions_per_second_is_emulated() {
        let verdict = judge(&Speed {
            instructions: 12_000,
            elapsed: Duration::from_millis(10),
        });
        assert!(!verdict.usable);
        assert!(
            verdict
                .evidence
                .contains("1.2 million instructions per second")
        );
    }

    #[test]
    fn guest_at_a_billion_instructions_per_second_is_native() {
        let verdict = judge(&Speed {
            instructions: 100_000,
            elapsed: Duration::from_micros(100),
        });
        assert!(verdict.usable);
    }

    #[test]
    fn verdict_here_agrees_with_the_quick_one_or_has_measured() {
        let verdict = kvm_verdict();
        let quick = quick_verdict();
        assert!(verdict.usable || !quick.usable);
        assert!(!verdict.evidence.is_empty());
    }
}

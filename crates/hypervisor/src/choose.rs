//! Which driver to use on this host, and why.

use std::str::FromStr;

use crate::kvm::{self, BuiltIn, KvmVerdict};
use crate::qemu::{Accelerator, Qemu};
use crate::uml::{self, Uml};
use crate::{Driver, HypervisorError};

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The best that works on this host.
    #[default]
    Auto,
    /// User-Mode Linux.
    Uml,
    /// QEMU.
    Qemu,
    /// Our own machine on KVM.
    Kvm,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "uml" => Ok(Self::Uml),
            "qemu" => Ok(Self::Qemu),
            "kvm" => Ok(Self::Kvm),
            _ => Err(format!(
                "Unknown hypervisor {text:?}; there are: auto, kvm, uml, qemu"
            )),
        }
    }
}

/// A driver and the reason it was chosen.
#[derive(Debug)]
pub struct Choice {
    /// The driver.
    pub driver: Box<dyn Driver>,
    /// One line for the user.
    pub reason: String,
}

/// Chooses a driver.
///
/// Takes well under a millisecond: whether KVM is usable is read off the processor's flags here,
/// not tried as by [`kvm_verdict`](crate::kvm_verdict), unless `Kvm` is wanted where those flags are
/// missing.
///
/// # Errors
/// [`HypervisorError::NotInstalled`] when the wanted driver, or under `Auto` any, is missing;
/// [`HypervisorError::NoKvm`] when `Kvm` is wanted and cannot be opened.
pub fn choose(wanted: Wanted) -> Result<Choice, HypervisorError> {
    let verdict = if wanted == Wanted::Kvm {
        if let Some(evidence) = kvm::unavailable() {
            return Err(HypervisorError::NoKvm { evidence });
        }
        kvm::kvm_verdict()
    } else {
        kvm::quick_verdict()
    };
    decide(wanted, &verdict, Qemu::locate, uml::available())
}

fn decide(
    wanted: Wanted,
    kvm: &KvmVerdict,
    qemu: impl Fn(Accelerator) -> Result<Qemu, HypervisorError>,
    uml: bool,
) -> Result<Choice, HypervisorError> {
    let user_mode = |reason: String| {
        if !uml {
            return Err(HypervisorError::NotInstalled {
                program: "User-Mode Linux for this architecture",
                remedy: "apt-get install qemu-system",
            });
        }
        Ok(Choice {
            driver: Box::new(Uml),
            reason,
        })
    };
    let accelerator = if kvm.usable {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    };
    match wanted {
        Wanted::Uml => user_mode("uml was asked for".to_owned()),
        Wanted::Qemu => Ok(Choice {
            driver: Box::new(qemu(accelerator)?),
            reason: match accelerator {
                Accelerator::Kvm => format!("qemu was asked for; with KVM: {}", kvm.evidence),
                Accelerator::Tcg => {
                    format!(
                        "qemu was asked for; it emulates the processor, because {}",
                        kvm.evidence
                    )
                }
            },
        }),
        Wanted::Auto if !kvm.usable => {
            user_mode(format!("hardware KVM is not usable: {}", kvm.evidence))
        }
        Wanted::Auto => Ok(Choice {
            driver: Box::new(BuiltIn::new(false)),
            reason: format!("hardware KVM is usable: {}", kvm.evidence),
        }),
        Wanted::Kvm => Ok(Choice {
            driver: Box::new(BuiltIn::new(!kvm.usable)),
            reason: if kvm.usable {
                format!("kvm was asked for: {}", kvm.evidence)
            } else {
                format!("kvm was asked for, though slow here: {}", kvm.evidence)
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isolation, Kind};

    fn verdict(usable: bool) -> KvmVerdict {
        KvmVerdict {
            usable,
            evidence: "evidence".to_owned(),
        }
    }

    #[allow(clippy::unnecessary_wraps, reason = "stands in for Qemu::locate")]
    fn installed(accelerator: Accelerator) -> Result<Qemu, HypervisorError> {
        Ok(Qemu::at("/usr/bin/qemu-system-x86_64".into(), accelerator))
    }

    fn missing(_: Accelerator) -> Result<Qemu, HypervisorError> {
        Err(HypervisorError::NotInstalled {
            program: "QEMU",
            remedy: "apt-get install qemu",
        })
    }

    #[test]
    fn auto_without_usable_kvm_is_uml_with_the_evidence() {
        let choice = decide(Wanted::Auto, &verdict(false), installed, true).unwrap();
        assert_eq!(choice.driver.kind(), Kind::Uml);
        assert_eq!(choice.reason, "hardware KVM is not usable: evidence");
    }

    #[test]
    fn auto_with_usable_kvm_is_our_own_machine() {
        let choice = decide(Wanted::Auto, &verdict(true), missing, true).unwrap();
        assert_eq!(choice.driver.kind(), Kind::Kvm);
        assert_eq!(choice.driver.isolation(), Isolation::HardwareVm);
    }

    #[test]
    fn kvm_wanted_where_it_emulates_is_labelled_so() {
        let choice = decide(Wanted::Kvm, &verdict(false), missing, true).unwrap();
        assert_eq!(choice.driver.kind(), Kind::Kvm);
        assert_eq!(choice.driver.isolation(), Isolation::EmulatedVm);
        assert_eq!(choice.driver.max_vcpus(), 1);
        assert!(
            choice.reason.contains("slow here: evidence"),
            "{}",
            choice.reason
        );
    }

    #[test]
    fn qemu_wanted_without_usable_kvm_emulates() {
        let choice = decide(Wanted::Qemu, &verdict(false), installed, true).unwrap();
        assert_eq!(choice.driver.isolation(), Isolation::EmulatedVm);
        assert!(
            choice.reason.contains("because evidence"),
            "{}",
            choice.reason
        );
    }

    #[test]
    fn qemu_wanted_but_missing_is_an_error_with_the_remedy() {
        let error = decide(Wanted::Qemu, &verdict(false), missing, true).unwrap_err();
        assert!(
            error.to_string().contains("apt-get install qemu"),
            "{error}"
        );
    }

    #[test]
    fn uml_wanted_on_another_architecture_is_an_error() {
        assert!(decide(Wanted::Uml, &verdict(false), installed, false).is_err());
    }
}

//! The five capability sets (capabilities(7)).

use std::ffi::c_ulong;

use oci_spec::runtime::{Capabilities as Set, Capability, LinuxCapabilities};
use rustix::{
    io::Errno,
    thread::{CapabilitySet, CapabilitySets, set_capabilities},
};

use super::{
    failure::{During, Step},
    sys,
};

/// `CAP_SYS_ADMIN`, which installing a seccomp filter needs unless
/// `no_new_privs` is set.
const SYS_ADMIN: u64 = 1 << 21;

/// Capability sets as bit masks, bit n for capability number n.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Capabilities {
    bounding: u64,
    effective: u64,
    inheritable: u64,
    permitted: u64,
    ambient: u64,
}

impl Capabilities {
    /// The sets of the specification; all empty where it has none.
    pub fn plan(spec: Option<&LinuxCapabilities>) -> Self {
        let Some(spec) = spec else {
            return Self::default();
        };
        let mask = |set: &Option<Set>| {
            set.iter()
                .flatten()
                .map(|capability| 1_u64 << number(*capability))
                .fold(0, |a, b| a | b)
        };
        let (inheritable, permitted) = (mask(spec.inheritable()), mask(spec.permitted()));
        Self {
            bounding: mask(spec.bounding()),
            effective: mask(spec.effective()),
            inheritable,
            permitted,
            // A capability can only be ambient while it is inheritable and permitted,
            // capabilities(7). `runc spec` itself writes configurations that ask for more, and
            // runc runs them with what is possible.
            ambient: mask(spec.ambient()) & inheritable & permitted,
        }
    }

    /// What a program run later may have.
    pub fn bounding(&self) -> u64 {
        self.bounding
    }

    /// Sets permitted, effective, inheritable and, with them, ambient. With
    /// `keep_admin` the process can still install a seccomp filter and has to
    /// call [`Self::finish`] after that.
    pub fn apply(&self, keep_admin: bool) -> Step {
        let extra = if keep_admin { SYS_ADMIN } else { 0 };
        self.set(extra)?;
        for capability in 0..64_u8 {
            if self.ambient & (1 << capability) != 0 {
                sys::raise_ambient(capability)
                    .during(|| format!("add capability {capability} to the ambient set"))
                    .map_err(|failure| failure.with_field("process.capabilities.ambient"))?;
            }
        }
        Ok(())
    }

    /// Gives up what was kept for the seccomp filter. One system call.
    pub fn finish(&self) -> Step {
        self.set(0)
    }

    /// Whether `apply(true)` leaves something to be given up.
    pub fn has_admin(&self) -> bool {
        self.effective & self.permitted & SYS_ADMIN != 0
    }

    fn set(&self, extra: u64) -> Step {
        let sets = CapabilitySets {
            effective: CapabilitySet::from_bits_retain(self.effective | extra),
            permitted: CapabilitySet::from_bits_retain(self.permitted | extra),
            inheritable: CapabilitySet::from_bits_retain(self.inheritable),
        };
        set_capabilities(None, sets)
            .during(|| "set the capabilities".to_owned())
            .map_err(|failure| failure.with_field("process.capabilities"))
    }
}

/// Takes away what no program run later may have: all but `bounding`. Needs `CAP_SETPCAP`, so it
/// comes before the other sets.
pub fn limit_bounding_set(bounding: u64) -> Step {
    let field = "process.capabilities.bounding";
    for capability in 0..u64::BITS {
        if bounding & (1 << capability) != 0 {
            continue;
        }
        match sys::prctl(libc::PR_CAPBSET_DROP, c_ulong::from(capability)) {
            // The kernel has no more.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => break,
            result => result
                .during(|| format!("drop capability {capability} from the bounding set"))
                .map_err(|failure| failure.with_field(field))?,
        }
    }
    Ok(())
}

/// The kernel's number of a capability (linux/capability.h).
pub const fn number(capability: Capability) -> u8 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_the_kernels_capability_of_that_name() {
        // In the kernel's order.
        let names = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP \
            LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER \
            SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE \
            SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP \
            MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF \
            CHECKPOINT_RESTORE";
        for (index, name) in names.split_whitespace().enumerate() {
            let parsed: Capability = serde_json::from_value(format!("CAP_{name}").into()).unwrap();

            assert_eq!(usize::from(number(parsed)), index, "{name}");
        }
    }
}

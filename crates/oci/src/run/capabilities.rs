//! `--cap-add` and `--cap-drop`.

use std::collections::HashSet;
use std::str::FromStr;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use super::error::OptionError;

/// What a container may do without being asked, as in docker.
const DEFAULT: &[Capability] = &[
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Every capability there is.
pub fn all_capabilities() -> impl Iterator<Item = Capability> {
    ALL.iter().copied()
}

const ALL: &[Capability] = &[
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::AuditWrite,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Perfmon,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::Syslog,
    Capability::SysModule,
    Capability::SysNice,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::WakeAlarm,
];

/// A capability of `--cap-add` or `--cap-drop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapabilityOption {
    /// All of them.
    All,
    /// One of them.
    One(Capability),
}

impl FromStr for CapabilityOption {
    type Err = OptionError;

    /// Reads `ALL` or a name, in any case and with or without `CAP_`.
    fn from_str(text: &str) -> Result<Self, OptionError> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name == "ALL" {
            return Ok(Self::All);
        }
        Capability::from_str(name)
            .map(Self::One)
            .map_err(|_| OptionError::Capability(text.to_owned()))
    }
}

/// The capabilities of a container: the default ones without those dropped, with those
/// added; `ALL` on either side as docker reads it.
pub(super) fn granted(add: &[CapabilityOption], drop: &[CapabilityOption]) -> Capabilities {
    let ones = |list: &[CapabilityOption]| -> HashSet<Capability> {
        let one = |option: &CapabilityOption| match option {
            CapabilityOption::One(capability) => Some(*capability),
            CapabilityOption::All => None,
        };
        list.iter().filter_map(one).collect()
    };
    let (added, dropped) = (ones(add), ones(drop));
    let without = |base: &[Capability]| -> Capabilities {
        base.iter()
            .copied()
            .filter(|capability| !dropped.contains(capability))
            .collect()
    };
    if add.contains(&CapabilityOption::All) {
        without(ALL)
    } else if drop.contains(&CapabilityOption::All) {
        added
    } else {
        without(DEFAULT).union(&added).copied().collect()
    }
}

/// The five sets for a process of `uid`. As after an exec, only root has what it is
/// granted; others may get it from files.
pub(super) fn sets(granted: &Capabilities, uid: u32) -> LinuxCapabilities {
    let held = if uid == 0 {
        granted.clone()
    } else {
        Capabilities::new()
    };
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(granted.clone()))
        .set_effective(Some(held.clone()))
        .set_permitted(Some(held))
        .set_inheritable(Some(Capabilities::new()))
        .set_ambient(Some(Capabilities::new()));
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Vec<CapabilityOption> {
        text.split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect()
    }

    fn with(add: &str, drop: &str) -> Capabilities {
        granted(&options(add), &options(drop))
    }

    #[test]
    fn all_names_every_capability_once() {
        let distinct: HashSet<_> = ALL.iter().collect();
        assert_eq!((ALL.len(), distinct.len()), (41, 41));
    }

    #[test]
    fn granted_without_options_is_the_default() {
        assert_eq!(with("", ""), DEFAULT.iter().copied().collect());
    }

    #[test]
    fn granted_add_and_drop_change_the_default() {
        let set = with("cap_net_admin", "KILL");
        assert!(set.contains(&Capability::NetAdmin));
        assert!(!set.contains(&Capability::Kill));
        assert_eq!(set.len(), DEFAULT.len());
    }

    #[test]
    fn granted_drop_all_keeps_what_is_added() {
        assert_eq!(with("chown", "all"), HashSet::from([Capability::Chown]));
    }

    #[test]
    fn granted_add_all_lacks_what_is_dropped() {
        let set = with("ALL", "sys_module");
        assert_eq!(set.len(), 40);
        assert!(!set.contains(&Capability::SysModule));
    }

    #[test]
    fn sets_of_a_user_hold_nothing_by_themselves() {
        let set = with("", "");
        let user = sets(&set, 1000);
        assert_eq!(user.bounding().as_ref(), Some(&set));
        assert_eq!(user.effective().as_ref(), Some(&Capabilities::new()));
        assert_eq!(sets(&set, 0).effective().as_ref(), Some(&set));
    }

    #[test]
    fn parse_unknown_capability_is_an_error() {
        assert_eq!(
            "FLY".parse::<CapabilityOption>(),
            Err(OptionError::Capability("FLY".into()))
        );
    }
}

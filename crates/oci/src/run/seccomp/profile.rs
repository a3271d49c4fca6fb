//! Profiles in files, in the format docker and podman share: a filter in which rules may
//! depend on architecture, capabilities and the kernel's version.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg,
    LinuxSeccompFilterFlag, LinuxSyscall,
};
use serde::Deserialize;

use super::{super::error::RunError, go_architecture};
use crate::text::one_line;

/// Largest profile, in bytes.
const PROFILE_MAX: u64 = 1 << 20;

/// The oldest kernel a guest of ours runs: rules for newer ones are left out.
const GUEST_KERNEL: (u32, u32) = (6, 12);

/// A profile; fields of no effect on a filter are not read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<Arch>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    #[serde(default)]
    listener_path: Option<std::path::PathBuf>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(default)]
    caps: Option<Vec<Capability>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// Reads the profile and keeps the rules for a container with these capabilities.
pub(super) fn filter(path: &Path, granted: &Capabilities) -> Result<LinuxSeccomp, RunError> {
    let json = read(path).map_err(|source| RunError::ProfileUnreadable {
        path: path.into(),
        source,
    })?;
    parse(&json, granted).map_err(|problem| RunError::ProfileInvalid {
        path: path.into(),
        problem,
    })
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut json = Vec::new();
    file.take(PROFILE_MAX + 1).read_to_end(&mut json)?;
    if u64::try_from(json.len()).is_ok_and(|length| length <= PROFILE_MAX) {
        Ok(json)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "larger than 1 MiB, the most a profile may have",
        ))
    }
}

fn parse(json: &[u8], granted: &Capabilities) -> Result<LinuxSeccomp, String> {
    let profile: Profile =
        serde_json::from_slice(json).map_err(|error| one_line(&error.to_string()))?;
    let mut rules = Vec::new();
    for (index, rule) in profile.syscalls.into_iter().flatten().enumerate() {
        let wrong = |problem| format!("syscalls[{index}] {problem}");
        let applies = rule.includes.holds(granted, Mode::Include).map_err(wrong)?
            && !rule.excludes.holds(granted, Mode::Exclude).map_err(wrong)?;
        let names: Vec<String> = rule
            .name
            .into_iter()
            .chain(rule.names.into_iter().flatten())
            .collect();
        if names.is_empty() {
            return Err(wrong("names no system call"));
        }
        if applies {
            let mut kept = LinuxSyscall::default();
            kept.set_names(names)
                .set_action(rule.action)
                .set_errno_ret(rule.errno_ret)
                .set_args(rule.args.filter(|args| !args.is_empty()));
            rules.push(kept);
        }
    }
    let mut filter = LinuxSeccomp::default();
    filter
        .set_default_action(profile.default_action)
        .set_default_errno_ret(profile.default_errno_ret)
        .set_architectures(architectures(profile.architectures, profile.arch_map))
        .set_flags(profile.flags)
        .set_listener_path(profile.listener_path)
        .set_syscalls(Some(rules));
    Ok(filter)
}

/// The listed architectures, and those the map gives this machine.
fn architectures(listed: Option<Vec<Arch>>, map: Option<Vec<ArchMap>>) -> Option<Vec<Arch>> {
    let own = super::architectures(false);
    let mapped = map
        .into_iter()
        .flatten()
        .filter(|entry| own.contains(&entry.architecture))
        .flat_map(|entry| {
            std::iter::once(entry.architecture).chain(entry.sub_architectures.into_iter().flatten())
        });
    let all: Vec<Arch> = listed.into_iter().flatten().chain(mapped).collect();
    (!all.is_empty()).then_some(all)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nothing named: holds. Every named thing must hold; of the architectures, one.
    Include,
    /// Nothing named: does not hold. One named thing suffices.
    Exclude,
}

impl Condition {
    fn holds(&self, granted: &Capabilities, mode: Mode) -> Result<bool, &'static str> {
        let mut outcomes = Vec::new();
        for capability in self.caps.iter().flatten() {
            outcomes.push(granted.contains(capability));
        }
        if let Some(arches) = self.arches.as_deref().filter(|arches| !arches.is_empty()) {
            outcomes.push(arches.iter().any(|arch| arch == go_architecture()));
        }
        if let Some(version) = self
            .min_kernel
            .as_deref()
            .filter(|version| !version.is_empty())
        {
            outcomes.push(
                kernel_at_least(version)
                    .ok_or("has a minKernel that is not a version, as in 4.8")?,
            );
        }
        Ok(match mode {
            Mode::Include => outcomes.iter().all(|holds| *holds),
            Mode::Exclude => outcomes.iter().any(|holds| *holds),
        })
    }
}

fn kernel_at_least(version: &str) -> Option<bool> {
    let (major, minor) = version.split_once('.')?;
    Some(GUEST_KERNEL >= (major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
        ],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "x", "includes": {}, "excludes": {}},
            {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}},
            {"names": ["nochroot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": {"caps": ["CAP_SYS_CHROOT"]}},
            {"name": "old", "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["later"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.1"}},
            {"names": ["elsewhere"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["mars"]}}
        ]
    }"#;

    fn names(granted: &[Capability]) -> Vec<String> {
        let filter = parse(PROFILE.as_bytes(), &granted.iter().copied().collect()).unwrap();
        let rules = filter.syscalls().as_ref().unwrap();
        rules.iter().flat_map(|rule| rule.names().clone()).collect()
    }

    #[test]
    fn parse_rules_are_kept_by_their_conditions() {
        assert_eq!(names(&[Capability::SysChroot]), ["read", "chroot", "old"]);
        assert_eq!(names(&[]), ["read", "nochroot", "old"]);
    }

    #[test]
    fn parse_architectures_come_from_the_map() {
        let filter = parse(PROFILE.as_bytes(), &Capabilities::new()).unwrap();
        assert_eq!(filter.architectures().as_ref().map(Vec::len), Some(2));
    }

    #[test]
    fn parse_the_profile_of_podman_is_accepted() {
        let Ok(json) = std::fs::read("/usr/share/containers/seccomp.json") else {
            eprintln!("SKIP: containers-common is not installed");
            return;
        };
        let filter = parse(&json, &Capabilities::new()).unwrap();
        assert!(filter.syscalls().as_ref().unwrap().len() > 5);
    }

    #[test]
    fn parse_broken_profiles_are_told_in_one_line() {
        for (json, part) in [
            ("{", "EOF"),
            (r#"{"defaultAction": "SCMP_ACT_JUMP"}"#, "SCMP_ACT_JUMP"),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_KILL"}]}"#,
                "syscalls[0]",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_KILL", "includes": {"minKernel": "x"}}]}"#,
                "minKernel",
            ),
        ] {
            let problem = parse(json.as_bytes(), &Capabilities::new()).unwrap_err();
            assert!(
                problem.contains(part) && problem.lines().count() == 1,
                "{problem}"
            );
        }
    }
}

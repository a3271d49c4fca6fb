//! `bulkhead features`: what configurations may ask for, in the form of the OCI runtime specification
//! ("Features Structure").

use std::process::ExitCode;

use bulkhead_hypervisor::{Abilities, Kind};
use bulkhead_oci::run::all_capabilities;
use serde_json::{Value, json};

use crate::version;

#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: &Args) -> ExitCode {
    println!("{:#}", features());
    ExitCode::SUCCESS
}

/// Words of `mounts[].options` that are no business of a file system's: the agent's vocabulary. Those
/// that are refused (`idmap`, `ridmap`, `remount`) are not among them.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

fn features() -> Value {
    let mut capabilities: Vec<String> =
        all_capabilities().map(|one| format!("CAP_{one}")).collect();
    capabilities.sort();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": version::SPECIFICATION,
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
        ],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "capabilities": capabilities,
            "cgroup": {
                "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": false,
            },
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
                ],
                // What engines' profiles name; programs of the guests are of the first one.
                "archs": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "knownFlags": [
                    "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG",
                    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                ],
                "supportedFlags": [
                    "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG",
                    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                ],
            },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": false } },
            "netDevices": { "enabled": false },
        },
        "annotations": {
            "io.bulkhead.version": version::NUMBER,
            "io.bulkhead.commit": version::COMMIT,
            "io.bulkhead.machine.kvm": Abilities::of(Kind::Kvm).to_string(),
            "io.bulkhead.machine.qemu": Abilities::of(Kind::Qemu).to_string(),
            "io.bulkhead.machine.uml": Abilities::of(Kind::Uml).to_string(),
            "org.opencontainers.runc.checkpoint.enabled": "false",
        },
        "potentiallyUnsafeConfigAnnotations": ["io.bulkhead."],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_of_the_specifications_form() {
        let parsed: oci_spec::runtime::Features = serde_json::from_value(features()).unwrap();

        assert_eq!(parsed.hooks().as_ref().map(Vec::len), Some(6));
        let linux = parsed.linux().as_ref().unwrap();
        let capabilities = linux.capabilities().as_ref().unwrap();
        assert_eq!(capabilities.len(), 41);
        assert!(
            capabilities.contains(&"CAP_SYS_ADMIN".to_owned()),
            "{capabilities:?}"
        );
    }
}

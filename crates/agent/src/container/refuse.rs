//! What a specification can ask for and the guest does not do: each is refused
//! by its name, nothing is dropped.

use oci_spec::runtime::{Hooks, Linux, Spec};

use super::ContainerError;

/// Checks the parts of the specification that no other step looks at.
pub fn check(spec: &Spec) -> Result<(), ContainerError> {
    let foreign = [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    refuse_all(&foreign, "the guest is Linux")?;
    refuse_all(
        &[("vm", spec.vm().is_some())],
        "the virtual machine exists already; its parameters are the host's business",
    )?;
    if let Some(hooks) = spec.hooks() {
        check_hooks(hooks)?;
    }
    if let Some(linux) = spec.linux() {
        check_linux(linux)?;
    }
    Ok(())
}

fn refuse_all(fields: &[(&str, bool)], reason: &str) -> Result<(), ContainerError> {
    match fields.iter().find(|(_, present)| *present) {
        Some((field, _)) => Err(ContainerError::unsupported(*field, reason)),
        None => Ok(()),
    }
}

fn check_hooks(hooks: &Hooks) -> Result<(), ContainerError> {
    let any = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    refuse_all(
        &[
            ("hooks.prestart", any(hooks.prestart())),
            ("hooks.createRuntime", any(hooks.create_runtime())),
            ("hooks.poststart", any(hooks.poststart())),
            ("hooks.poststop", any(hooks.poststop())),
        ],
        "these hooks run on the host, they must not reach the guest",
    )?;
    refuse_all(
        &[("hooks.createContainer", any(hooks.create_container()))],
        "the guest has no programs outside the container that could be run before its root is \
         entered; use hooks.startContainer, which runs inside it",
    )
}

fn check_linux(linux: &Linux) -> Result<(), ContainerError> {
    let any = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    refuse_all(
        &[
            ("linux.uidMappings", any(linux.uid_mappings())),
            ("linux.gidMappings", any(linux.gid_mappings())),
        ],
        "the guest makes no user namespaces; the container's root is root of its own virtual \
         machine only",
    )?;
    refuse_all(
        &[(
            "linux.timeOffsets",
            linux
                .time_offsets()
                .as_ref()
                .is_some_and(|map| !map.is_empty()),
        )],
        "the guest makes no time namespaces; the virtual machine has its own clock",
    )?;
    refuse_all(
        &[(
            "linux.netDevices",
            linux
                .net_devices()
                .as_ref()
                .is_some_and(|map| !map.is_empty()),
        )],
        "devices of the host's network cannot be moved into the virtual machine",
    )?;
    refuse_all(
        &[("linux.intelRdt", linux.intel_rdt().is_some())],
        "the guest has no resource director; set it for the virtual machine on the host",
    )?;
    refuse_all(
        &[("linux.memoryPolicy", linux.memory_policy().is_some())],
        "the guest has one memory node; set the policy for the virtual machine on the host",
    )?;
    refuse_all(
        &[(
            "linux.mountLabel",
            linux.mount_label().as_ref().is_some_and(|s| !s.is_empty()),
        )],
        "the guest's kernel has no SELinux; the virtual machine is the wall, leave it out",
    )
}

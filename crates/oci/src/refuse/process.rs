//! Refusals about the process: labels, placement, seccomp.

use oci_spec::runtime::{LinuxSeccompAction, Process, Spec};

use super::host::{found_if, linux_has};
use super::{Because, Rule};

pub(super) const RULES: &[Rule] = &[
    Rule {
        field: "process.apparmorProfile",
        because: Because::GuestKernel,
        reason: "AppArmor profiles are loaded into the host's kernel, and the guest kernels have no AppArmor",
        alternative: "remove it (docker and podman: --security-opt apparmor=unconfined)",
        find: |spec| {
            let profile = process(spec).and_then(|process| process.apparmor_profile().as_deref());
            let asked = !matches!(profile, None | Some("" | "unconfined"));
            found_if(asked, "process.apparmorProfile")
        },
    },
    Rule {
        field: "process.selinuxLabel, linux.mountLabel",
        because: Because::GuestKernel,
        reason: "SELinux labels belong to the host's policy, and the guest kernels have no SELinux",
        alternative: "remove it (docker and podman: --security-opt label=disable)",
        find: |spec| {
            let label = process(spec).and_then(|process| process.selinux_label().as_deref());
            let mut found = found_if(label.is_some_and(|l| !l.is_empty()), "process.selinuxLabel");
            found.extend(linux_has(spec, "linux.mountLabel", |linux| {
                linux
                    .mount_label()
                    .as_deref()
                    .is_some_and(|label| !label.is_empty())
            }));
            found
        },
    },
    Rule {
        field: "process.commandLine",
        because: Because::OwnKernel,
        reason: "a whole command line is for Windows, the guest's kernel is Linux",
        alternative: "use process.args",
        find: |spec| {
            let line = process(spec).and_then(|process| process.command_line().as_deref());
            found_if(
                line.is_some_and(|line| !line.is_empty()),
                "process.commandLine",
            )
        },
    },
    Rule {
        field: "process.execCPUAffinity",
        because: Because::NotBuilt,
        reason: "the numbers name CPUs of the host, and the container's are the virtual machine's",
        alternative: "remove it and use linux.resources.cpu.cpus",
        find: |spec| {
            process_has(spec, "process.execCPUAffinity", |p| {
                p.exec_cpu_affinity().is_some()
            })
        },
    },
    Rule {
        field: "linux.memoryPolicy",
        because: Because::OwnKernel,
        reason: "the nodes are the host's, and the virtual machine has one node of its own",
        alternative: "remove it",
        find: |spec| {
            linux_has(spec, "linux.memoryPolicy", |linux| {
                linux.memory_policy().is_some()
            })
        },
    },
    Rule {
        field: "linux.seccomp.listenerPath, action SCMP_ACT_NOTIFY",
        because: Because::OwnKernel,
        reason: "the listener would have to look into processes of another kernel",
        alternative: "use SCMP_ACT_ERRNO",
        find: seccomp_notify,
    },
];

fn process(spec: &Spec) -> Option<&Process> {
    spec.process().as_ref()
}

fn process_has(spec: &Spec, field: &str, asks: fn(&Process) -> bool) -> Vec<String> {
    found_if(process(spec).is_some_and(asks), field)
}

fn seccomp_notify(spec: &Spec) -> Vec<String> {
    let Some(filter) = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().as_ref())
    else {
        return Vec::new();
    };
    let mut found = found_if(
        filter.listener_path().is_some(),
        "linux.seccomp.listenerPath",
    );
    let notifies = |action| action == LinuxSeccompAction::ScmpActNotify;
    found.extend(found_if(
        notifies(filter.default_action()),
        "linux.seccomp.defaultAction",
    ));
    let rules = filter.syscalls().as_deref().unwrap_or_default();
    if let Some(index) = rules.iter().position(|rule| notifies(rule.action())) {
        found.push(format!("linux.seccomp.syscalls[{index}].action"));
    }
    found
}

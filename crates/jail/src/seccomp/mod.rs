//! Allow-lists of system calls. Anything else kills the whole process.
//!
//! Guest system calls are no concern of these lists: they govern what the process that runs or
//! serves the guest asks of the host.

mod device;
mod qemu;
mod uml;
mod vmm;

use std::collections::BTreeMap;
use std::ffi::CStr;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use serde::{Deserialize, Serialize};

use crate::JailError;

/// The list a jailed process runs under.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// No filter. For tests only: nothing that serves a guest uses it.
    None,
    /// User-Mode Linux in its ptrace mode.
    Uml,
    /// QEMU with TCG or KVM and vhost-user devices.
    Qemu,
    /// The device process: vhost-user, virtio-fs passthrough, vsock.
    Device,
    /// Our own KVM machine while it is made.
    Vmm,
    /// The thread of one of its processors, see [`narrow`].
    Vcpu,
    /// The thread of it that takes orders, see [`narrow`].
    VmmControl,
}

/// One line of a list: the call, and for which arguments (any of the rules; none: all).
pub(crate) type Line = (libc::c_long, Vec<SeccompRule>);

/// The filters of one profile, ready for the kernel. The strictest verdict of all counts.
#[derive(Debug)]
pub(crate) struct Filters(Vec<BpfProgram>);

/// What a profile says about system calls it does not kill for.
pub(crate) struct Lists {
    /// Allowed.
    pub(crate) allowed: Vec<Line>,
    /// Answered with "no such system call" (ENOSYS), by calls for which the program has a
    /// substitute or a way to end.
    pub(crate) refused: Vec<Line>,
}

/// Translates a profile for the kernel.
///
/// If `execute` is given, `execve` is allowed for a path at that very address. The address means
/// nothing to the program once it runs, so the program cannot execute another one.
pub(crate) fn compile(profile: Profile, execute: Option<&CStr>) -> Result<Filters, JailError> {
    let build = || {
        let mut lists = match profile {
            Profile::None => return Ok(Vec::new()),
            Profile::Uml => uml::lists(),
            Profile::Qemu => qemu::lists(),
            Profile::Device => device::lists(),
            Profile::Vmm => vmm::making(),
            Profile::Vcpu => vmm::processor(),
            Profile::VmmControl => vmm::control(),
        }?;
        if let Some(path) = execute {
            let address = path.as_ptr().addr() as u64;
            let is = |operation| rule(0, SeccompCmpArgLen::Qword, operation, address);
            if profile == Profile::Uml {
                // The kernel reboots by executing itself; when it cannot, it ends.
                lists
                    .refused
                    .push((libc::SYS_execve, vec![is(SeccompCmpOp::Ne)?]));
            } else {
                lists
                    .allowed
                    .push((libc::SYS_execve, vec![is(SeccompCmpOp::Eq)?]));
            }
        }
        programs(lists)
    };
    build().map(Filters).map_err(|error| JailError::Filter {
        profile,
        reason: error.to_string(),
    })
}

fn programs(lists: Lists) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    // The kernel heeds the strictest verdict of all filters, so one that is to refuse a call needs
    // the others to allow it.
    let mut allowed: BTreeMap<_, _> = lists.allowed.into_iter().collect();
    for (call, _) in &lists.refused {
        allowed.entry(*call).or_default();
    }
    #[allow(clippy::cast_sign_loss, reason = "error numbers are positive")]
    let refusal = SeccompAction::Errno(libc::ENOSYS as u32);
    let filters = [
        (
            lists.refused.into_iter().collect(),
            SeccompAction::Allow,
            refusal,
        ),
        (allowed, SeccompAction::KillProcess, SeccompAction::Allow),
    ];
    filters
        .into_iter()
        .map(|(rules, otherwise, matched)| {
            SeccompFilter::new(rules, otherwise, matched, architecture())?.try_into()
        })
        .collect()
}

/// Puts the filters in force for this thread and all it will create.
pub(crate) fn install(filters: &Filters) -> Result<(), JailError> {
    // In this order: once the allow-list is in force, no further filter can be installed.
    for program in &filters.0 {
        seccompiler::apply_filter(program).map_err(|error| match error {
            seccompiler::Error::Prctl(source) | seccompiler::Error::Seccomp(source) => {
                JailError::Confine {
                    step: "install the system call filter",
                    source,
                }
            }
            other => JailError::Confine {
                step: "install the system call filter",
                source: std::io::Error::other(other.to_string()),
            },
        })?;
    }
    Ok(())
}

/// Puts the calling thread under `profile` as well: what it may do from now on is what all of its
/// filters allow. For threads that need less than their process did at its start.
///
/// # Errors
/// [`JailError::Filter`] and [`JailError::Confine`]; the thread then runs under its old filters.
pub fn narrow(profile: Profile) -> Result<(), JailError> {
    install(&compile(profile, None)?)
}

const fn architecture() -> TargetArch {
    if cfg!(target_arch = "aarch64") {
        TargetArch::aarch64
    } else {
        TargetArch::x86_64
    }
}

/// Any of the calls, with any arguments.
pub(crate) fn any(calls: &[libc::c_long]) -> Vec<Line> {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

/// The `call` when the given argument (from 0), as a 32-bit value, is one of `values`.
pub(crate) fn one_of(
    call: libc::c_long,
    argument: u8,
    values: &[u64],
) -> Result<Line, seccompiler::BackendError> {
    let rules = values
        .iter()
        .map(|value| rule(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value))
        .collect::<Result<_, _>>()?;
    Ok((call, rules))
}

/// The `call` when the given argument, a pointer, is null.
pub(crate) fn null(call: libc::c_long, argument: u8) -> Result<Line, seccompiler::BackendError> {
    Ok((
        call,
        vec![rule(
            argument,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::Eq,
            0,
        )?],
    ))
}

/// The `call` when none of the bits of `mask` is set in the given argument.
pub(crate) fn without_bits(
    call: libc::c_long,
    argument: u8,
    mask: u64,
) -> Result<Line, seccompiler::BackendError> {
    let rule = rule(
        argument,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(mask),
        0,
    )?;
    Ok((call, vec![rule]))
}

fn rule(
    argument: u8,
    length: SeccompCmpArgLen,
    operation: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(
        argument, length, operation, value,
    )?])
}

/// `CLONE_NEW*`: no jailed process makes namespaces.
#[allow(clippy::cast_sign_loss, reason = "a set of bits")]
pub(crate) const NAMESPACE_FLAGS: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

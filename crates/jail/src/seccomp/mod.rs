//! Allow-lists of system calls. Anything else kills the whole process.

mod device;
mod qemu;
mod uml;

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
}

/// One line of an allow-list: the call, and for which arguments (any of the rules; none: all).
pub(crate) type Line = (libc::c_long, Vec<SeccompRule>);

/// The filters of one profile, ready for the kernel. The strictest verdict of all counts.
#[derive(Debug)]
pub(crate) struct Filters(Vec<BpfProgram>);

/// Translates a profile for the kernel.
///
/// If `execute` is given, `execve` is allowed for a path at that very address. The address means
/// nothing to the program once it runs, so the program cannot execute another one, nor itself
/// again (which is how User-Mode Linux reboots: here it ends).
pub(crate) fn compile(profile: Profile, execute: Option<&CStr>) -> Result<Filters, JailError> {
    let (mut allowed, absent) = match profile {
        Profile::None => return Ok(Filters(Vec::new())),
        Profile::Uml => uml::list(),
        Profile::Qemu => qemu::list(),
        Profile::Device => device::list(),
    }
    .map_err(|error| filter_error(profile, &error))?;
    if let Some(path) = execute {
        let address = path.as_ptr().addr() as u64;
        let rule = rule(0, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, address);
        let rule = rule.map_err(|error| filter_error(profile, &error))?;
        allowed.push((libc::SYS_execve, vec![rule]));
    }
    let allowed: BTreeMap<_, _> = allowed
        .into_iter()
        .chain(absent.iter().map(|call| (*call, Vec::new())))
        .collect();
    let mut programs = Vec::new();
    let mut add = |rules, mismatch, matched| {
        let filter = SeccompFilter::new(rules, mismatch, matched, architecture())?;
        programs.push(BpfProgram::try_from(filter)?);
        Ok::<_, seccompiler::BackendError>(())
    };
    add(allowed, SeccompAction::KillProcess, SeccompAction::Allow)
        .map_err(|error| filter_error(profile, &error))?;
    if !absent.is_empty() {
        // Calls that libraries try first and have a substitute for: say that they do not exist.
        #[allow(clippy::cast_sign_loss, reason = "error numbers are positive")]
        let verdict = SeccompAction::Errno(libc::ENOSYS as u32);
        let absent = absent.into_iter().map(|call| (call, Vec::new())).collect();
        add(absent, SeccompAction::Allow, verdict)
            .map_err(|error| filter_error(profile, &error))?;
    }
    Ok(Filters(programs))
}

/// Puts the filters in force for this thread and all it will create.
pub(crate) fn install(filters: &Filters) -> Result<(), JailError> {
    // The second filter must be in force first: once the allow-list is, there is no `seccomp` call.
    for program in filters.0.iter().rev() {
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

fn filter_error(profile: Profile, error: &seccompiler::BackendError) -> JailError {
    JailError::Filter {
        profile,
        reason: error.to_string(),
    }
}

const fn architecture() -> TargetArch {
    if cfg!(target_arch = "aarch64") {
        TargetArch::aarch64
    } else {
        TargetArch::x86_64
    }
}

pub(crate) type Lists = Result<(Vec<Line>, Vec<libc::c_long>), seccompiler::BackendError>;

/// Allows calls with any arguments.
pub(crate) fn any(calls: &[libc::c_long]) -> Vec<Line> {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

/// Allows `call` when the given argument (from 0), as a 32-bit value, is one of `values`.
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

/// Allows `call` when the given argument, a pointer, is null.
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

/// Allows `call` unless the given argument, as a 32-bit value, is `value`.
pub(crate) fn not_equal(
    call: libc::c_long,
    argument: u8,
    value: u64,
) -> Result<Line, seccompiler::BackendError> {
    Ok((
        call,
        vec![rule(
            argument,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Ne,
            value,
        )?],
    ))
}

/// Allows `call` when none of the bits of `mask` is set in the given argument.
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

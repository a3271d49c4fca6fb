//! `linux.seccomp`: from the profile to a filter program, and installing it.

use std::{
    io::{Read, Seek},
    sync::Arc,
};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
    error::SeccompError,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};
use rustix::fs::{MemfdFlags, memfd_create};

use super::{
    ContainerError,
    failure::{During, Step},
    sys,
};

/// A compiled profile. Shared by all processes of a container.
#[derive(Clone)]
pub struct Filter {
    program: Arc<[libc::sock_filter]>,
    flags: u64,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter")
            .field("instructions", &self.program.len())
            .finish()
    }
}

impl Filter {
    /// Compiles the profile.
    pub fn plan(spec: &LinuxSeccomp) -> Result<Self, ContainerError> {
        if spec.listener_path().is_some() || spec.listener_metadata().is_some() {
            return Err(no_notify("linux.seccomp.listenerPath"));
        }
        let flags = flags(spec.flags().as_deref().unwrap_or_default())?;
        let default = action(
            spec.default_action(),
            spec.default_errno_ret(),
            "linux.seccomp.defaultAction",
        )?;
        let mut context = ScmpFilterContext::new(default).map_err(failed)?;
        for arch in spec.architectures().iter().flatten() {
            context.add_arch(architecture(*arch)).map_err(failed)?;
        }
        // A filter can be long and is gone through at each system call: a tree, not a list.
        context.set_ctl_optimize(2).map_err(failed)?;
        for (index, rule) in spec.syscalls().iter().flatten().enumerate() {
            add(
                &mut context,
                rule,
                default,
                &format!("linux.seccomp.syscalls[{index}]"),
            )?;
        }
        Ok(Self {
            program: export(&context)?.into(),
            flags,
        })
    }

    /// Installs it on the calling process; needs `CAP_SYS_ADMIN` or `no_new_privs`.
    pub fn apply(&self) -> Step {
        sys::set_seccomp_filter(&self.program, self.flags)
            .during(|| "install the seccomp filter".to_owned())
            .map_err(|failure| failure.with_field("linux.seccomp"))
    }
}

fn failed(error: SeccompError) -> ContainerError {
    ContainerError::System {
        step: "compile the seccomp profile".to_owned(),
        field: Some("linux.seccomp".to_owned()),
        source: std::io::Error::other(error),
    }
}

fn no_notify(field: &str) -> ContainerError {
    ContainerError::unsupported(
        field,
        "the supervisor that would be notified (SCMP_ACT_NOTIFY) is on the host and cannot see \
         into the guest; use SCMP_ACT_ERRNO",
    )
}

fn action(action: Action, errno: Option<u32>, field: &str) -> Result<ScmpAction, ContainerError> {
    let errno = || {
        u16::try_from(errno.unwrap_or(libc::EPERM.unsigned_abs()))
            .map_err(|_| ContainerError::invalid(field, "the errno to return is too large"))
    };
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => ScmpAction::KillThread,
        Action::ScmpActKillProcess => ScmpAction::KillProcess,
        Action::ScmpActTrap => ScmpAction::Trap,
        Action::ScmpActErrno => ScmpAction::Errno(errno()?.into()),
        Action::ScmpActTrace => ScmpAction::Trace(errno()?),
        Action::ScmpActLog => ScmpAction::Log,
        Action::ScmpActAllow => ScmpAction::Allow,
        Action::ScmpActNotify => return Err(no_notify(field)),
    })
}

fn flags(flags: &[LinuxSeccompFilterFlag]) -> Result<u64, ContainerError> {
    flags.iter().try_fold(0, |bits, flag| {
        Ok(bits
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 1 << 0,
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => 1 << 1,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 1 << 2,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                    return Err(no_notify(
                        "linux.seccomp.flags (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)",
                    ));
                }
            })
    })
}

fn add(
    context: &mut ScmpFilterContext,
    rule: &LinuxSyscall,
    default: ScmpAction,
    field: &str,
) -> Result<(), ContainerError> {
    let action = action(rule.action(), rule.errno_ret(), field)?;
    if action == default {
        // What happens anyway needs no rule, and the library refuses such.
        return Ok(());
    }
    let args = rule.args().as_deref().unwrap_or_default();
    let comparisons = args
        .iter()
        .map(|arg| comparison(arg, field))
        .collect::<Result<Vec<_>, _>>()?;
    // One system call argument compared twice cannot be one rule; such profiles mean
    // alternatives.
    let mut indices: Vec<_> = args.iter().map(LinuxSeccompArg::index).collect();
    indices.sort_unstable();
    let alternatives = indices.windows(2).any(|pair| pair.first() == pair.last());
    for name in rule.names() {
        // Profiles list system calls of all architectures and of kernels to come.
        let Ok(syscall) = ScmpSyscall::from_name(name) else {
            continue;
        };
        let conditions: Vec<&[ScmpArgCompare]> = if alternatives {
            comparisons.chunks(1).collect()
        } else {
            vec![&comparisons]
        };
        for conditions in conditions {
            context
                .add_rule_conditional(action, syscall, conditions)
                .map_err(|error| ContainerError::System {
                    step: format!("add a rule for {name} to the seccomp filter"),
                    field: Some(field.to_owned()),
                    source: std::io::Error::other(error),
                })?;
        }
    }
    Ok(())
}

fn comparison(arg: &LinuxSeccompArg, field: &str) -> Result<ScmpArgCompare, ContainerError> {
    let index = u32::try_from(arg.index())
        .ok()
        .filter(|index| *index < 6)
        .ok_or_else(|| {
            ContainerError::invalid(
                format!("{field}.args"),
                "a system call has arguments 0 to 5",
            )
        })?;
    let (operator, value) = match arg.op() {
        Operator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        Operator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        Operator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        Operator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        Operator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        Operator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        Operator::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(arg.value()),
            arg.value_two().unwrap_or(0),
        ),
    };
    Ok(ScmpArgCompare::new(index, operator, value))
}

/// The library writes its result to a file only.
fn export(context: &ScmpFilterContext) -> Result<Vec<libc::sock_filter>, ContainerError> {
    let step = || "export the seccomp filter".to_owned();
    let file = memfd_create("seccomp", MemfdFlags::CLOEXEC).while_trying(step)?;
    context.export_bpf(&file).map_err(failed)?;
    let mut file = std::fs::File::from(file);
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .while_trying(step)?;
    Ok(bytes.chunks_exact(8).filter_map(instruction).collect())
}

/// `struct sock_filter`: u16 code, u8 jt, u8 jf, u32 k, in the machine's byte order.
fn instruction(bytes: &[u8]) -> Option<libc::sock_filter> {
    let &[c0, c1, jt, jf, k0, k1, k2, k3] = bytes else {
        return None;
    };
    let k = u32::from_ne_bytes([k0, k1, k2, k3]);
    Some(libc::sock_filter {
        code: u16::from_ne_bytes([c0, c1]),
        jt,
        jf,
        k,
    })
}

const fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

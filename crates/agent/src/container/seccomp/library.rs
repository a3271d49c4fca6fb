//! Compiling a profile with the seccomp library, for all architectures it lists.

use std::io::{Read, Seek};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
    error::SeccompError,
};
use oci_spec::runtime::Arch;
use rustix::fs::{MemfdFlags, memfd_create};

use super::profile::{Action, Comparison, Operator, Profile, Rule};
use crate::container::{ContainerError, failure::During};

/// The filter's instructions.
pub fn compile(profile: &Profile<'_>) -> Result<Vec<libc::sock_filter>, ContainerError> {
    let mut context = ScmpFilterContext::new(action(profile.default)).map_err(failed)?;
    for arch in profile.architectures {
        context.add_arch(architecture(*arch)).map_err(failed)?;
    }
    // A filter can be long and is gone through at each system call: a tree, not a list.
    context.set_ctl_optimize(2).map_err(failed)?;
    for rule in &profile.rules {
        // What happens anyway needs no rule, and the library refuses such.
        if rule.action != profile.default {
            add(&mut context, rule)?;
        }
    }
    export(&context)
}

fn failed(error: SeccompError) -> ContainerError {
    ContainerError::System {
        step: "compile the seccomp profile".to_owned(),
        field: Some("linux.seccomp".to_owned()),
        source: std::io::Error::other(error),
    }
}

fn add(context: &mut ScmpFilterContext, rule: &Rule<'_>) -> Result<(), ContainerError> {
    for name in rule.names {
        let Ok(syscall) = ScmpSyscall::from_name(name) else {
            continue;
        };
        for conditions in &rule.alternatives {
            let conditions: Vec<_> = conditions.iter().map(comparison).collect();
            context
                .add_rule_conditional(action(rule.action), syscall, &conditions)
                .map_err(|error| ContainerError::System {
                    step: format!("add a rule for {name} to the seccomp filter"),
                    field: Some(rule.field.clone()),
                    source: std::io::Error::other(error),
                })?;
        }
    }
    Ok(())
}

fn action(action: Action) -> ScmpAction {
    match action {
        Action::KillThread => ScmpAction::KillThread,
        Action::KillProcess => ScmpAction::KillProcess,
        Action::Trap => ScmpAction::Trap,
        Action::Errno(errno) => ScmpAction::Errno(errno.into()),
        Action::Trace(message) => ScmpAction::Trace(message),
        Action::Log => ScmpAction::Log,
        Action::Allow => ScmpAction::Allow,
    }
}

fn comparison(comparison: &Comparison) -> ScmpArgCompare {
    let operator = match comparison.operator {
        Operator::NotEqual => ScmpCompareOp::NotEqual,
        Operator::Less => ScmpCompareOp::Less,
        Operator::LessOrEqual => ScmpCompareOp::LessOrEqual,
        Operator::Equal => ScmpCompareOp::Equal,
        Operator::GreaterOrEqual => ScmpCompareOp::GreaterEqual,
        Operator::Greater => ScmpCompareOp::Greater,
        Operator::MaskedEqual(mask) => ScmpCompareOp::MaskedEqual(mask),
    };
    ScmpArgCompare::new(comparison.argument, operator, comparison.value)
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

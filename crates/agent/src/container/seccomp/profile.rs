//! A seccomp profile, checked, in terms of what the kernel can do.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use crate::container::ContainerError;

/// A checked profile.
#[derive(Debug)]
pub struct Profile<'a> {
    /// For what no rule speaks about.
    pub default: Action,
    /// As listed; the native one is always meant.
    pub architectures: &'a [Arch],
    /// For `seccomp(2)`.
    pub flags: u64,
    /// In the order of the specification.
    pub rules: Vec<Rule<'a>>,
}

/// What to do about some system calls.
#[derive(Debug)]
pub struct Rule<'a> {
    /// `linux.seccomp.syscalls[n]`.
    pub field: String,
    /// The system calls. A profile lists those of all architectures and of
    /// kernels to come, so unknown ones are passed over.
    pub names: &'a [String],
    /// What to do.
    pub action: Action,
    /// Any of these has to hold; each is a list of conditions that all have to.
    pub alternatives: Vec<Vec<Comparison>>,
}

/// What the kernel does with a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ends the thread.
    KillThread,
    /// Ends the process.
    KillProcess,
    /// Sends SIGSYS.
    Trap,
    /// Fails with this number.
    Errno(u16),
    /// Asks the tracer, with this message.
    Trace(u16),
    /// Logs and runs it.
    Log,
    /// Runs it.
    Allow,
}

/// A condition on an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// 0 to 5.
    pub argument: u32,
    /// How it is compared.
    pub operator: Operator,
    /// With what.
    pub value: u64,
}

/// How an argument is compared, unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// Differs.
    NotEqual,
    /// Is less.
    Less,
    /// Is not more.
    LessOrEqual,
    /// Is the same.
    Equal,
    /// Is not less.
    GreaterOrEqual,
    /// Is more.
    Greater,
    /// The bits of this mask are the same as the value.
    MaskedEqual(u64),
}

impl Action {
    /// What a filter returns for it (linux/seccomp.h).
    pub const fn value(self) -> u32 {
        match self {
            Self::KillThread => 0,
            Self::KillProcess => 0x8000_0000,
            Self::Trap => 0x0003_0000,
            Self::Errno(errno) => 0x0005_0000 | errno as u32,
            Self::Trace(message) => 0x7ff0_0000 | message as u32,
            Self::Log => 0x7ffc_0000,
            Self::Allow => 0x7fff_0000,
        }
    }

    /// Whether the system call runs.
    pub const fn is_permissive(self) -> bool {
        matches!(self, Self::Log | Self::Allow | Self::Trace(_))
    }
}

impl<'a> Profile<'a> {
    /// Checks `linux.seccomp`.
    pub fn plan(spec: &'a LinuxSeccomp) -> Result<Self, ContainerError> {
        if spec.listener_path().is_some() || spec.listener_metadata().is_some() {
            return Err(no_notify("linux.seccomp.listenerPath"));
        }
        let default = action(
            spec.default_action(),
            spec.default_errno_ret(),
            "linux.seccomp.defaultAction",
        )?;
        let rules = spec.syscalls().as_deref().unwrap_or_default();
        let rules = rules
            .iter()
            .enumerate()
            .map(|(index, rule)| Rule::plan(index, rule));
        Ok(Self {
            default,
            architectures: spec.architectures().as_deref().unwrap_or_default(),
            flags: flags(spec.flags().as_deref().unwrap_or_default())?,
            rules: rules.collect::<Result<_, _>>()?,
        })
    }
}

impl<'a> Rule<'a> {
    fn plan(index: usize, spec: &'a LinuxSyscall) -> Result<Self, ContainerError> {
        let field = format!("linux.seccomp.syscalls[{index}]");
        let args = spec.args().as_deref().unwrap_or_default();
        let comparisons = args
            .iter()
            .map(|arg| comparison(arg, &field))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            action: action(spec.action(), spec.errno_ret(), &field)?,
            names: spec.names(),
            alternatives: alternatives(comparisons),
            field,
        })
    }
}

/// One argument compared twice cannot be one condition for the library that
/// profiles are written for; with it, each comparison is a rule of its own.
fn alternatives(comparisons: Vec<Comparison>) -> Vec<Vec<Comparison>> {
    let twice = comparisons.iter().enumerate().any(|(index, comparison)| {
        comparisons
            .iter()
            .take(index)
            .any(|earlier| earlier.argument == comparison.argument)
    });
    if twice {
        comparisons.into_iter().map(|one| vec![one]).collect()
    } else {
        vec![comparisons]
    }
}

fn no_notify(field: &str) -> ContainerError {
    ContainerError::unsupported(
        field,
        "the supervisor that would be notified (SCMP_ACT_NOTIFY) is on the host and cannot see \
         into the guest; use SCMP_ACT_ERRNO",
    )
}

fn action(
    action: LinuxSeccompAction,
    errno: Option<u32>,
    field: &str,
) -> Result<Action, ContainerError> {
    use LinuxSeccompAction as Spec;
    let errno = || {
        u16::try_from(errno.unwrap_or(libc::EPERM.unsigned_abs()))
            .map_err(|_| ContainerError::invalid(field, "the errno to return is too large"))
    };
    Ok(match action {
        Spec::ScmpActKill | Spec::ScmpActKillThread => Action::KillThread,
        Spec::ScmpActKillProcess => Action::KillProcess,
        Spec::ScmpActTrap => Action::Trap,
        Spec::ScmpActErrno => Action::Errno(errno()?),
        Spec::ScmpActTrace => Action::Trace(errno()?),
        Spec::ScmpActLog => Action::Log,
        Spec::ScmpActAllow => Action::Allow,
        Spec::ScmpActNotify => return Err(no_notify(field)),
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

fn comparison(arg: &LinuxSeccompArg, field: &str) -> Result<Comparison, ContainerError> {
    use LinuxSeccompOperator as Spec;
    let argument = u32::try_from(arg.index())
        .ok()
        .filter(|index| *index < 6)
        .ok_or_else(|| {
            ContainerError::invalid(
                format!("{field}.args"),
                "a system call has arguments 0 to 5",
            )
        })?;
    let (operator, value) = match arg.op() {
        Spec::ScmpCmpNe => (Operator::NotEqual, arg.value()),
        Spec::ScmpCmpLt => (Operator::Less, arg.value()),
        Spec::ScmpCmpLe => (Operator::LessOrEqual, arg.value()),
        Spec::ScmpCmpEq => (Operator::Equal, arg.value()),
        Spec::ScmpCmpGe => (Operator::GreaterOrEqual, arg.value()),
        Spec::ScmpCmpGt => (Operator::Greater, arg.value()),
        Spec::ScmpCmpMaskedEq => (
            Operator::MaskedEqual(arg.value()),
            arg.value_two().unwrap_or(0),
        ),
    };
    Ok(Comparison {
        argument,
        operator,
        value,
    })
}

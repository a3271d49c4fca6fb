//! What a requirement is, and what a runtime is expected to make of it.

use std::fmt;

use crate::subject::Subject;

/// A runtime of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The reference implementation, which proves the requirement's test.
    Runc,
    /// The other one that engines use.
    Crun,
    /// Ours.
    Bulkhead,
}

impl Kind {
    /// In the order of the table's columns: the proof first.
    pub const ALL: [Self; 3] = [Self::Runc, Self::Crun, Self::Bulkhead];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Bulkhead => "Bulkhead",
        })
    }
}

/// Something a runtime has to do, with the test that shows it.
#[derive(Debug)]
pub struct Requirement {
    /// Where it is written: part of the specification or runc's command line.
    pub section: &'static str,
    /// The test's name.
    pub name: &'static str,
    /// The requirement in one sentence.
    pub text: &'static str,
    /// Panics where it is not met.
    pub check: fn(&Subject),
    /// Which runtimes do not meet it, and why.
    pub exceptions: &'static [Exception],
}

/// A runtime is known not to meet a requirement. One that does nevertheless is a failure of the suite.
#[derive(Debug)]
pub enum Exception {
    /// runc as Debian 12 has it.
    Runc(&'static str),
    /// crun as Debian 12 has it.
    Crun(&'static str),
    /// Ours, because a virtual machine cannot.
    Vm(&'static str),
    /// Ours, on purpose: what runc does there is not required by anybody.
    #[allow(dead_code, reason = "used as long as there is one")]
    Differs(&'static str),
    /// Ours, for the time being.
    #[allow(dead_code, reason = "used as long as something is missing")]
    NotYet(&'static str),
}

impl Requirement {
    /// Why a runtime does not meet it; none if it has to.
    pub fn exception(&self, kind: Kind) -> Option<&Exception> {
        self.exceptions.iter().find(|it| it.kind() == kind)
    }
}

impl Exception {
    /// Whose it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Runc(_) => Kind::Runc,
            Self::Crun(_) => Kind::Crun,
            Self::Vm(_) | Self::Differs(_) | Self::NotYet(_) => Kind::Bulkhead,
        }
    }

    /// The word in the table's cell.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Runc(_) | Self::Crun(_) => "no",
            Self::Vm(_) => "cannot",
            Self::Differs(_) => "differs",
            Self::NotYet(_) => "not yet",
        }
    }

    /// Why.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Runc(why)
            | Self::Crun(why)
            | Self::Vm(why)
            | Self::Differs(why)
            | Self::NotYet(why) => why,
        }
    }
}

/// Requirements of one section: `test = "sentence" [Exception("why"), …];`.
#[macro_export]
macro_rules! requirements {
    ($section:literal; $($check:ident = $text:literal $([$($why:expr),* $(,)?])?;)*) => {
        &[$($crate::requirement::Requirement {
            section: $section,
            name: concat!(module_path!(), "::", stringify!($check)),
            text: $text,
            check: $check,
            exceptions: &[$($($why),*)?],
        }),*]
    };
}

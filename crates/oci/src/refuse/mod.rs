//! What is refused, and why: a container is never started as something less than
//! what its configuration asks for.
//!
//! [`rules`] is the whole list as a table; the documentation is made from it.

mod host;
mod process;
mod resources;

use std::fmt;

use oci_spec::runtime::Spec;

/// Why something is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Because {
    /// The container has a kernel of its own: what belongs to the host's is out of reach.
    OwnKernel,
    /// The guest kernels have no way to do it.
    GuestKernel,
    /// It is possible and not built in this version.
    NotBuilt,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnKernel => "impossible in a virtual machine",
            Self::GuestKernel => "not supported by the guest kernels",
            Self::NotBuilt => "not built in this version",
        })
    }
}

/// One line of the table of refusals.
#[derive(Clone, Copy)]
pub struct Rule {
    /// The field, as a JSON path with `[]` for any element, and its refused values.
    pub field: &'static str,
    /// Whose fault it is.
    pub because: Because,
    /// The reason, in words.
    pub reason: &'static str,
    /// What to do instead.
    pub alternative: &'static str,
    /// The concrete fields of a configuration the rule applies to.
    find: fn(&Spec) -> Vec<String>,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule")
            .field("field", &self.field)
            .field("because", &self.because)
            .finish_non_exhaustive()
    }
}

/// Something a configuration asks for that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Where: a JSON path such as `linux.namespaces[2].path`, or the name of a command.
    pub field: String,
    /// Whose fault it is.
    pub because: Because,
    /// The reason, in words.
    pub reason: &'static str,
    /// What to do instead.
    pub alternative: &'static str,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Refused {}: {}; {}",
            self.field, self.reason, self.alternative
        )
    }
}

impl std::error::Error for Refusal {}

/// The whole table, in the order of the configuration's sections.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    host::RULES
        .iter()
        .chain(process::RULES)
        .chain(resources::RULES)
}

/// Everything the configuration asks for that is refused, in the order of [`rules`].
pub fn refusals(spec: &Spec) -> Vec<Refusal> {
    apply(rules(), spec)
}

/// What of `linux.resources` is refused.
pub fn refusals_of_resources(spec: &Spec) -> Vec<Refusal> {
    apply(resources::RULES.iter(), spec)
}

fn apply<'a>(rules: impl Iterator<Item = &'a Rule>, spec: &Spec) -> Vec<Refusal> {
    let mut found = Vec::new();
    for rule in rules {
        found.extend((rule.find)(spec).into_iter().map(|field| Refusal {
            field,
            because: rule.because,
            reason: rule.reason,
            alternative: rule.alternative,
        }));
    }
    found
}

/// The refusal of a command of other runtimes that this one has not, if it is one.
pub fn command(name: &str) -> Option<Refusal> {
    matches!(name, "checkpoint" | "restore").then(|| Refusal {
        field: name.to_owned(),
        because: Because::NotBuilt,
        reason: "saving a container's processes would mean saving its whole virtual machine, which is not built in this version",
        alternative: "stop the container and start it anew",
    })
}

#[cfg(test)]
mod tests;

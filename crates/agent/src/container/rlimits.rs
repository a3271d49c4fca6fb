//! `process.rlimits`.

use oci_spec::runtime::{PosixRlimit, PosixRlimitType as Type};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{
    ContainerError,
    failure::{During, Step},
};

/// One limit.
#[derive(Debug)]
pub struct Limit {
    resource: Resource,
    name: Type,
    value: Rlimit,
}

/// Checks the limits; each kind may be named once.
pub fn plan(spec: Option<&[PosixRlimit]>) -> Result<Vec<Limit>, ContainerError> {
    let spec = spec.unwrap_or_default();
    let mut limits: Vec<Limit> = Vec::with_capacity(spec.len());
    for (index, limit) in spec.iter().enumerate() {
        let name = limit.typ();
        let field = || format!("process.rlimits[{index}]");
        if limits.iter().any(|earlier| earlier.name == name) {
            return Err(ContainerError::invalid(
                field(),
                format!("{name} was set before"),
            ));
        }
        if limit.soft() > limit.hard() {
            return Err(ContainerError::invalid(field(), "soft is higher than hard"));
        }
        let amount = |value: u64| (value != libc::RLIM_INFINITY).then_some(value);
        let value = Rlimit {
            current: amount(limit.soft()),
            maximum: amount(limit.hard()),
        };
        limits.push(Limit {
            resource: resource(name),
            name,
            value,
        });
    }
    Ok(limits)
}

/// Sets them; needs `CAP_SYS_RESOURCE` to raise one.
pub fn apply(limits: &[Limit]) -> Step {
    for limit in limits {
        setrlimit(limit.resource, limit.value)
            .during(|| format!("set {}", limit.name))
            .map_err(|failure| failure.with_field("process.rlimits"))?;
    }
    Ok(())
}

const fn resource(name: Type) -> Resource {
    match name {
        Type::RlimitCpu => Resource::Cpu,
        Type::RlimitFsize => Resource::Fsize,
        Type::RlimitData => Resource::Data,
        Type::RlimitStack => Resource::Stack,
        Type::RlimitCore => Resource::Core,
        Type::RlimitRss => Resource::Rss,
        Type::RlimitNproc => Resource::Nproc,
        Type::RlimitNofile => Resource::Nofile,
        Type::RlimitMemlock => Resource::Memlock,
        Type::RlimitAs => Resource::As,
        Type::RlimitLocks => Resource::Locks,
        Type::RlimitSigpending => Resource::Sigpending,
        Type::RlimitMsgqueue => Resource::Msgqueue,
        Type::RlimitNice => Resource::Nice,
        Type::RlimitRtprio => Resource::Rtprio,
        Type::RlimitRttime => Resource::Rttime,
    }
}
